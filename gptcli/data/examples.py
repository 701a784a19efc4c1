"""Separate examples to fine-tune on: each is read alone, and only some of its positions have a target."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gptcli.data.dataset import shuffled
from gptcli.data.text_record import DocumentRecord
from gptcli.model.loss import IGNORED, counted

POOL = 32  # batches whose examples are sorted by length together: more would pad less, and repeat the same neighbours


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        ids: T token ids, the model's input.
        targets: T ids, what is predicted at each position, or `IGNORED`; at least one is an id. For a language model
            they are the following tokens, for a classifier the class at the last position.
    """

    ids: Sequence[int]
    targets: Sequence[int]


class Examples:
    """Examples as `Batches`: those of a batch are of similar length, and padded on the right.

    A causal model never sees the padding, and padding has no target, so a batch gives the same losses as its examples
    one by one.

    Args:
        examples: at least one.
        batch_size: how many a step has; decides which ones `order` puts next to each other.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        self.examples, self.batch_size = list(examples), min(batch_size, len(examples))
        self.lengths = [len(example.ids) for example in self.examples]
        self.context_length = max(self.lengths)
        self.counts = [sum(target != IGNORED for target in example.targets) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        """Tokens of all examples, without padding."""
        return sum(self.lengths)

    @property
    def identity(self) -> bytes:
        """SHA-256 of all ids and targets."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(np.array([len(example.ids), *example.ids, *example.targets], "<i8").tobytes())
        return digest.digest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """All numbers: batches in random order, each of examples of similar length."""
        numbers, size = shuffled(len(self), seed, epoch), self.batch_size
        whole = len(numbers) // size * size
        batches = []
        for start in range(0, whole, POOL * size):
            pool = sorted(numbers[start : min(start + POOL * size, whole)], key=self.lengths.__getitem__)
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        mixed = [batches[number] for number in shuffled(len(batches), seed, -epoch - 1)]
        return [number for batch in mixed for number in batch] + numbers[whole:]

    def by_length(self) -> list[int]:
        """All numbers from the shortest example to the longest, for evaluations."""
        return sorted(range(len(self)), key=self.lengths.__getitem__)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``numbers``, (B, T) int64 with T the longest; padding has id 0 and no target."""
        return self.padded(numbers, max(self.lengths[number] for number in numbers))

    def rest(self) -> None:
        """There is nothing between examples."""

    def weight(self, targets: Tensor) -> float:
        """The number of targets."""
        return float(counted(targets))

    def step(self, numbers: Sequence[int], share: slice) -> tuple[Tensor, Tensor, float]:
        """As `Batches.step`. All processes pad to the same length, on which dropout's masks depend."""
        inputs, targets = self.padded(numbers[share], max(self.lengths[number] for number in numbers))
        return inputs, targets, float(sum(self.counts[number] for number in numbers))

    def padded(self, numbers: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``numbers``, (B, length) int64."""
        inputs = torch.zeros(len(numbers), length, dtype=torch.int64)
        targets = torch.full((len(numbers), length), IGNORED, dtype=torch.int64)
        for row, number in enumerate(numbers):
            example = self.examples[number]
            inputs[row, : len(example.ids)] = torch.tensor(example.ids)
            targets[row, : len(example.ids)] = torch.tensor(example.targets)
        return inputs, targets


class Pairs:
    """Pairs of answers to the same prompt as `Batches`; a step's parts never divide a pair.

    A pair takes the memory of one example as long as both answers: that is its ``context_length``.

    Args:
        pairs: at least one (chosen, rejected).
        batch_size: pairs a step.
        first: the number of the first pair among all of a run's.
    """

    def __init__(self, pairs: Sequence[tuple[Example, Example]], batch_size: int, first: int = 0) -> None:
        self.pairs, self.first = list(pairs), first
        self._all = Examples([example for pair in pairs for example in pair], 2 * batch_size)
        self._longer = Examples([max(pair, key=lambda each: len(each.ids)) for pair in pairs], batch_size)
        self.batch_size, self.context_length = self._longer.batch_size, 2 * self._longer.context_length

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def tokens(self) -> int:
        """Tokens of all answers with their prompts, without padding."""
        return self._all.tokens

    @property
    def identity(self) -> bytes:
        """SHA-256 of all ids and targets."""
        return hashlib.sha256(b"pairs" + self._all.identity).digest()

    @property
    def examples(self) -> list[Example]:
        """The chosen answers."""
        return [chosen for chosen, _ in self.pairs]

    def order(self, seed: int, epoch: int) -> list[int]:
        """As `Examples.order`."""
        return self._longer.order(seed, epoch)

    def by_length(self) -> list[int]:
        """As `Examples.by_length`."""
        return self._longer.by_length()

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of pairs (P, 2, T) ids and (P, 2, T + 1) targets; the last column of the targets is the pair's number."""
        return self._padded(numbers, max(self._longer.lengths[number] for number in numbers))

    def rest(self) -> None:
        """There is nothing between pairs."""

    def weight(self, targets: Tensor) -> float:
        """The number of pairs."""
        return float(len(targets))

    def step(self, numbers: Sequence[int], share: slice) -> tuple[Tensor, Tensor, None]:
        """As `Batches.step`: all pairs weigh the same."""
        return *self._padded(numbers[share], max(self._longer.lengths[number] for number in numbers)), None

    def _padded(self, numbers: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        both = [2 * number + side for number in numbers for side in (0, 1)]
        inputs, targets = self._all.padded(both, length)
        marks = torch.tensor(numbers)[:, None, None].expand(-1, 2, 1) + self.first
        return inputs.view(-1, 2, length), torch.cat((targets.view(-1, 2, length), marks), dim=2)


@dataclass(frozen=True)
class ExampleSet:
    """What a run fine-tunes on; it takes the place of a `Corpus`.

    Attributes:
        train, validation: the examples; no validation where there are too few.
        characters: of all examples as they were rendered.
        notes: what was cut or left out, one line each.
        documents: the files' records.
        label_weights: of a classifier's labels in the loss; empty where all weigh the same.
        prompt: of an example, as a user would type it; empty for running text.
        beta: of pairs, how strongly the model is held to the one that training began with; None for other examples.
        reference: of each pair, the validation's after the training's, log p(chosen) - log p(rejected) by that model.
    """

    train: Examples | Pairs
    validation: Examples | Pairs | None
    characters: int
    notes: tuple[str, ...] = ()
    documents: tuple[DocumentRecord, ...] = ()
    label_weights: tuple[float, ...] = ()
    prompt: str = ""
    beta: float | None = None
    reference: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return self.train.tokens + (self.validation.tokens if self.validation else 0)

    @property
    def sums(self) -> tuple[str, str]:
        """SHA-256, in hex, of the two parts."""
        parts = (self.train, self.validation)
        train, validation = (hashlib.sha256(part.identity if part else b"").hexdigest() for part in parts)
        return train, validation

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all examples and of their split."""
        return hashlib.sha256(" ".join(self.sums).encode()).hexdigest()

    def beginning(self, count: int) -> list[int]:
        """The first tokens of the first example, at most ``count``."""
        return list(self.train.examples[0].ids[:count])
