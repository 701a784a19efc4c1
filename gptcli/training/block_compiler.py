"""torch.compile for a transformer block: one compilation serves all blocks of a model."""

from typing import Any

import torch
from torch import Tensor

from gptcli.kernels.gpu.triton_support import triton_reason
from gptcli.model.dropout import RANDOM, Seeds

WORTHWHILE = 1e15  # FLOPs of a run: a fast GPU computes them in some seconds, which is what compiling takes


def choose(asked: bool | None, device: torch.device, flops: float, processes: int = 1) -> tuple[bool, str | None]:
    """Whether to compile the blocks for a run of ``flops`` FLOPs, and a line to report to the user, or None.

    Where ``asked`` is None (not set), blocks are compiled for one GPU and a run of `WORTHWHILE` FLOPs or more. The
    result depends on the arguments and the installed packages, never on a measured time.
    """
    reason = _reason_not_to(device, flops, processes)
    if asked or (asked is None and reason is None):
        return True, "torch.compile fuses the blocks in the first step, which takes ten seconds or more."
    if asked is None and device.type == "cuda":
        return False, f"The blocks are not compiled: {reason}; the setting compile asks for it."
    return False, None


def _reason_not_to(device: torch.device, flops: float, processes: int) -> str | None:
    if device.type != "cuda":
        return "only GPUs gain enough"
    if processes > 1:
        return "several processes have not been tried with it"
    return triton_reason(device) or ("the run is too short to gain from it" if flops < WORTHWHILE else None)


class CompiledBlocks:
    """Calls blocks through one compiled function, which takes the block as an argument.

    Only the first shape of x in training is compiled; evaluations, samples and a smaller last part of a step run
    uncompiled, so that there is one compilation per session.

    Attributes:
        proven: whether one forward and backward pass has succeeded; `Stepper` sets it.
    """

    def __init__(self) -> None:
        self._compiled: Any = torch.compile(_call, fullgraph=True, dynamic=False)
        self._shape: torch.Size | None = None
        self.proven = False

    def __call__(self, block: torch.nn.Module, x: Tensor, seeds: Seeds = RANDOM) -> Tensor:
        """``block(x, seeds=seeds)``; x (B, T, C)."""
        if not (block.training and torch.is_grad_enabled()):
            return _call(block, x, seeds)
        self._shape = self._shape or x.shape
        y: Tensor = self._compiled(block, x, seeds) if x.shape == self._shape else _call(block, x, seeds)
        return y


def _call(block: torch.nn.Module, x: Tensor, seeds: Seeds) -> Tensor:
    y: Tensor = block(x, seeds=seeds)
    return y
