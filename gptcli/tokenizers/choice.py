"""What ``--tokenizer`` names: a kind, a BPE to be trained (bpe:4096), or a directory that holds a tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import GptcliError, nearest
from gptcli.tokenizers import KINDS, LOADERS, bpe_training, foreign, tokenizer_json, vocabulary
from gptcli.tokenizers.bpe import MERGES_FILE, VOCAB_FILE, BPETokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer
from gptcli.tokenizers.protocol import Tokenizer

_TRAINED = f"{BPETokenizer.kind}:"


@dataclass(frozen=True)
class Choice:
    """The tokenizer of a new corpus.

    Attributes:
        kind: of the tokenizer.
        vocab_size: of the BPE to be trained on the corpus; None for another tokenizer.
        tokenizer: the one that a directory holds; None for a new one.
    """

    kind: str
    vocab_size: int | None = None
    tokenizer: Tokenizer | None = None

    def __str__(self) -> str:
        if self.tokenizer is not None:
            return f"{self.kind}, {self.tokenizer.vocab_size:,} tokens ({self.tokenizer.fingerprint[:12]}…)"
        return self.kind if self.vocab_size is None else f"{self.kind}:{self.vocab_size}"

    def matches(self, kind: str, fingerprint: str, vocab_size: int) -> bool:
        """Whether a tokenizer with these properties can be the one that was chosen."""
        same = self.tokenizer is None or self.tokenizer.fingerprint == fingerprint
        return same and self.kind == kind and self.vocab_size in (None, vocab_size)


def choose(name: str, root: Path | None = None) -> Choice:
    """The choice that ``name`` stands for.

    Args:
        name: one of KINDS, bpe:N, or a directory.
        root: a folder in which a directory is looked for as well.

    Raises:
        GptcliError: ``name`` is none of these, N is out of range, the directory holds no tokenizer, or one that is not
            supported.
    """
    if name in KINDS:
        return Choice(name)
    if name == BPETokenizer.kind or name.startswith(_TRAINED):
        number = name.removeprefix(_TRAINED)
        if not (number.isascii() and number.isdigit()):
            raise GptcliError(f"The tokenizer {name!r} has no size of its vocabulary.", "Give one, as in bpe:4096.")
        bpe_training.check_size(int(number))
        return Choice(BPETokenizer.kind, vocab_size=int(number))
    places = [Path(name)] + ([root / name] if root is not None else [])
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise GptcliError(f"There is no tokenizer {name!r}.", f"{nearest(name, (*KINDS, 'bpe:4096'))} Or a directory.")
    tokenizer = read(found)
    return Choice(tokenizer.kind, tokenizer=tokenizer)


def read(path: Path) -> Tokenizer:
    """The tokenizer in a directory: of a checkpoint, of gptcli train-tokenizer, or the tokenizer.json of others.

    Raises:
        GptcliError: there is none, it is damaged, or it is not supported.
    """
    directory = path.parent if path.name == tokenizer_json.FILE and path.is_file() else path
    if not directory.is_dir():
        raise GptcliError(f"{path} is not a directory.", "Give a directory that holds a tokenizer.")
    if (directory / vocabulary.FILE).is_file():
        return _read_ours(directory)
    if (directory / tokenizer_json.FILE).is_file():
        return foreign.read(directory)
    if (directory / VOCAB_FILE).is_file() and (directory / MERGES_FILE).is_file():
        return GPT2Tokenizer.load(directory)
    raise GptcliError(
        f"{directory} has no tokenizer: neither {vocabulary.FILE} nor {tokenizer_json.FILE}.",
        f"Make one: gptcli train-tokenizer TEXT --out {directory}",
    )


def _read_ours(directory: Path) -> Tokenizer:
    mark = vocabulary.read_mark(directory)
    load: Callable[[Path], Tokenizer] | None = LOADERS.get(mark["kind"])
    if load is None:
        raise GptcliError(
            f"{directory / vocabulary.FILE} is of the unknown kind {mark['kind']!r:.40}.", vocabulary.COPY_AGAIN
        )
    tokenizer = load(directory)
    if mark.get("fingerprint", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise GptcliError(
            f"{directory / tokenizer_json.FILE} is not the one that {vocabulary.FILE} names.", vocabulary.COPY_AGAIN
        )
    return tokenizer
