"""Decay groups, the optimizer, and the learning rate of every step."""

import math

import torch
from torch import nn

from gptcli.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused; weight decay on matrices only, not on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


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
