"""The compiled kernels of a training step on the CPU, as functions of tensors.

`GPTModel.use` sets the kernels of a model. Without kernels a model computes the same functions with torch, dropout's
masks included; sums have another order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.kernels.cpu import onednn, openmp
from gptcli.kernels.cpu.numba_support import numba_reason

WORTHWHILE = 2**18  # tokens * channels of a step


class TrainKernels:
    """GELU, dropout and attention, on tensors that `accept` allows, of any strides; results are new tensors.

    Attributes:
        linear: x (rows, in), W (in, out), b -> x W + b by the library that suits the processor; None for torch's own.

    Args:
        functions: name -> kernel, a C function of a task's address (see train_passes.py).
        cells: number of int64 of a task.
        first_argument: index of a task's first argument.
        scratch_size: (length of a window, head size) -> float32 of scratch per thread.
    """

    def __init__(
        self, functions: dict[str, Any], cells: int, first_argument: int, scratch_size: Callable[[int, int], int]
    ) -> None:
        self._functions, self._cells, self._first_argument = functions, cells, first_argument
        self._scratch_size = scratch_size
        self.linear = onednn.chosen_linear()

    def accept(self, x: Tensor) -> bool:
        """Whether x is float32 on the CPU."""
        return x.device.type == "cpu" and x.dtype == torch.float32

    def gelu(self, x: Tensor, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        """GELU in its tanh form and, if ``with_slope``, its derivative at x."""
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x) if with_slope else None
        self._run("gelu", x, y, 0 if slope is None else slope, x.numel())
        return y, slope

    def dropout(self, x: Tensor, seeds: Tensor, dropped: int, factor: float) -> Tensor:
        """x (B, T, C) with ``dropped`` of 2³² elements zeroed and the others times ``factor``; also its backward pass.

        ``seeds`` (B) int64 decide which, as in the mask of model/dropout_mask.py.
        """
        x, seeds = x.contiguous(), seeds.contiguous()
        assert len(seeds) == len(x)
        y = torch.empty_like(x)
        self._run("dropout", x, y, x.size(0) * x.size(1), x.size(1), x.size(2), seeds, dropped, factor)
        return y

    def attention(
        self, qkv: Tensor, n_heads: int, seeds: Tensor, dropped: int, factor: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        """dropout(softmax(scale Q Kᵀ + M)) V for qkv (B, T, 3C): (B, T, C), and statistics for `attention_backward`.

        ``seeds``, ``dropped`` and ``factor`` are those of `dropout`.
        """
        qkv = qkv.contiguous()
        batch, length, width = qkv.shape
        out, statistics = qkv.new_empty(batch, length, width // 3), qkv.new_empty(batch, n_heads, 2, length)
        self._attend("attend", qkv, out, statistics, n_heads, seeds, dropped, factor, scale)
        return out, statistics

    def attention_backward(
        self, qkv: Tensor, out: Tensor, statistics: Tensor, grad: Tensor, seeds: Tensor, dropped: int, factor: float,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """dL/dqkv from dL/dout (B, T, C) and the arguments and results of `attention`."""
        qkv, grad = qkv.contiguous(), grad.contiguous()
        grad_qkv, n_heads = torch.empty_like(qkv), statistics.size(1)
        self._attend(
            "attend_backward", qkv, out, statistics, n_heads, seeds, dropped, factor, scale, grad, grad_qkv
        )  # fmt: skip
        return grad_qkv

    def _attend(
        self, name: str, qkv: Tensor, out: Tensor, statistics: Tensor, n_heads: int, seeds: Tensor, dropped: int,
        factor: float, scale: float, *more: Tensor,
    ) -> None:  # fmt: skip
        batch, length, width = out.shape
        size = width // n_heads
        assert len(seeds) == batch
        floats = self._scratch_size(length, size)
        scratch, seeds = torch.empty(torch.get_num_threads(), floats), seeds.contiguous()
        sizes, kept = (batch, n_heads, length, size), (seeds, dropped, factor)
        self._run(name, qkv, out, statistics, scratch, *sizes, *kept, scale, floats, *more)

    def _run(self, name: str, *arguments: Tensor | int | float) -> None:
        task = np.zeros(self._cells, np.int64)
        for cell, value in enumerate(arguments, start=self._first_argument):
            if isinstance(value, float):
                task.view(np.float64)[cell] = value
            else:
                task[cell] = value.data_ptr() if isinstance(value, Tensor) else value
        openmp.run(self._functions[name].address, task.ctypes.data)


def is_worthwhile(tokens: int, width: int) -> bool:
    """Whether ``tokens`` * ``width`` (channels) per step repays the second or two that `open_kernels` takes."""
    return tokens * width >= WORTHWHILE


def for_step(
    device: torch.device, precision: str, tokens: int, width: int, report: Callable[[str], None] = lambda line: None
) -> TrainKernels | None:
    """The kernels of a step of so many tokens; None where torch alone computes it.

    Args:
        device: of the model.
        precision: the name of the dtype of products; the kernels are for float32.
        tokens, width: of a step and of the model; small steps take no kernels.
        report: called with a line before a compilation, and on why there are no kernels.
    """
    if device.type != "cpu" or precision != "float32" or not is_worthwhile(tokens, width):
        return None
    kernels = open_kernels(report)
    if isinstance(kernels, str):
        report(f"Steps take a tenth longer: numba cannot compile here ({kernels}).")
        return None
    return kernels


def open_kernels(report: Callable[[str], None] = lambda line: None) -> TrainKernels | str:
    """Load the kernels from the user's cache in a second or two, or compile them in about ten seconds.

    Args:
        report: called with a line before a compilation.

    Returns:
        the kernels, or one line on why there are none: `numba_support.numba_reason`, or the error of a compilation.
    """
    reason = numba_reason()
    if reason is not None:
        return reason
    try:
        from gptcli.kernels.cpu import compile_cache, first_compilation, train_attention, train_passes

        reason = first_compilation.failure("training", report)
        if reason is not None:
            return reason
        functions = compile_cache.training_passes(report)
    except Exception as error:  # numba and LLVM raise many types; torch can compute instead
        return " ".join(str(error).split())[:200] or type(error).__name__
    return TrainKernels(functions, train_passes.CELLS, train_passes.ARGUMENTS, train_attention.scratch_size)
