"""A training step as one CUDA graph, for models whose kernels run shorter than the host takes to launch them."""

from collections.abc import Callable

import torch
from torch import Tensor

from gptcli.device import graphs

WARM_UP_STEPS = 3  # steps before the capture, in which libraries initialize and the optimizer allocates its state
HOST_BOUND = 5e13  # FLOPs of a step; in larger ones the gaps between kernels are a small share of the time


class StepGraph:
    """A captured step, replayed after new inputs and targets are copied into its buffers.

    Args:
        compute: (inputs, targets) -> (loss, gradient norm), scalars; forward, backward and update on the device.
        inputs, targets: (B, T) on the device; examples that determine the shapes.
    """

    def __init__(
        self, compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], inputs: Tensor, targets: Tensor
    ) -> None:
        self._inputs, self._targets = inputs.clone(), targets.clone()
        self._graph = torch.cuda.CUDAGraph()
        with graphs.capture(self._graph):
            self._found = compute(self._inputs, self._targets)

    def replay(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Run the step on ``inputs`` and ``targets``, on any device, of the captured shape; loss and gradient norm."""
        for place, tensor in ((self._inputs, inputs), (self._targets, targets)):
            place.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._found

    def fits(self, inputs: Tensor) -> bool:
        """Whether ``inputs`` have the captured shape."""
        return inputs.shape == self._inputs.shape
