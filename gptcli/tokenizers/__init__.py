"""Tokenizers: text to token ids and back. All kinds implement the protocol `Tokenizer`."""

from collections.abc import Callable
from pathlib import Path

from gptcli.errors import GptcliError, nearest
from gptcli.tokenizers import chat_template
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.byte import ByteTokenizer
from gptcli.tokenizers.char import CharTokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer
from gptcli.tokenizers.none import NoTokenizer
from gptcli.tokenizers.protocol import DecodeStream, Tokenizer
from gptcli.tokenizers.vocabulary import COPY_AGAIN
from gptcli.tokenizers.word import WordTokenizer

__all__ = ["KINDS", "LOADERS", "DecodeStream", "Tokenizer", "build", "load"]

KINDS = ("gpt2", "char", "byte", "word")  # the kinds that `build` makes


def build(kind: str, text: str | None = None) -> Tokenizer:
    """A new tokenizer; char and word take their vocabulary from ``text``.

    Raises:
        GptcliError: ``kind`` is unknown, or ``text`` has no token for a vocabulary.
    """
    _check_kind(kind)
    if kind == "gpt2":
        return GPT2Tokenizer()
    if kind == "byte":
        return ByteTokenizer()
    if not text or (kind == "word" and text.isspace()):
        raise GptcliError(
            f"A {kind} tokenizer takes its vocabulary from a text, and there is none.",
            "Give a text, or choose the gpt2 or byte tokenizer.",
        )
    return CharTokenizer.from_text(text) if kind == "char" else WordTokenizer.from_text(text)


def load(directory: Path, kind: str, fingerprint: str) -> Tokenizer:
    """The tokenizer saved in ``directory``, which must have this ``kind`` and ``fingerprint``.

    Raises:
        GptcliError: ``kind`` is unknown, a file is missing or damaged, or the fingerprint differs.
    """
    if kind not in LOADERS:
        _check_kind(kind)
    tokenizer = LOADERS[kind](directory)
    if tokenizer.fingerprint != fingerprint:
        raise GptcliError(
            f"{directory}: the {kind} tokenizer's fingerprint is {tokenizer.fingerprint[:12]}…, but the model was "
            f"trained with {str(fingerprint)[:12]}….",
            COPY_AGAIN,
        )
    tokenizer.chat_template = chat_template.read(directory)
    return tokenizer


LOADERS: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt2": GPT2Tokenizer.load,
    BPETokenizer.kind: BPETokenizer.load,
    "char": CharTokenizer.load,
    "byte": ByteTokenizer.load,
    "word": WordTokenizer.load,
    NoTokenizer.kind: NoTokenizer.load,
}


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise GptcliError(f"There is no tokenizer {kind!r}.", nearest(str(kind), KINDS))
