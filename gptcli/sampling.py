"""Logits -> distribution -> token: the one definition that every way of generating uses. Batched and pure."""

import torch
from torch import Tensor

from gptcli.config import SamplingConfig


def distribution(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The probabilities that the next token is drawn from.

    In this order, as transformers has it: repetition penalty, temperature, top-k, top-p, min-p. Temperature 0 puts
    everything on the likeliest token (the first of equals).

    Args:
        logits: (B, V), any float dtype.
        config: what to apply.
        seen: (B, S) int64, the tokens that the repetition penalty is about; None for none.

    Returns:
        (B, V) float32, rows sum to 1.
    """
    scores = logits.float()
    if config.repetition_penalty != 1.0 and seen is not None:
        scores = penalise_repeats(scores, seen, config.repetition_penalty)
    if config.temperature == 0.0:
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
    # The largest logit goes to 0 first, so that even the smallest temperature cannot overflow.
    temperature = max(config.temperature, torch.finfo(torch.float32).tiny)
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p is not None:
        scores = keep_min_p(scores, config.min_p)
    return scores.softmax(dim=-1)


def penalise_repeats(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of ``seen`` tokens (B, S) by ``penalty`` (Keskar et al., 2019)."""
    of_seen = scores.gather(-1, seen)
    return scores.scatter(-1, seen, torch.where(of_seen > 0, of_seen / penalty, of_seen * penalty))


def keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    """-inf everywhere but at the ``top_k`` largest scores (B, V); equals of the smallest kept one stay too."""
    smallest_kept = scores.topk(min(top_k, scores.size(-1)), dim=-1).values[..., -1:]
    return scores.masked_fill(scores < smallest_kept, -torch.inf)


def keep_top_p(scores: Tensor, top_p: float) -> Tensor:
    """-inf but for the fewest tokens whose probabilities add up to ``top_p`` (Holtzman et al., 2020); (B, V)."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    drop = (before >= top_p).scatter(-1, order, before >= top_p)
    drop.scatter_(-1, order[..., :1], False)
    return scores.masked_fill(drop, -torch.inf)


def keep_min_p(scores: Tensor, min_p: float) -> Tensor:
    """-inf where a token is less than ``min_p`` times as likely as the likeliest (Nguyen et al., 2024); (B, V)."""
    probabilities = scores.softmax(dim=-1)
    return scores.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens by inverting the cumulative distribution: one uniform number a row, the same on every device.

    Args:
        probabilities: (B, V) float32, rows sum to 1.
        uniforms: (B) float64 in [0, 1).

    Returns:
        (B) int64. A token with probability 0 is never drawn.
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    targets = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp_(max=probabilities.size(-1) - 1)
