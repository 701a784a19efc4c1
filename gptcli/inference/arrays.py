"""What numpy and torch call differently, for functions of arrays of either (`Array`)."""

from typing import Any

import numpy as np

Array = Any


def library(array: Array) -> Any:
    """The module numpy or torch, by the type of ``array``."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def like(array: Array, values: Any) -> Array:
    """``values`` (nested lists of numbers, or an array) in the library and on the device of ``array``."""
    if isinstance(array, np.ndarray):
        return np.asarray(values)
    import torch

    return torch.as_tensor(values, device=array.device)


def row_numbers(scores: Array) -> Array:
    """(B, 1) int64: the index of each row, for indexing together with column indices."""
    xp = library(scores)
    numbers = xp.arange(len(scores)) if xp is np else xp.arange(len(scores), device=scores.device)
    return numbers[:, None]


def softmax(scores: Array) -> Array:
    """The softmax of each row of scores (B, V)."""
    xp = library(scores)
    exponentials = xp.exp(scores - xp.amax(scores, -1)[:, None])
    return exponentials / exponentials.sum(-1)[:, None]


def log_softmax(scores: Array) -> Array:
    """The logarithm of the softmax of each row of scores (B, V)."""
    xp = library(scores)
    shifted = scores - xp.amax(scores, -1)[:, None]
    return shifted - xp.log(xp.exp(shifted).sum(-1))[:, None]


def likeliest_first(scores: Array) -> Array:
    """(B, V) int64: the indices that sort scores (B, V) from the largest to the smallest; a stable sort."""
    xp = library(scores)
    return np.argsort(-scores, axis=-1, kind="stable") if xp is np else xp.argsort(-scores, dim=-1, stable=True)
