"""Low-rank adapters on a frozen model: LoRA (Hu et al., 2021)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptcli.config.lora import LoRAConfig
from gptcli.model.gpt import GPTModel, Linear
from gptcli.model.parameters import parameter_shapes
from gptcli.model.quantized import PackedLinear

ALSO_TRAINED = "score.weight"  # a classifier's head, which no base has


class _LowRankSum(torch.autograd.Function):
    """y = base(x) + scale (x Aᵀ) Bᵀ, without gradients of the base; no tensor of y's size exists beside y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: Linear | PackedLinear, scale: float) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = x @ a.T  # (rows, r)
        ctx.save_for_backward(x, a, b, low)
        ctx.base, ctx.scale = base, scale
        return _product(base, x).addmm_(low, b.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, a, b, low = ctx.saved_tensors
        grad_low = (grads[0] @ b).mul_(ctx.scale)
        grad_x = _input_gradient(ctx.base, grads[0]).addmm_(grad_low, a) if ctx.needs_input_grad[0] else None
        grad_a, grad_b = grad_low.T @ x, (grads[0].T @ low).mul_(ctx.scale)
        return grad_x, grad_a.float(), grad_b.float(), None, None


def _product(base: Linear | PackedLinear, x: Tensor) -> Tensor:
    if isinstance(base, PackedLinear):
        y: Tensor = base(x)
        return y
    weight = base.weight.to(x.dtype)
    return x @ weight if base.bias is None else torch.addmm(base.bias.to(x.dtype), x, weight)


def _input_gradient(base: Linear | PackedLinear, grad: Tensor) -> Tensor:
    return base.input_gradient(grad) if isinstance(base, PackedLinear) else grad @ base.weight.to(grad.dtype).T


class LoRALinear(nn.Module):
    """y = x W + b + scale (x Aᵀ) Bᵀ, where only A and B are trained.

    Args:
        base: the frozen layer x W + b.
        inputs, outputs: of W (in, out).
        config: the rank and the scale.
        generator: draws A; B is 0 at first, so that the layer begins as ``base``.

    Attributes:
        lora_A: (r, in) float32.
        lora_B: (out, r) float32.
    """

    def __init__(
        self, base: Linear | PackedLinear, inputs: int, outputs: int, config: LoRAConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale = base, config.scale
        bound = 1 / math.sqrt(inputs)  # PEFT's distribution
        self.lora_A = nn.Parameter(torch.empty(config.rank, inputs).uniform_(-bound, bound, generator=generator))
        self.lora_B = nn.Parameter(torch.zeros(outputs, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        rows, kind = x.reshape(-1, x.size(-1)), x.device.type
        if torch.is_autocast_enabled(kind):
            rows = rows.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            apply: Any = _LowRankSum.apply
            y: Tensor = apply(rows, self.lora_A, self.lora_B, self.base, self.scale)
        return y.view(*x.shape[:-1], -1)


def add_adapters(model: GPTModel, config: LoRAConfig, seed: int) -> None:
    """Freeze ``model`` and put a `LoRALinear` around each of its targets; a classifier's head stays trainable.

    Args:
        model: changed in place; on any device.
        config: which matrices, the rank and the scale.
        seed: of the A; the same numbers on every device.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == ALSO_TRAINED)
    generator = torch.Generator().manual_seed(seed)
    for name, shape in parameter_shapes(model.config).items():
        place = name.removesuffix(".weight")
        if place != name and place.endswith(config.targets):
            base: Any = model.get_submodule(place)
            layer = LoRALinear(base, shape[0], shape[1], config, generator)
            model.set_submodule(place, layer.to(model.device))


def is_adapted(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(isinstance(module, LoRALinear) for module in model.modules())
