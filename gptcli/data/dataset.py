"""Texts -> tokens -> batches. A batch is a function of (seed, epoch, position), so that a resumed run repeats it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.data import token_shards
from gptcli.data.text_record import DocumentRecord, split_characters
from gptcli.data.token_shards import Shards
from gptcli.data.tokenizer_training import tokens_of_first
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer
from gptcli.tokenizers.bpe import BPETokenizer


@dataclass(frozen=True)
class Corpus:
    """The training tokens and the validation tokens.

    Attributes:
        train: (n) int32, or shards on disk.
        validation: (m) int32, or shards; empty where the text is too short or the whole text trains.
        characters: number of characters of the whole text.
        tokens: number of tokens of the whole text; n + m can differ, because the parts are encoded separately.
        notes: changes of the split that a short text needed, one line each.
        documents: the texts' records; empty for shards.
        sums: SHA-256, in hex, of the texts of the two parts; empty for shards.
    """

    train: Tensor | Shards
    validation: Tensor | Shards
    characters: int
    tokens: int
    notes: tuple[str, ...] = ()
    documents: tuple[DocumentRecord, ...] = ()
    sums: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of both lengths and of all tokens (of shards: of their checksums and spans)."""
        digest = hashlib.sha256(f"{len(self.train)} {len(self.validation)}".encode())
        for part in (self.train, self.validation):
            if isinstance(part, Shards):
                digest.update(part.identity.encode())
            else:
                digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def beginning(self, count: int) -> list[int]:
        """The first tokens, at most ``count``."""
        return first_tokens(self.train, count)


def first_tokens(part: Tensor | Shards, count: int) -> list[int]:
    """The first tokens of a part, at most ``count``."""
    count = min(count, len(part))
    found = part.rows([0], count)[0] if isinstance(part, Shards) else part[:count]
    return [int(token) for token in found]


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, allow_special: bool = False) -> Tensor:
    """All tokens, (n) int32; the end-of-text token, if the tokenizer has one, separates the texts."""
    ids: list[int] = []
    for number, text in enumerate(texts):
        if number and tokenizer.eot_id is not None:
            ids.append(tokenizer.eot_id)
        ids += tokenizer.encode(text, allow_special=allow_special)
    return torch.tensor(ids, dtype=torch.int32)


def make_corpus(texts: Sequence[str], tokenizer: Tokenizer, train_share: float, allow_special: bool = False) -> Corpus:
    """Encode and split. A part of under 2 tokens is not used, and a note says so.

    Raises:
        GptcliError: the text has under 2 tokens, so that no token can be predicted.
    """
    whole = encode_texts(texts, tokenizer, allow_special)
    if len(whole) < 2:
        raise GptcliError(
            f"The text has {len(whole)} token{'' if len(whole) == 1 else 's'}, but predicting takes at least 2.",
            "Give a longer text: a few pages is a good start.",
        )
    train_texts, validation_texts = split_characters(texts, train_share)
    train = encode_texts(train_texts, tokenizer, allow_special)
    validation = encode_texts(validation_texts, tokenizer, allow_special)
    notes = []
    if len(train) < 2:
        train, validation = whole, whole[:0]
        notes.append("The text is too short to split: all of it is trained on, and there is no validation loss.")
    elif len(validation) < 2:
        validation = validation[:0]
        notes.append("No text is left to validate on: the run has no validation loss.")
    return Corpus(train, validation, sum(len(text) for text in texts), len(whole), tuple(notes))


def open_prepared(folder: Path, train_share: float) -> Corpus:
    """A folder that gptcli prepare wrote, memory-mapped: only corpus.json and the shards' headers are read.

    The first ``train_share`` of the tokens is for training, the rest for validation; no token of the part that a BPE
    vocabulary was trained on is for validation.

    Raises:
        GptcliError: the folder is unfinished or damaged, or has under 2 tokens.
    """
    whole = token_shards.open_shards(folder)
    if len(whole) < 2:
        raise GptcliError(f"{folder} has {len(whole)} tokens, but predicting takes at least 2.", "Give a longer text.")
    cut = int(train_share * len(whole))
    notes = []
    counted = _counted_for_vocabulary(folder, whole)
    if counted > cut:
        if train_share < token_shards.read_manifest(folder)["settings"]["train_share"]:
            notes.append("The vocabulary was trained on a part of the text that the run now validates on.")
        else:
            cut = counted
    if cut < 2:
        cut = len(whole)
        notes.append("The text is too short to split: all of it is trained on, and there is no validation loss.")
    elif len(whole) - cut < 2:
        cut = len(whole)
        notes.append("No text is left to validate on: the run has no validation loss.")
    characters = token_shards.read_manifest(folder)["totals"]["characters"]
    train, validation = whole.part(0, cut), whole.part(cut, len(whole))
    return Corpus(train, validation, characters, len(whole), tuple(notes))


def _counted_for_vocabulary(folder: Path, whole: Shards) -> int:
    """The number of the first tokens whose text a BPE vocabulary was trained on; 0 for another tokenizer."""
    manifest = token_shards.read_manifest(folder)
    share = manifest["settings"].get("train_share")
    if share is None:
        return 0
    tokenizer = BPETokenizer.load(folder)
    return tokens_of_first(whole.parts, tokenizer, int(share * manifest["totals"]["characters"]))


class Windows:
    """Windows of T consecutive tokens, one every ``stride`` tokens; the targets are the inputs shifted by one token.

    Args:
        tokens: (n) integer tokens, n ≥ 2, in memory or in shards.
        context_length: T; reduced to n - 1 where there are fewer tokens.
        stride: distance between the starts of two windows, in tokens.
    """

    def __init__(self, tokens: Tensor | Shards, context_length: int, stride: int) -> None:
        self.tokens = tokens
        self.context_length = min(context_length, len(tokens) - 1)
        self.stride = stride

    def __len__(self) -> int:
        # The course's loader counts the same: every start whose T targets all lie within the tokens.
        return (len(self.tokens) - self.context_length - 1) // self.stride + 1

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows ``numbers``, each (B, T) int64."""
        if isinstance(self.tokens, Shards):
            rows = torch.from_numpy(self.tokens.rows([n * self.stride for n in numbers], self.context_length + 1))
            return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        starts = torch.tensor(numbers)[:, None] * self.stride  # (B, 1)
        inputs = starts + torch.arange(self.context_length)  # (B, T)
        return self.tokens[inputs].long(), self.tokens[inputs + 1].long()

    def step(self, numbers: Sequence[int], share: slice) -> tuple[Tensor, Tensor, None]:
        """Inputs and targets of one process's ``share`` of a step's windows, which all weigh the same."""
        return *self.batch(numbers[share]), None

    def weight(self, targets: Tensor) -> float:
        """The number of targets, in windows."""
        return targets.numel() / self.context_length

    def rest(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and targets (1, R) int64 of the R < T tokens behind the last of adjacent windows; None if R is 0."""
        first, end = len(self) * self.stride, len(self.tokens) - 1
        if first >= end:
            return None
        if isinstance(self.tokens, Shards):
            row = torch.from_numpy(self.tokens.rows([first], end + 1 - first))
        else:
            row = self.tokens[first : end + 1].long()[None]
        return row[:, :-1].contiguous(), row[:, 1:].contiguous()

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """The numbers of all windows, in an order that depends only on (seed, epoch)."""
        if isinstance(self.tokens, Shards):
            return Permutation(len(self), seed, epoch)
        return shuffled(len(self), seed, epoch)


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of ``count`` windows in an epoch, which depends only on (seed, epoch)."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator).tolist()


class Permutation(Sequence[int]):
    """``0 … count - 1`` in a pseudorandom order; each entry is computed from (seed, epoch, place), none is stored.

    A Feistel network (Luby and Rackoff, 1988) permutes 0 … 4ᵏ - 1, where 4ᵏ is the smallest power of four (k ≥ 1) that
    is at least ``count``. It is applied again to results of ``count`` or more (cycle walking, Black and Rogaway, 2002).
    """

    ROUNDS = 6

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        self._count = count
        self._half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        key = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
        self._keys = np.frombuffer(key + hashlib.sha256(key).digest(), "<u8")[: self.ROUNDS]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return self._at(np.arange(*place.indices(self._count), dtype=np.uint64))
        return self._at(np.array([range(self._count)[place]], np.uint64))[0]

    def _at(self, places: NDArray[np.uint64]) -> list[int]:
        values = self._shuffle(places)
        while (outside := values >= self._count).any():
            values[outside] = self._shuffle(values[outside])
        found: list[int] = values.tolist()
        return found

    def _shuffle(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return left << self._half | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al., 2014): each bit of the value affects every bit of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
