"""Characters as tokens: the vocabulary is the set of characters of the corpus."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.tokenizers import hugging_face, vocabulary
from gptcli.tokenizers.text import printable

_SHOWN = 100


class CharTokenizer:
    """One token per character. There is no end-of-text token and no token for unknown characters.

    Args:
        characters: the vocabulary, in order of ids.
    """

    kind = "char"
    eot_id = None
    holes = ()
    chat_template: str | None = None

    def __init__(self, characters: Sequence[str]) -> None:
        self.vocab_size = len(characters)
        self.fingerprint = vocabulary.fingerprint(self.kind, characters)
        self._characters = list(characters)
        self._ids = {character: token_id for token_id, character in enumerate(characters)}

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters of ``text``, sorted by code point."""
        return cls.from_pieces([text])

    @classmethod
    def from_pieces(cls, pieces: Iterable[str]) -> "CharTokenizer":
        """As `from_text`, for a text in pieces of any size."""
        characters: set[str] = set()
        for piece in pieces:
            characters.update(piece)
        return cls(sorted(characters))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``, one per character; ``allow_special`` has no effect.

        Raises:
            GptcliError: a character is not in the vocabulary; the message has its offset.
        """
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            at, unknown = next((i, c) for i, c in enumerate(text) if c not in self._ids)
            known = printable("".join(self._characters[:_SHOWN])) + ("…" if self.vocab_size > _SHOWN else "")
            raise GptcliError(
                f"The character {printable(unknown)!r} (U+{ord(unknown):04X}) at offset {at:,} is not in the char "
                f"vocabulary of {self.vocab_size:,}.",
                f"The gpt2 and byte tokenizers take any text; its characters are: {known}",
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``.

        Raises:
            GptcliError: an id has no token.
        """
        return "".join(map(self._character, ids))

    def stream(self) -> "CharStream":
        """A new incremental decoder."""
        return CharStream(self)

    def piece(self, token_id: int) -> str:
        """One token in printable form."""
        return printable(self._character(token_id))

    def save(self, directory: Path) -> None:
        """Write the tokenizer's JSON file, and AutoTokenizer's files."""
        vocabulary.write(directory, self.kind, self._characters)
        hugging_face.write(directory, hugging_face.of_characters(self._characters), None)

    @classmethod
    def load(cls, directory: Path) -> "CharTokenizer":
        """Read what ``save`` wrote.

        Raises:
            GptcliError: the file is missing or damaged.
        """
        characters = vocabulary.read(directory, cls.kind)
        for token_id, character in enumerate(characters):
            if len(character) != 1:
                raise GptcliError(
                    f"{directory / vocabulary.FILE}: token {token_id} is {character[:40]!r}, not one character.",
                    vocabulary.COPY_AGAIN,
                )
        return cls(characters)

    def _character(self, token_id: int) -> str:
        if not 0 <= token_id < self.vocab_size:
            raise vocabulary.unknown_id(token_id, self.kind, self.vocab_size)
        return self._characters[token_id]


class CharStream:
    """Decodes token by token; every token is a whole character, so no text is kept back."""

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token_id: int) -> str:
        """The token's character."""
        return self._tokenizer.decode([token_id])

    def flush(self) -> str:
        """The empty string."""
        return ""
