"""Words and punctuation marks as tokens: the course's first tokenizer, which discards white space."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.tokenizers import hugging_face, vocabulary
from gptcli.tokenizers.text import END_OF_TEXT, encode_with_special, printable

UNKNOWN = "<|unk|>"
_SEPARATORS = re.compile(r"""([,.:;?_!"()']|--|\s)""")
_NO_SPACE_BEFORE = tuple(""",.:;?!"()'""")


class WordTokenizer:
    """One token per word or punctuation mark of the corpus, <|unk|> for others; decoding does not restore white space.

    Args:
        words: the vocabulary, in order of ids; the last two are <|endoftext|> and <|unk|>.
    """

    kind = "word"
    holes = ()
    chat_template: str | None = None

    def __init__(self, words: Sequence[str]) -> None:
        self.vocab_size = len(words)
        self.eot_id = self.vocab_size - 2
        self.fingerprint = vocabulary.fingerprint(self.kind, words)
        self._words = list(words)
        self._ids = {word: token_id for token_id, word in enumerate(words[:-2])}

    @classmethod
    def from_text(cls, text: str) -> "WordTokenizer":
        """The tokenizer of the words of ``text``, sorted by code points."""
        return cls.from_pieces([text])

    @classmethod
    def from_pieces(cls, pieces: Iterable[str]) -> "WordTokenizer":
        """As `from_text`, for a text in pieces that were cut before white space."""
        words: set[str] = set()
        for piece in pieces:
            words.update(_split(piece))
        return cls([*sorted(words - {END_OF_TEXT, UNKNOWN}), END_OF_TEXT, UNKNOWN])

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``; a word outside the vocabulary gets the id of <|unk|>."""
        return encode_with_special(text, self._encode_plain, self.eot_id, allow_special)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each id of ``encode(text, allow_special=True)``: its first character, and one past its last."""
        found: list[tuple[int, int]] = []
        at = 0
        for number, part in enumerate(text.split(END_OF_TEXT)):
            if number:
                found.append((at, at + len(END_OF_TEXT)))
                at += len(END_OF_TEXT)
            for piece in _SEPARATORS.split(part):
                if piece and not piece.isspace():
                    found.append((at, at + len(piece)))
                at += len(piece)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ``ids``, separated by spaces, without a space before any of , . : ; ? ! " ( ) and '.

        Raises:
            GptcliError: an id has no token.
        """
        stream = self.stream()
        return "".join(map(stream.push, ids))

    def stream(self) -> "WordStream":
        """A new incremental decoder."""
        return WordStream(self)

    def piece(self, token_id: int) -> str:
        """One token in printable form."""
        return printable(self.word(token_id))

    def word(self, token_id: int) -> str:
        """The word of a token, without any space."""
        if not 0 <= token_id < self.vocab_size:
            raise vocabulary.unknown_id(token_id, self.kind, self.vocab_size)
        return self._words[token_id]

    def save(self, directory: Path) -> None:
        """Write the tokenizer's JSON file, and AutoTokenizer's files."""
        vocabulary.write(directory, self.kind, self._words)
        hugging_face.write(directory, hugging_face.of_words(self._words, self.eot_id, UNKNOWN), END_OF_TEXT)

    @classmethod
    def load(cls, directory: Path) -> "WordTokenizer":
        """Read what ``save`` wrote.

        Raises:
            GptcliError: the file is missing or damaged.
        """
        words = vocabulary.read(directory, cls.kind)
        if words[-2:] != [END_OF_TEXT, UNKNOWN]:
            raise GptcliError(
                f"{directory / vocabulary.FILE}: the last two tokens are not {END_OF_TEXT} and {UNKNOWN}.",
                vocabulary.COPY_AGAIN,
            )
        return cls(words)

    def _encode_plain(self, text: str) -> list[int]:
        unknown = self.vocab_size - 1
        return [self._ids.get(word, unknown) for word in _split(text)]


class WordStream:
    """Decodes token by token; every token is a whole word, so no text is kept back."""

    def __init__(self, tokenizer: WordTokenizer) -> None:
        self._tokenizer = tokenizer
        self._space = ""

    def push(self, token_id: int) -> str:
        """The token's word, after a space unless it is the first word or in _NO_SPACE_BEFORE."""
        word = self._tokenizer.word(token_id)
        space = "" if word.startswith(_NO_SPACE_BEFORE) else self._space
        self._space = " "
        return space + word

    def flush(self) -> str:
        """The empty string; resets the stream."""
        self._space = ""
        return ""


def _split(text: str) -> list[str]:
    return [part for part in _SEPARATORS.split(text) if part and not part.isspace()]
