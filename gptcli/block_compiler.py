"""torch.compile for a transformer block: one compilation serves all blocks of a model."""

from typing import Any

import torch
from torch import Tensor

from gptcli.gpu.triton_support import triton_reason

WORTHWHILE = 1e15  # FLOPs of a run: some seconds of a fast GPU, as long as compiling takes


def reason_not_to_compile(device: torch.device, flops: float) -> str | None:
    """Why a run of so many FLOPs on ``device`` should not compile its blocks unless asked to, or None.

    The answer hangs on the run and on what is installed, never on a clock.
    """
    if device.type != "cuda":
        return "only GPUs gain enough"
    if (reason := triton_reason(device)) is not None:
        return reason
    return "the run is too short to gain from it" if flops < WORTHWHILE else None


class CompiledBlocks:
    """Calls blocks through one compiled function, which takes the block as an argument.

    Only the first shape that training meets is compiled; evaluations, samples and a smaller last part of a step take
    the plain way, so that nothing is ever compiled twice.

    Attributes:
        proven: whether forward and backward pass have worked once.
    """

    def __init__(self) -> None:
        self._compiled: Any = torch.compile(_call, fullgraph=True, dynamic=False)
        self._shape: torch.Size | None = None
        self.proven = False

    def __call__(self, block: torch.nn.Module, x: Tensor) -> Tensor:
        """``block(x)``; x (B, T, C)."""
        if not (block.training and torch.is_grad_enabled()):
            return _call(block, x)
        self._shape = self._shape or x.shape
        y: Tensor = self._compiled(block, x) if x.shape == self._shape else _call(block, x)
        return y


def _call(block: torch.nn.Module, x: Tensor) -> Tensor:
    y: Tensor = block(x)
    return y
