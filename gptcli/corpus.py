"""Texts -> tokens -> batches, each a function of (seed, epoch, position), so that any place can be found again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Tokens to learn from and tokens to be judged by.

    Attributes:
        train: (n) int32.
        validation: (m) int32; empty where the text has no part to spare.
        characters: of the whole text.
        tokens: of the whole text; the cut between the parts may have made one token two.
        notes: what had to be changed to make the text fit, a line each.
    """

    train: Tensor
    validation: Tensor
    characters: int
    tokens: int
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all tokens and where they are split."""
        digest = hashlib.sha256(f"{len(self.train)} {len(self.validation)}".encode())
        for part in (self.train, self.validation):
            digest.update(part.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def split_characters(texts: Sequence[str], train_share: float) -> tuple[list[str], list[str]]:
    """The first ``train_share`` of all characters, and the rest; a text on the border is cut there."""
    left = int(train_share * sum(len(text) for text in texts))
    train, validation = [], []
    for text in texts:
        head, tail = text[:left], text[left:]
        left -= len(head)
        train += [head] if head else []
        validation += [tail] if tail else []
    return train, validation


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, allow_special: bool = False) -> Tensor:
    """One run of tokens (n) int32, texts separated by end of text where the tokenizer has one."""
    ids: list[int] = []
    for number, text in enumerate(texts):
        if number and tokenizer.eot_id is not None:
            ids.append(tokenizer.eot_id)
        ids += tokenizer.encode(text, allow_special=allow_special)
    return torch.tensor(ids, dtype=torch.int32)


def make_corpus(texts: Sequence[str], tokenizer: Tokenizer, train_share: float, allow_special: bool = False) -> Corpus:
    """Encode and split. A part too small to use is given up, with a note.

    Raises:
        GptcliError: under 2 tokens in all, so that there is nothing to predict.
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
        notes.append("The text is too short to split: all of it trains, nothing validates.")
    elif len(validation) < 2:
        validation = validation[:0]
        notes.append("There is no text left to validate on: the run goes without a validation loss.")
    return Corpus(train, validation, sum(len(text) for text in texts), len(whole), tuple(notes))


class Windows:
    """Overlapping or touching stretches of a token run, each with its targets one token further on.

    Args:
        tokens: (n) integer tokens, n ≥ 2.
        context_length: T; shortened to n - 1 where the run is shorter.
        stride: from one window's start to the next's.
    """

    def __init__(self, tokens: Tensor, context_length: int, stride: int) -> None:
        self.tokens = tokens
        self.context_length = min(context_length, len(tokens) - 1)
        self.stride = stride

    def __len__(self) -> int:
        # As the course's loader counts: every start whose targets still lie within the text.
        return (len(self.tokens) - self.context_length - 1) // self.stride + 1

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the windows ``numbers``, each (B, T) int64."""
        starts = torch.tensor(numbers)[:, None] * self.stride  # (B, 1)
        inputs = starts + torch.arange(self.context_length)  # (B, T)
        return self.tokens[inputs].long(), self.tokens[inputs + 1].long()


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of ``count`` windows in an epoch: a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator).tolist()
