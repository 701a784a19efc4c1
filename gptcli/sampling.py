"""Logits -> distribution -> token: the one definition that every way of generating uses. Batched and pure.

It is written for torch tensors and numpy arrays alike, in the functions that both libraries have: a model on a GPU
keeps its logits there, and generating on the CPU needs no torch. An `Array` is either; what goes in comes out.
"""

from typing import Any

import numpy as np

from gptcli.config import SamplingConfig

Array = Any
BLOCK = 256  # probabilities that are summed before one is drawn


def _library(array: Array) -> Any:
    """numpy, or torch if that is what ``array`` is of."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def distribution(logits: Array, config: SamplingConfig, seen: Array | None = None) -> Array:
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
    xp = _library(logits)
    scores = xp.asarray(logits, dtype=xp.float32)
    if config.repetition_penalty != 1.0 and seen is not None:
        scores = penalise_repeats(scores, seen, config.repetition_penalty)
    if config.temperature == 0.0:
        certain = xp.zeros_like(scores)
        certain[_rows(scores)[:, 0], scores.argmax(-1)] = 1.0
        return certain
    # The largest logit goes to 0 first, so that a very small temperature cannot overflow; float32 has none below 1e-38.
    scores = (scores - xp.amax(scores, -1)[:, None]) / max(config.temperature, 1e-30)
    if config.top_k is not None:
        scores = keep_top_k(scores, config.top_k)
    if config.top_p is not None:
        scores = keep_top_p(scores, config.top_p)
    if config.min_p is not None:
        scores = keep_min_p(scores, config.min_p)
    return _softmax(scores)


def penalise_repeats(scores: Array, seen: Array, penalty: float) -> Array:
    """Divide positive and multiply negative logits of ``seen`` tokens (B, S) by ``penalty`` (Keskar et al., 2019)."""
    xp = _library(scores)
    of_seen = scores[_rows(scores), seen]
    changed = scores + 0.0
    changed[_rows(scores), seen] = xp.where(of_seen > 0, of_seen / penalty, of_seen * penalty)
    return changed


def keep_top_k(scores: Array, top_k: int) -> Array:
    """-inf everywhere but at the ``top_k`` largest scores (B, V); equals of the smallest kept one stay too."""
    xp, count = _library(scores), min(top_k, scores.shape[-1])
    if xp is np:
        smallest_kept = np.partition(scores, -count, axis=-1)[:, -count, None]
    else:
        smallest_kept = scores.topk(count).values[:, -1:]
    return xp.where(scores < smallest_kept, -xp.inf, scores)


def keep_top_p(scores: Array, top_p: float) -> Array:
    """-inf but for the fewest tokens whose probabilities add up to ``top_p`` (Holtzman et al., 2020); (B, V)."""
    xp = _library(scores)
    order = likeliest_first(scores)
    probabilities = _softmax(scores)[_rows(scores), order]
    drop_ordered = probabilities.cumsum(-1) - probabilities >= top_p
    drop_ordered[:, 0] = False
    drop = xp.zeros_like(drop_ordered)
    drop[_rows(scores), order] = drop_ordered
    return xp.where(drop, -xp.inf, scores)


def keep_min_p(scores: Array, min_p: float) -> Array:
    """-inf where a token is less than ``min_p`` times as likely as the likeliest (Nguyen et al., 2024); (B, V)."""
    xp = _library(scores)
    probabilities = _softmax(scores)
    return xp.where(probabilities < min_p * xp.amax(probabilities, -1)[:, None], -xp.inf, scores)


def contrast_layers(final: Array, early: Array, least: float = 0.1) -> Array:
    """log q_N - log q_M over the tokens whose q_N is at least ``least`` of the largest, -inf elsewhere.

    What a model's last layer knows beyond an early one, as the course has it (after Chuang et al., "DoLa", 2023).

    Args:
        final: (B, V), the model's logits; q_N is their softmax.
        early: (B, V), the logits that the final norm and the head make of layer M; q_M is their softmax.
        least: which tokens may be chosen at all.

    Returns:
        (B, V) float32 scores, logits for `distribution`.
    """
    xp = _library(final)
    final, early = xp.asarray(final, dtype=xp.float32), xp.asarray(early, dtype=xp.float32)
    plausible = final >= xp.amax(final, -1)[:, None] + float(np.log(least))
    return xp.where(plausible, _log_softmax(final) - _log_softmax(early), -xp.inf)


def draw(probabilities: Array, uniforms: Array) -> Array:
    """Tokens by inverting the cumulative distribution: one uniform number a row, the same on every device.

    Args:
        probabilities: (B, V) float32, rows sum to 1.
        uniforms: (B) float64 in [0, 1).

    Returns:
        (B) int64. A token with probability 0 is never drawn.
    """
    xp = _library(probabilities)
    if xp is not np and probabilities.device.type == "mps":  # Apple's GPUs have no float64
        probabilities = probabilities.cpu()
    rows, whole = _rows(probabilities)[:, 0], probabilities.shape[-1] // BLOCK * BLOCK
    # First the block, then the token in it: sums over blocks are quick, running sums over a whole vocabulary are not.
    blocks = probabilities[:, :whole].reshape(len(rows), -1, BLOCK).sum(-1, dtype=xp.float64)
    rest = probabilities[:, whole:].sum(-1, dtype=xp.float64)[:, None]
    sums = (xp.concatenate if xp is np else xp.cat)((blocks, rest), -1).cumsum(-1)
    targets = like(probabilities, uniforms) * sums[:, -1]
    block = _passed(sums, targets)
    targets = targets - xp.where(block > 0, sums[rows, block - 1], 0.0)
    places = block[:, None] * BLOCK + like(probabilities, range(BLOCK))
    outside = places >= probabilities.shape[-1]
    inside = xp.where(outside, 0.0, probabilities[rows[:, None], xp.where(outside, 0, places)])
    return block * BLOCK + _passed(inside.cumsum(-1, dtype=xp.float64), targets)


def _passed(sums: Array, targets: Array) -> Array:
    """How many of the running ``sums`` (B, N) each target (B) has passed, at most to the last that adds something."""
    passed, last = (sums <= targets[:, None]).sum(-1), sums.argmax(-1)
    return _library(sums).where(passed < last, passed, last)


def greedy(logits: Array, config: SamplingConfig, seen: Array | None = None) -> Array:
    """(B) int64: the only tokens that `distribution` leaves possible at temperature 0; arguments as there."""
    if config.repetition_penalty != 1.0 and seen is not None:
        logits = penalise_repeats(logits, seen, config.repetition_penalty)
    if isinstance(logits, np.ndarray):  # row by row, which numpy does four times as fast as along the axis
        return np.array([row.argmax() for row in logits])
    return logits.argmax(-1)


def likeliest(scores: Array) -> tuple[int, float]:
    """The likeliest token by scores (1, V), the first of equals, and how far it is ahead of the next; changes them."""
    best = int(scores[0].argmax())
    score = float(scores[0, best])
    scores[0, best] = -float("inf")
    return best, score - float(scores[0].max())


def likeliest_first(scores: Array) -> Array:
    """(B, V) int64: the places of the scores (B, V) from the largest down, equals in their own order."""
    xp = _library(scores)
    return np.argsort(-scores, axis=-1, kind="stable") if xp is np else xp.argsort(-scores, dim=-1, stable=True)


def like(array: Array, values: Any) -> Array:
    """``values`` (numbers in any nesting, or an array) in the library and on the device of ``array``."""
    if isinstance(array, np.ndarray):
        return np.asarray(values)
    import torch

    return torch.as_tensor(values, device=array.device)


def _rows(scores: Array) -> Array:
    """(B, 1): the number of each row, to index with."""
    xp = _library(scores)
    numbers = xp.arange(len(scores)) if xp is np else xp.arange(len(scores), device=scores.device)
    return numbers[:, None]


def _softmax(scores: Array) -> Array:
    xp = _library(scores)
    exponentials = xp.exp(scores - xp.amax(scores, -1)[:, None])
    return exponentials / exponentials.sum(-1)[:, None]


def _log_softmax(scores: Array) -> Array:
    xp = _library(scores)
    shifted = scores - xp.amax(scores, -1)[:, None]
    return shifted - xp.log(xp.exp(shifted).sum(-1))[:, None]
