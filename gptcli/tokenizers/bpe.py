"""Byte-level BPE with GPT-2's pre-split and a trained vocabulary: ours, or that of a foreign tokenizer.json."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError
from gptcli.tokenizers import hugging_face, tokenizer_json, vocabulary
from gptcli.tokenizers.gpt2 import CONFIG_FILE, PATTERN, byte_letters, encode_runs, encode_to_array
from gptcli.tokenizers.text import END_OF_TEXT, Utf8Stream, printable
from gptcli.tokenizers.tokenizer_json import FILE, Description
from gptcli.tokenizers.vocabulary import read_bytes, unknown_id

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tiktoken import Encoding


VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"


class BPETokenizer:
    """Byte-level BPE with GPT-2's split pattern and the merges and ids of a tokenizer.json.

    Special tokens in a text are plain text without ``allow_special``.

    Attributes:
        description: as given.

    Args:
        description: the content of tokenizer.json that determines ids.
        content: the bytes of tokenizer.json, which ``save`` writes unchanged.
    """

    kind = "bpe"
    chat_template: str | None = None

    def __init__(self, description: Description, content: bytes) -> None:
        self.description, self._content = description, content
        ids = {*description.vocab.values(), *description.added.values()}
        self.vocab_size = max(ids) + 1
        self.holes = tuple(sorted(set(range(self.vocab_size)) - ids))
        self.eot_id = None if description.end is None else description.id_of(description.end)
        self.fingerprint = description.fingerprint()

    @classmethod
    def of_merges(cls, merges: Sequence[tuple[str, str]]) -> "BPETokenizer":
        """The tokenizer with these merges, and with ids as GPT-2's: the 256 bytes, the merges, <|endoftext|>.

        Args:
            merges: pairs of tokens in GPT-2's byte letters, the lowest rank first.
        """
        tokens = [*byte_letters().values(), *(left + right for left, right in merges)]
        vocab = {token: token_id for token_id, token in enumerate([*tokens, END_OF_TEXT])}
        end = vocab[END_OF_TEXT]
        content = hugging_face.dumped(hugging_face.of_bpe(vocab, merges, end))
        return cls(Description(vocab, list(merges), {END_OF_TEXT: end}, [], END_OF_TEXT), content)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``, equal to the tokenizers library's. Lone surrogates are encoded as U+FFFD."""
        separate = self._added if allow_special else self._kept
        ids: list[int] = []
        for place, part in enumerate(separate.split(text) if separate else [text]):
            if place % 2:
                ids.append(self.description.id_of(part))
            elif part:
                ranks = encode_runs(self._encoding.encode_ordinary, part)
                ids += ranks if self._ids is None else [self._ids[rank] for rank in ranks]
        return ids

    def encode_array(self, text: str, *, allow_special: bool = False) -> "NDArray[np.uint32]":
        """The ids of ``encode`` as an array (n): faster, and tiktoken releases the GIL."""
        import numpy as np

        separate = self._added if allow_special else self._kept
        ranks = None if separate and separate.search(text) else encode_to_array(self._encoding, text)
        if ranks is None:
            return np.array(self.encode(text, allow_special=allow_special), np.uint32)
        return ranks if self._ids is None else np.array(self._ids, np.uint32)[ranks]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            GptcliError: an id has no token.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self) -> Utf8Stream:
        """A new incremental decoder."""
        return Utf8Stream(self.token_bytes)

    def piece(self, token_id: int) -> str:
        """One token in printable form."""
        return printable(self.token_bytes(token_id))

    def characters_begun(self) -> list[int]:
        """For every id, the number of characters that begin in its token: 0 for the end of text, and for holes."""
        begun = [0] * self.vocab_size
        for token_id, text in self._texts.items():
            begun[token_id] = sum(byte & 0xC0 != 0x80 for byte in text) if token_id != self.eot_id else 0
        return begun

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, unchanged, tokenizer_config.json, vocab.json, merges.txt and our own mark."""
        hugging_face.write(directory, self._content, self.description.end)
        vocab = self.description.vocab | self.description.added
        merges = "\n".join(["#version: 0.2", *map(" ".join, self.description.merges), ""])
        (directory / VOCAB_FILE).write_bytes(json.dumps(vocab).encode("ascii"))
        (directory / MERGES_FILE).write_bytes(merges.encode("utf-8", "surrogatepass"))
        vocabulary.write_mark(directory, self.kind, self.fingerprint)

    @classmethod
    def load(cls, directory: Path) -> "BPETokenizer":
        """Read what ``save`` wrote.

        Raises:
            GptcliError: a file is missing or damaged, or has an unsupported setting.
        """
        content = read_bytes(directory / FILE)
        config = tokenizer_json.parse(read_bytes(directory / CONFIG_FILE), directory / CONFIG_FILE)
        return cls(tokenizer_json.describe(content, directory / FILE, config), content)

    def check_merges(self, file: Path) -> None:
        """Check that tiktoken, which merges any two parts whose concatenation is a token, follows the list of merges.

        It does if each merged token is the result of exactly one merge and the merges, applied to the token's bytes,
        give that token: then adjacent parts whose concatenation is a token are the pair of its merge.

        Raises:
            GptcliError: a token is made by two merges or by none, so tiktoken's ids could differ.
        """
        ranks = {pair: rank for rank, pair in enumerate(self.description.merges)}
        made: set[str] = set()
        for left, right in self.description.merges:
            token = left + right
            if token in made or _merge(token, ranks) != [token]:
                raise GptcliError(
                    f"{file}: its merges make the token {printable(self._bytes_of(token))!r} in two ways or in none, "
                    "which is not supported.",
                    "Its ids would differ from the ids of the model; train the tokenizer again.",
                )
            made.add(token)

    @cached_property
    def _kept(self) -> re.Pattern[str] | None:
        """Matches the added tokens that are split from every text before BPE; None if there are none."""
        return _any_of(self.description.kept)

    @cached_property
    def _added(self) -> re.Pattern[str] | None:
        """Matches the special tokens as well."""
        end = self.description.end
        return _any_of({*self.description.added} | ({end} if end else set()))

    @cached_property
    def _tables(self) -> "tuple[Encoding, list[int] | None]":
        """tiktoken's encoding, with the ranks of the 256 bytes and then of the merges, and the id of each rank.

        None instead of the ids if they are the ranks.
        """
        from tiktoken import Encoding

        spelled = [*byte_letters().values(), *(left + right for left, right in self.description.merges)]
        ranks = {self._bytes_of(token): rank for rank, token in enumerate(spelled)}
        # tiktoken's encode_to_numpy takes longer where there is no special token; no text is allowed to have this one.
        special = {END_OF_TEXT: len(ranks)}
        encoding = Encoding(self.kind, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        ids = [self.description.vocab[token] for token in spelled]
        return encoding, None if ids == list(range(len(ids))) else ids

    @property
    def _encoding(self) -> "Encoding":
        return self._tables[0]

    @property
    def _ids(self) -> list[int] | None:
        return self._tables[1]

    @cached_property
    def _texts(self) -> dict[int, bytes]:
        texts = {token_id: self._bytes_of(token) for token, token_id in self.description.vocab.items()}
        return texts | {
            token_id: token.encode("utf-8", "replace") for token, token_id in self.description.added.items()
        }

    def _bytes_of(self, token: str) -> bytes:
        """The bytes of a token in GPT-2's byte letters; a token with other letters gives its own UTF-8."""
        try:
            return bytes([self._letter_bytes[letter] for letter in token])
        except KeyError:
            return token.encode("utf-8", "replace")

    @cached_property
    def _letter_bytes(self) -> dict[str, int]:
        return {letter: byte for byte, letter in byte_letters().items()}

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for. Raises GptcliError where there is no such token."""
        try:
            return self._texts[token_id]
        except KeyError as error:
            raise unknown_id(token_id, self.kind, self.vocab_size) from error


def _merge(token: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of ``token`` after BPE: the pair of lowest rank is merged first, the leftmost of equal rank."""
    parts = list(token)
    while len(parts) > 1:
        found = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(parts))]
        rank, at = min(found)
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that splits a text at the tokens, the longest first."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
