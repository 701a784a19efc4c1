"""The compiled passes of a training step on the CPU, as functions of tensors.

`prepare` makes them ready for the whole process; until then, and for what they do not know, autograd.py does with
torch what they do: `passes` says which of the two. What dropout keeps is other random numbers on either way.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.kernels.cpu import openmp

WORTHWHILE = 2**18  # activations of a step
_prepared: "Passes | None" = None


class Passes:
    """Each function takes float32 tensors on the CPU, however they lie, and gives new ones."""

    def __init__(
        self, functions: dict[str, Any], cells: int, about: int, scratch_size: Callable[[int, int], int]
    ) -> None:
        self._functions, self._cells, self._about, self._scratch_size = functions, cells, about, scratch_size

    def gelu(self, x: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        """GELU in its tanh form, and its derivative at x."""
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x) if with_slope else None
        self._run("gelu", x, y, 0 if slope is None else slope, x.numel())
        return y, slope

    def dropout(self, x: Tensor, seed: int, rate: float) -> Tensor:
        """x with a share ``rate`` of its elements zeroed and the rest scaled to the same mean; its own backward."""
        x = x.contiguous()
        y = torch.empty_like(x)
        self._run("dropout", x, y, x.numel(), seed, *_dropped(rate))
        return y

    def attention(self, qkv: Tensor, n_heads: int, seed: int, rate: float, scale: float) -> tuple[Tensor, Tensor]:
        """dropout(softmax(scale Q Kᵀ + M)) V for qkv (B, T, 3C): (B, T, C), and statistics for the way back."""
        qkv = qkv.contiguous()
        batch, length, width = qkv.shape
        out, statistics = qkv.new_empty(batch, length, width // 3), qkv.new_empty(batch, n_heads, 2, length)
        self._attend("attend", qkv, out, statistics, n_heads, seed, rate, scale)
        return out, statistics

    def attention_backward(
        self, qkv: Tensor, out: Tensor, statistics: Tensor, grad: Tensor, seed: int, rate: float, scale: float
    ) -> Tensor:
        """dL/dqkv from dL/dout (B, T, C) and what `attention` took and gave."""
        qkv, grad = qkv.contiguous(), grad.contiguous()
        grad_qkv, n_heads = torch.empty_like(qkv), statistics.size(1)
        self._attend("attend_backward", qkv, out, statistics, n_heads, seed, rate, scale, grad, grad_qkv)
        return grad_qkv

    def _attend(
        self, name: str, qkv: Tensor, out: Tensor, statistics: Tensor, n_heads: int, seed: int, rate: float,
        scale: float, *more: Tensor,
    ) -> None:  # fmt: skip
        batch, length, width = out.shape
        size = width // n_heads
        floats = self._scratch_size(length, size)
        scratch = torch.empty(torch.get_num_threads(), floats)
        sizes, kept = (batch, n_heads, length, size, seed), _dropped(rate)
        self._run(name, qkv, out, statistics, scratch, *sizes, *kept, scale, floats, *more)

    def _run(self, name: str, *about: Tensor | int | float) -> None:
        order = np.zeros(self._cells, np.int64)
        for cell, value in enumerate(about, start=self._about):
            if isinstance(value, float):
                order.view(np.float64)[cell] = value
            else:
                order[cell] = value.data_ptr() if isinstance(value, Tensor) else value
        openmp.run(self._functions[name].address, order.ctypes.data)


def _dropped(rate: float) -> tuple[int, float]:
    """How many of 2³² hashes are dropped, and the factor that keeps the mean of what is left."""
    dropped = min(round(rate * 2**32), 2**32 - 1)
    return dropped, 2**32 / (2**32 - dropped)


def is_worthwhile(tokens: int, width: int) -> bool:
    """Whether a step of so many tokens, ``width`` channels each, is worth the second that `prepare` takes."""
    return tokens * width >= WORTHWHILE


def passes(x: Tensor) -> Passes | None:
    """The compiled passes, if they are prepared and know such tensors."""
    return _prepared if x.device.type == "cpu" and x.dtype == torch.float32 else None


def prepare(tell: Callable[[str], None] = lambda line: None) -> str | None:
    """Compile the passes, or fetch them from the user's cache: a second or two, once a process; ten once a machine.

    Args:
        tell: called with a line that says what takes a while.

    Returns:
        why that cannot be, or None; torch does it all then.
    """
    global _prepared
    if _prepared is None:
        try:
            from gptcli.kernels.cpu import compile_cache, train_attention, train_passes

            functions = compile_cache.training_passes(tell)
            _prepared = Passes(functions, train_passes.CELLS, train_passes.ABOUT, train_attention.scratch_size)
        except Exception as error:  # no numba for this Python, a CPU it does not know, a compiler bug
            return " ".join(str(error).split())[:200] or type(error).__name__
    return None
