"""The protocol that all tokenizers implement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class DecodeStream(Protocol):
    """Decodes token by token; the results of ``push`` and ``flush``, joined, equal ``decode`` of all ids."""

    def push(self, token_id: int) -> str:
        """The whole characters that this token completes; may be empty."""

    def flush(self) -> str:
        """The text of the remaining incomplete bytes, after the last token."""


class Tokenizer(Protocol):
    """The interface of a tokenizer.

    Attributes:
        kind: one of KINDS; "bpe" for a trained BPE or a foreign tokenizer.json; "none" for a model without tokenizer.
        vocab_size: ids are 0 … vocab_size - 1.
        holes: ids below vocab_size that have no token; usually empty.
        eot_id: id of the end-of-text token; None if there is none.
        fingerprint: SHA-256, in hex, of the vocabulary in canonical form.
        chat_template: Jinja2 that turns messages into a text, as transformers takes it; None for a model that was not
            taught with one. It is no part of the fingerprint.
    """

    chat_template: str | None

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
        """Token ids; special tokens (<|endoftext|>) in ``text`` are plain text unless ``allow_special``."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not valid UTF-8 become U+FFFD."""

    def stream(self) -> DecodeStream:
        """A new incremental decoder."""

    def piece(self, token_id: int) -> str:
        """The token's text on one line; invalid UTF-8 and unprintable characters are escaped."""

    def save(self, directory: Path) -> None:
        """Write the tokenizer's files into the existing ``directory``. Raises OSError."""
