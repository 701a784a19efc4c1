"""Measures of attention weights: scores per head, names of clear roles, strongest links, rollout."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CLEAR = 0.5
EVEN = 0.95


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head, each (L, H) float32: means over all tokens but the first, which attends only to itself.

    Attributes:
        entropy: entropy of a row, in bits.
        evenness: entropy divided by that of a uniform row.
        distance: mean distance back to the attended tokens, in tokens.
        shares: attention weight on the first token, on the previous one, on the token itself, and on tokens that
            follow an earlier occurrence of the same token (induction: Olsson et al., 2022), by the name of the
            pattern. NaN where the text has no position with such a target.
        lifts: each share, rescaled so that uniform attention gives 0 and a share of 1 gives 1; NaN as in shares.
    """

    entropy: Tensor
    evenness: Tensor
    distance: Tensor
    shares: dict[str, Tensor]
    lifts: dict[str, Tensor]


FIRST, PREVIOUS, INDUCTION, ITSELF = "first token", "previous token", "induction", "itself"


def places(ids: Tensor) -> dict[str, Tensor]:
    """The targets of each attention pattern in ids (T): (T, T) bool masks, True at (from, to), to ≤ from."""
    length = ids.size(0)
    position = torch.arange(length)
    back = position[:, None] - position[None, :]  # (T, T), distance back in tokens
    followed = torch.zeros(length, length, dtype=torch.bool)
    followed[:, 1:] = ids[:, None] == ids[None, :-1]  # the token before `to` is the same as `from`
    return {
        FIRST: (position[None, :] == 0) & (back > 0),
        PREVIOUS: back == 1,
        INDUCTION: followed & (back > 0),
        ITSELF: (back == 0) & (position[:, None] > 0),
    }


def head_scores(weights: Tensor, ids: Tensor) -> HeadScores:
    """Scores of every head.

    Args:
        weights: (L, H, T, T), as captured without a cache.
        ids: (T) token ids.
    """
    layers, heads, length, _ = weights.shape
    position = torch.arange(length, dtype=torch.float32)
    entropy, evenness, distance = (torch.zeros(layers, heads) for _ in range(3))
    masks = places(ids)
    shares = {name: torch.full((layers, heads), math.nan) for name in masks}
    lifts = {name: torch.full((layers, heads), math.nan) for name in masks}
    if length < 2:
        return HeadScores(entropy, evenness, distance, shares, lifts)
    for layer, maps in enumerate(weights):  # one layer at a time, which bounds the memory of temporaries
        bits = torch.special.entr(maps).sum(-1)[:, 1:] / math.log(2)  # (H, T - 1)
        entropy[layer] = bits.mean(-1)
        evenness[layer] = (bits / torch.log2(position[1:] + 1)).mean(-1)
        distance[layer] = (position - maps @ position)[:, 1:].mean(-1)
        for name, mask in masks.items():
            rows = mask.any(-1)
            if rows.any():
                even = (mask.sum(-1) / (position + 1))[rows].mean()
                share = (maps * mask).sum(-1)[:, rows].mean(-1)
                shares[name][layer] = share
                lifts[name][layer] = (share - even) / (1 - even)
    return HeadScores(entropy, evenness, distance, shares, lifts)


def role(scores: HeadScores, layer: int, head: int) -> str:
    """The pattern of a head whose best lift is over `CLEAR`; "spread evenly" for an evenness over `EVEN`; else ""."""
    lift, name = best_lift(scores, layer, head)
    if lift > CLEAR:
        return name
    return "spread evenly" if scores.evenness[layer, head] > EVEN else ""


def best_lift(scores: HeadScores, layer: int, head: int) -> tuple[float, str]:
    """The highest lift of a head, and its pattern; at equal lifts induction wins, which occurs least by chance."""
    order = (INDUCTION, PREVIOUS, FIRST, ITSELF)
    found = [(scores.lifts[name][layer, head].item(), name) for name in order]
    return max((pair for pair in found if not math.isnan(pair[0])), key=lambda pair: pair[0], default=(0.0, ""))


def most_telling(scores: HeadScores, count: int) -> list[tuple[int, int]]:
    """(layer, head) of ``count`` heads, the highest lift first; the best head of each role is included, as far as
    ``count`` allows."""
    layers, heads = scores.entropy.shape
    ranked = sorted(
        ((layer, head) for layer in range(layers) for head in range(heads)),
        key=lambda place: -best_lift(scores, *place)[0],
    )
    best_of_kind = {role(scores, *place): place for place in reversed(ranked)}
    chosen = [place for name, place in best_of_kind.items() if name][:count]
    chosen += [place for place in ranked if place not in chosen][: count - len(chosen)]
    return sorted(chosen, key=ranked.index)


def strongest(row: Tensor, count: int) -> list[tuple[int, float]]:
    """(position, weight) of the ``count`` largest entries of row (S), largest first, without zeros."""
    values, places = row.topk(min(count, row.size(0)))
    return [(int(p), float(v)) for p, v in zip(places, values, strict=True) if v > 0]


def rollout(weights: Tensor) -> Tensor:
    """Attention rollout (Abnar & Zuidema, 2020): for each layer, the product of the matrices of all layers up to it.

    The matrix of a layer is (mean over heads + identity) / 2; the identity stands for the residual connection.

    Args:
        weights: (L, H, T, T).

    Returns:
        (L, T, T); rows sum to 1.
    """
    identity = torch.eye(weights.size(-1))
    joint, result = identity, []
    for maps in weights:
        joint = (maps.mean(0) + identity) / 2 @ joint
        result.append(joint)
    return torch.stack(result)


def pooled(maps: Tensor, size: int) -> Tensor:
    """Maps (..., T, S) reduced to at most ``size`` rows and columns: attention between groups of adjacent tokens.

    The rows of a group are averaged and its columns are added, so that rows still sum to 1.
    """
    rows, columns = _groups(maps.size(-2), size), _groups(maps.size(-1), size)
    return rows / rows.sum(-1, keepdim=True) @ maps @ columns.T


def _groups(length: int, size: int) -> Tensor:
    """(min(size, T), T), 1 where a position belongs to a group."""
    size = min(size, length)
    group = torch.arange(length) * size // length
    return (group[None, :] == torch.arange(size)[:, None]).float()
