"""Bytes as tokens: the 256 byte values of UTF-8, and an end-of-text token."""

from collections.abc import Sequence
from pathlib import Path

from gptcli.tokenizers import hugging_face, vocabulary
from gptcli.tokenizers.text import END_OF_TEXT, Utf8Stream, encode_with_special, printable, to_utf8


class ByteTokenizer:
    """257 tokens: ids 0 to 255 are the bytes, 256 is end of text. It encodes any text and needs no corpus."""

    kind = "byte"
    vocab_size = 257
    eot_id = 256
    holes = ()
    chat_template: str | None = None
    fingerprint = vocabulary.fingerprint("byte", [])

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The UTF-8 bytes of ``text``. Lone surrogates are encoded as U+FFFD."""
        return encode_with_special(text, lambda plain: list(to_utf8(plain)), self.eot_id, allow_special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            GptcliError: an id is negative or above 256.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self) -> Utf8Stream:
        """A new incremental decoder."""
        return Utf8Stream(self.token_bytes)

    def piece(self, token_id: int) -> str:
        """One token in printable form."""
        return printable(self.token_bytes(token_id))

    def save(self, directory: Path) -> None:
        """Write the tokenizer's JSON file, with its kind and an empty vocabulary, and AutoTokenizer's files."""
        vocabulary.write(directory, self.kind, [])
        hugging_face.write(directory, hugging_face.of_bytes(self.eot_id), END_OF_TEXT)

    @classmethod
    def load(cls, directory: Path) -> "ByteTokenizer":
        """Check that ``directory`` holds a byte tokenizer.

        Raises:
            GptcliError: the file is missing or damaged.
        """
        vocabulary.read(directory, cls.kind)
        return cls()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Raises GptcliError where there is no such token."""
        if token_id == self.eot_id:
            return END_OF_TEXT.encode("ascii")
        if not 0 <= token_id < self.eot_id:
            raise vocabulary.unknown_id(token_id, self.kind, self.vocab_size)
        return bytes([token_id])
