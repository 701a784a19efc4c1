"""Linear layers of float32 training by oneDNN, on processors where that is faster than torch's own products.

torch brings two libraries for the CPU. Its products call MKL, which has no code for AMD's newer processors; oneDNN has
the same code for all that have AVX-512. Which one multiplies follows from the processor alone, never from a timing:
the same machine computes the same bytes. torch's operation is private and has no gradient, so it is probed for, and
stands inside an autograd.Function.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptcli.device import machine

# The first family of a vendor's processors on which oneDNN is faster. Zen 5 (26): blocks of GPT-2 small 4 x 256, 358
# tokens/s beside 250. Zen 4 (25): 1 to 6 percent, by which nothing is chosen.
FIRST_FAMILY = {"AuthenticAMD": 26}

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def suits(cpu_info: str) -> bool:
    """Whether oneDNN is the faster library on the processor that the text of /proc/cpuinfo describes."""
    about = dict(re.findall(r"^(vendor_id|cpu family|flags)\s*:\s*(.*)$", cpu_info, flags=re.MULTILINE))
    first = FIRST_FAMILY.get(about.get("vendor_id", ""))
    family = about.get("cpu family", "")
    return first is not None and family.isdigit() and int(family) >= first and "avx512f" in about["flags"].split()


@cache
def chosen_linear() -> Linear | None:
    """`linear` where the processor suits it and torch has the operation; else None, for torch's own products."""
    try:
        text = machine.CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another system than Linux
        return None
    return linear if suits(text) and is_there() else None


def is_there() -> bool:
    """Whether this torch has the operation, with the arguments that are given here."""
    try:
        found = _product(torch.eye(2), torch.ones(3, 2), torch.zeros(3))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(found.shape == (2, 3))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b with gradients: x (rows, in), W (in, out), b (out) or None; all float32 on the CPU."""
    apply: Any = _Linear.apply
    y: Tensor = apply(x, weight, bias)
    return y


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for W (out, in); each may be a transposed view."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad, weight) if needs_x else None,
            _product(x.t(), grad.t()) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )
