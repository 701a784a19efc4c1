"""Pairs of a preferred answer and a rejected one, to learn preferences from."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.data.examples import Example, Examples


class Pairs:
    """Pairs of answers to the same prompt as `Batches`; a step's parts never divide a pair.

    Args:
        pairs: at least one (chosen, rejected).
        batch_size: pairs a step.
        first: the number of the first pair among all of a run's.
    """

    def __init__(self, pairs: Sequence[tuple[Example, Example]], batch_size: int, first: int = 0) -> None:
        self.pairs, self.first = list(pairs), first
        self._all = Examples([example for pair in pairs for example in pair], 2 * batch_size)
        self._longer = Examples([max(pair, key=lambda each: len(each.ids)) for pair in pairs], batch_size)
        self.batch_size, self.context_length = self._longer.batch_size, self._longer.context_length

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
