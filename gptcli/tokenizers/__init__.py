"""Tokenizers: text to token ids and back. All kinds implement the protocol `Tokenizer`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from gptcli.errors import GptcliError, nearest
from gptcli.tokenizers.bpe import BPETokenizer
from gptcli.tokenizers.byte import ByteTokenizer
from gptcli.tokenizers.char import CharTokenizer
from gptcli.tokenizers.gpt2 import GPT2Tokenizer
from gptcli.tokenizers.none import NoTokenizer
from gptcli.tokenizers.vocabulary import COPY_AGAIN
from gptcli.tokenizers.word import WordTokenizer

KINDS = ("gpt2", "char", "byte", "word")  # the kinds that `build` makes


class TextStream(Protocol):
    """Decodes token by token; the results of ``push`` and ``flush``, joined, equal ``decode`` of all ids."""

    def push(self, token_id: int) -> str:
        """The whole characters that this token completes; may be empty."""

    def flush(self) -> str:
        """The text of the remaining incomplete bytes, after the last token."""


class Tokenizer(Protocol):
    """The interface of a tokenizer.

    Attributes:
        kind: one of KINDS; "bpe" for a tokenizer.json of a foreign model; "none" for a model without tokenizer.
        vocab_size: ids are 0 … vocab_size - 1.
        holes: ids below vocab_size that have no token; usually empty.
        eot_id: id of the end-of-text token; None if there is none.
        fingerprint: SHA-256, in hex, of the vocabulary in canonical form.
    """

    @property
    def kind(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eot_id(self) -> int | None: ...
    @property
    def holes(self) -> Sequence[int]: ...
    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids; <|endoftext|> in ``text`` is plain text unless ``allow_special``."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not valid UTF-8 become U+FFFD."""

    def stream(self) -> TextStream:
        """A new incremental decoder."""

    def piece(self, token_id: int) -> str:
        """The token's text on one line; invalid UTF-8 and unprintable characters are escaped."""

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files into the existing ``directory``. Raises OSError."""


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
    if kind not in _LOADERS:
        _check_kind(kind)
    tokenizer = _LOADERS[kind](directory)
    if tokenizer.fingerprint != fingerprint:
        raise GptcliError(
            f"{directory}: the {kind} tokenizer's fingerprint is {tokenizer.fingerprint[:12]}…, but the model was "
            f"trained with {str(fingerprint)[:12]}….",
            COPY_AGAIN,
        )
    return tokenizer


_LOADERS: dict[str, Callable[[Path], Tokenizer]] = {
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
