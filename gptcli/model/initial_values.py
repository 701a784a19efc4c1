"""The values that a new model begins with, drawn one tensor at a time, so that shards need no whole model."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gptcli.config.recipe import Init


def initial_values(model: nn.Module, n_layers: int, init: Init) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and initial values by the scheme ``init`` (see `GPTModel`).

    Each value is in the memory of the one before, on the default device; ``model`` may be on the meta device. Torch's
    global generator decides the values, in the order of ``model``'s modules.
    """
    memory = torch.empty(max(parameter.numel() for parameter in model.parameters()))

    def of(shape: Sequence[int]) -> Tensor:
        return memory[: math.prod(shape)].view(*shape)

    residual_std = 0.02 / math.sqrt(2 * n_layers)
    for prefix, module in model.named_modules():
        if not isinstance(getattr(module, "weight", None), nn.Parameter):
            continue
        is_uniform = init == "course" and not isinstance(module, nn.LayerNorm | nn.Embedding)
        bound = 1 / math.sqrt(module.weight.size(1 if isinstance(module, nn.Linear) else 0))  # 1 / √in
        if isinstance(module, nn.LayerNorm):
            yield f"{prefix}.weight", of(module.weight.shape).fill_(1.0)
        elif is_uniform and not isinstance(module, nn.Linear):  # drawn (out, in): a seed gives the course's weights
            yield f"{prefix}.weight", of(module.weight.shape[::-1]).uniform_(-bound, bound).T
        elif is_uniform:
            yield f"{prefix}.weight", of(module.weight.shape).uniform_(-bound, bound)
        else:
            std = 1.0 if init == "course" else residual_std if prefix.endswith("c_proj") else 0.02
            yield f"{prefix}.weight", of(module.weight.shape).normal_(0.0, std)
        if getattr(module, "bias", None) is not None:
            bias = of(module.bias.shape)
            yield f"{prefix}.bias", bias.uniform_(-bound, bound) if is_uniform else bias.zero_()
