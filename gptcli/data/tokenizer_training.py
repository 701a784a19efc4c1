"""Trains byte-level BPE on texts, and writes a tokenizer as a directory of its own."""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from gptcli.checkpoints import overwrite
from gptcli.checkpoints.atomic import clear_partials, partial_path
from gptcli.checkpoints.layout import CONFIG, TOKENIZER_FILES
from gptcli.data.encoding_chunks import chunks
from gptcli.data.token_shards import Tokens
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer, bpe_training, choice, vocabulary
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.text import END_OF_TEXT

_PIECE = 2**16  # characters that one thread counts at a time
_READ = 2**20


def train_bpe(
    pieces: Iterable[tuple[bool, str]], vocab_size: int, *, allow_special: bool = False,
    min_frequency: int = bpe_training.MIN_FREQUENCY,
) -> BPETokenizer:  # fmt: skip
    """See `bpe_training.train`.

    Args:
        pieces: texts in pieces of any size: (whether a text begins with this piece, piece).
        vocab_size, min_frequency: see `bpe_training.train`.
        allow_special: whether <|endoftext|> in a text is a token, of which no pair is counted.

    Raises:
        GptcliError: see `bpe_training.train`.
    """

    def parts() -> Iterator[str]:
        for chunk in chunks(pieces, _PIECE):
            for _, text in chunk:
                yield from text.split(END_OF_TEXT) if allow_special else [text]

    return bpe_training.train(parts(), vocab_size, min_frequency)


def in_pieces(texts: Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Texts in pieces, as `train_bpe` reads them."""
    for text in texts:
        for start in range(0, len(text), _READ):
            yield start == 0, text[start : start + _READ]


def first_characters(pieces: Iterable[tuple[bool, str]], count: int) -> Iterator[tuple[bool, str]]:
    """The first ``count`` characters of ``pieces``; the others are not read."""
    for begins, piece in pieces:
        if count <= 0:
            return
        yield begins, piece[:count]
        count -= len(piece)


def sampled(pieces: Iterable[tuple[bool, str]], sample: list[str], count: int) -> Iterator[tuple[bool, str]]:
    """``pieces``; their first ``count`` characters are appended to ``sample`` on the way."""
    for begins, piece in pieces:
        if count > 0:
            sample.append(piece[:count])
            count -= len(piece)
        yield begins, piece


def tokens_of_first(parts: Iterable[Tokens], tokenizer: BPETokenizer, characters: int) -> int:
    """How many tokens hold the first ``characters`` characters of texts; the end of text counts no character.

    Args:
        parts: consecutive tokens, integer arrays.
        tokenizer: of the tokens.
        characters: of the texts.
    """
    counts = np.array(tokenizer.characters_begun(), np.int64)
    tokens = 0
    for part in parts:
        for start in range(0, len(part), _READ):
            ends = np.cumsum(counts[part[start : start + _READ]])
            if len(ends) and ends[-1] >= characters:
                return tokens + int(np.searchsorted(ends, characters)) + 1
            tokens, characters = tokens + len(ends), characters - int(ends[-1] if len(ends) else 0)
    return tokens


def _check(path: Path) -> None:
    if (path / CONFIG).exists():
        raise GptcliError("it is a checkpoint.", "Choose another folder.")
    choice.read(path)


FOLDER = overwrite.Kind(
    "a tokenizer of gptcli's", re.compile(overwrite.written(*TOKENIZER_FILES)), vocabulary.FILE, _check
)


def create(path: Path, tokenizer: Tokenizer, *, force: bool) -> None:
    """Write ``tokenizer`` as the directory ``path``, in one step.

    Raises:
        GptcliError: ``path`` may not be made or replaced, or the disk cannot be written to.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_partials(path)
        partial.mkdir()
        tokenizer.save(partial)
        overwrite.put_in_place(partial, path, FOLDER, force=force)
    except OSError as error:
        raise GptcliError(f"Cannot write {path}: {error.strerror or error}.", "Choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
