"""What the trainer reads its batches from: windows of running text (`Windows`) or separate examples (`Examples`)."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Batches(Protocol):
    """Numbered windows or examples. Which of them a batch holds is a function of (seed, epoch, position).

    Attributes:
        context_length: the most tokens of one of them.
    """

    context_length: int

    def __len__(self) -> int: ...

    def order(self, seed: int, epoch: int) -> Sequence[int]:
        """The numbers of all, in an order that depends only on (seed, epoch)."""

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of ``numbers``, each (B, T) int64."""

    def rest(self) -> tuple[Tensor, Tensor] | None:
        """Inputs and targets (1, R) of the tokens behind the last window; None where there are none."""

    def weight(self, targets: Tensor) -> float:
        """How much a batch with these targets counts in a mean of losses."""

    def step(self, numbers: Sequence[int], share: slice) -> tuple[Tensor, Tensor, float | None]:
        """One process's part of a step.

        Args:
            numbers: of the whole step.
            share: the part of them that the process computes.

        Returns:
            inputs and targets (B, T) of its part, and the whole step's `weight`; None where all windows weigh the same.
        """
