"""The average of a run's weights over its newest steps, which is evaluated and kept in place of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TRAINED = "trained"  # in a snapshot's state: trained/h.0.attn.c_attn.weight


class WeightAverage:
    """The polynomial-decay average of the trained weights (Shamir & Zhang, 2013), 4 bytes a trained parameter.

    After step t (from 1) their average takes the newest weights with weight (η + 1) / (t + η); weights of an earlier
    step then count in proportion to about its number to the power of η. With n = t - 1 and η = 1 / share - 1 that is
    1 / (share · n + 1), as in a plain mean over the newest share of the steps, but no length of the run enters.

    Args:
        model: the one that is trained, not sharded; its parameters stay where they are.
        share: from 0 to 1; 0 for no average: every method then does nothing.

    Attributes:
        mean: the average by the names of the model's trained parameters, on its device.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad and share > 0}
        self.mean = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after ``step``, a number from 0; after step 0 they are the average."""
        if self.mean:
            newest = 1 / (self.share * step + 1)
            torch._foreach_lerp_(list(self.mean.values()), list(self._trained.values()), newest)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """A context in which the model has the average, and after which it has its trained weights, to the byte."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The trained weights, for a snapshot whose weights are the average."""
        return {f"{TRAINED}/{name}": parameter.detach() for name, parameter in self._trained.items()}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the average by the weights of a snapshot."""
        for name, mean in self.mean.items():
            mean.copy_(weights[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            held = parameter.clone()
            parameter.copy_(self.mean[name])  # in place: captured steps and kernels have its address
            self.mean[name].copy_(held)
