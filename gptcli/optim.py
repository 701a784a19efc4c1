"""Decay groups, the optimizers by name, and the learning rate of every step."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.config import TrainConfig
from gptcli.device import whole

MUON_MOMENTUM = 0.95


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizer called ``config.optimizer``, with weight decay on matrices only, not on biases and norms.

    - adamw: AdamW (Loshchilov & Hutter, 2019), fused.
    - adam: Adam (Kingma & Ba, 2015), fused; its weight decay is part of the gradient.
    - sgd: gradient descent with momentum ``beta1``, fused.
    - adafactor: Adafactor (Shazeer & Stern, 2018): second moments by row and column, so almost no memory.
    - muon: Muon (Jordan et al., 2024) for the matrices inside the blocks, its steps scaled to AdamW's size (Liu et
      al., 2025), so that one rate serves both; AdamW for embeddings, head, biases and norms.

    Returns:
        one torch optimizer, or two that share the work.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate, betas = config.learning_rate, (config.beta1, config.beta2)
    if config.optimizer == "muon":
        inside = [p for name, p in named if ".h." in f".{name}" and p.dim() == 2]
        chosen = {id(p) for p in inside}
        rest = _decay_groups([p for _, p in named if id(p) not in chosen], config.weight_decay)
        muon = torch.optim.Muon(
            inside, lr=rate, weight_decay=config.weight_decay, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, torch.optim.AdamW(rest, lr=rate, betas=betas, fused=True)]
    groups = _decay_groups([p for _, p in named], config.weight_decay)
    if config.optimizer == "adam":
        return [torch.optim.Adam(groups, lr=rate, betas=betas, fused=True)]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(groups, lr=rate, momentum=config.beta1, fused=True)]
    if config.optimizer == "adafactor":
        return [torch.optim.Adafactor(groups, lr=rate)]
    return [torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)]


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Everything the optimizers remember, as "parameter/field": whole tensors, on the CPU."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    found = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for field, value in state.items():
                if value is not None:
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                    found[f"{names[parameter]}/{field}"] = whole(tensor).detach().cpu()
    return found


def load_state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Make the optimizers remember ``tensors``, as `state_tensors` gave them, and nothing else."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        by_parameter.setdefault(name, {})[field] = tensor
    for optimizer in optimizers:
        saved = optimizer.state_dict()
        saved["state"] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            fields = by_parameter.get(names[parameter])
            if fields is None:
                continue
            # Copies, which torch aligns: a mapped file would change the order of sums, and must stay free to go.
            state = {field: tensor.clone() for field, tensor in fields.items()}
            if isinstance(parameter, DTensor):
                for field, tensor in state.items():
                    if tensor.dim() > 0:
                        state[field] = distribute_tensor(
                            tensor.to(parameter.device), parameter.device_mesh, parameter.placements
                        )
            saved["state"][index] = state
        optimizer.load_state_dict(saved)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of ``step`` (from 0) of ``total_steps``: a linear warm-up, then constant, cosine or linear decay.

    The decay ends on ``min_learning_rate``, a tenth of the peak unless given.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    lowest = peak / 10 if config.min_learning_rate is None else config.min_learning_rate
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return lowest + (peak - lowest) * share
