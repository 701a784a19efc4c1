"""A whole training step as one CUDA graph, for models whose kernels run for less time than it takes to launch them."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # libraries get ready, and the optimizer's state comes to be, outside of the graph
HOST_BOUND = 5e13  # FLOPs of a step; where it takes longer, the gaps between kernels hardly count


class StepGraph:
    """A captured step: replayed for new inputs and targets in the places of the first ones.

    Args:
        compute: (inputs, targets) -> (loss, gradient norm), scalars; forward, backward and update on the device.
        inputs, targets: (B, T) on the device; they only give the shapes.
    """

    def __init__(
        self, compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], inputs: Tensor, targets: Tensor
    ) -> None:
        self._inputs, self._targets = inputs.clone(), targets.clone()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = compute(self._inputs, self._targets)

    def replay(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The step for ``inputs`` and ``targets``, of the first ones' shape, on any device."""
        for place, tensor in ((self._inputs, inputs), (self._targets, targets)):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._found

    def fits(self, inputs: Tensor) -> bool:
        """Whether the graph is for such inputs."""
        return inputs.shape == self._inputs.shape
