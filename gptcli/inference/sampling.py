"""Logits -> distribution -> token: the definition of sampling that all engines share, for batches of rows.

The functions take torch tensors or numpy arrays (`Array` is either) and return the same kind: logits on a GPU stay
there, and generation on the CPU needs no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError
from gptcli.tokenizers import Tokenizer

Array = Any
NUCLEUS = 1024  # likeliest tokens that top-p sorts first; it sorts all if they do not add up to top_p

# A 32-bit hash of (key, token) with the constants of Chris Wellons's lowbias32; _GOLDEN is 2^32 / golden ratio.
_GOLDEN, _FIRST, _SECOND, _WORD = 0x9E3779B9, 0x7FEB352D, 0x846CA68B, 0xFFFFFFFF
_TO_UNIT = 2**-32 * (1 - 2**-20)  # maps hashes below 1, since log1p(-1) is -inf


@dataclass(frozen=True)
class Drawable:
    """The ids that may be drawn, those with a text: all below ``size`` except ``holes``.

    A model may have more rows than its tokenizer has tokens, for example if its vocabulary is padded for speed.
    """

    size: int
    holes: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Drawable | None":
        """The ids that have a text in ``tokenizer``; None for a tokenizer without a vocabulary."""
        return cls(tokenizer.vocab_size, tuple(tokenizer.holes)) if tokenizer.vocab_size else None

    def mask(self, vocab_size: int) -> NDArray[np.bool_]:
        """(V) bool: True for ids that may be drawn."""
        mask = np.arange(vocab_size) < self.size
        mask[list(self.holes)] = False
        return mask


def keep_drawable(logits: Array, drawable: Drawable | None) -> Array:
    """Set logits (B, V) of ids that may not be drawn (see `Drawable.mask`) to -inf in place, and return them."""
    if drawable is not None and drawable.size < logits.shape[-1]:
        logits[:, drawable.size :] = -float("inf")
    if drawable is not None and drawable.holes:
        logits[:, list(drawable.holes)] = -float("inf")
    return logits


def not_finite() -> GptcliError:
    """The error for NaN or infinite logits."""
    return GptcliError(
        "The model gives NaN or infinite logits for this text.",
        "Its weights have diverged, or --dtype is too narrow for them: try --dtype float32, or another run.",
    )


def _library(array: Array) -> Any:
    """The module numpy or torch, by the type of ``array``."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def distribution(logits: Array, config: SamplingConfig, seen: Array | None = None) -> Array:
    """The probabilities that the next token is drawn from.

    Steps in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. Temperature 0 gives
    probability 1 to the likeliest token (the one with the lowest id of several).

    Args:
        logits: (B, V), any float dtype.
        config: sampling options.
        seen: (B, S) int64, the tokens that the repetition penalty changes; None for no penalty.

    Returns:
        (B, V) float32, rows sum to 1; a row is all NaN if its logits contain NaN or inf or are all -inf.
    """
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which `draw` detects
        return _distribution(logits, config, seen)


def _distribution(logits: Array, config: SamplingConfig, seen: Array | None) -> Array:
    xp = _library(logits)
    scores = xp.asarray(logits, dtype=xp.float32)
    if config.repetition_penalty != 1.0 and seen is not None:
        scores = penalise_repeats(scores, seen, config.repetition_penalty)
    if config.temperature == 0.0:
        certain = xp.zeros_like(scores)
        # Ones on the device: a number would be copied from the host, which a graph's capture does not allow.
        certain[_rows(scores)[:, 0], scores.argmax(-1)] = xp.ones_like(scores[:, 0])
        return certain
    # Scores are at most 0, so exp cannot overflow; a temperature below 1e-38 would be 0 in float32.
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
    """Scores (B, V) with all but the ``top_k`` largest of a row at -inf; scores equal to the smallest kept remain."""
    xp, count = _library(scores), min(top_k, scores.shape[-1])
    if xp is np:
        smallest_kept = np.partition(scores, -count, axis=-1)[:, -count, None]
    else:
        smallest_kept = scores.topk(count).values[:, -1:]
    return xp.where(scores < smallest_kept, -xp.inf, scores)


def keep_top_p(scores: Array, top_p: float) -> Array:
    """(B, V), -inf except for the fewest tokens whose probabilities add up to ``top_p`` (Holtzman et al., 2020)."""
    xp = _library(scores)
    if xp is np:
        rows = zip(scores, _softmax(scores), strict=True)
        return np.stack([_keep_nucleus(row, probabilities, top_p) for row, probabilities in rows])
    order = likeliest_first(scores)
    probabilities = _softmax(scores)[_rows(scores), order]
    drop_ordered = probabilities.cumsum(-1) - probabilities >= top_p
    drop_ordered[:, 0] = False
    drop = xp.zeros_like(drop_ordered)
    drop[_rows(scores), order] = drop_ordered
    return xp.where(drop, -xp.inf, scores)


def _keep_nucleus(scores: NDArray[np.float32], probabilities: NDArray[np.float32], top_p: float) -> NDArray[np.float32]:
    """`keep_top_p` for one row (V). Sorts the `NUCLEUS` likeliest tokens, and all tokens if those do not suffice."""
    if np.isnan(probabilities[0]):  # then the softmax has made the whole row NaN
        return scores
    possible = np.flatnonzero(probabilities)
    negative = -scores[possible]
    for count in (min(NUCLEUS, len(possible)), len(possible)):
        places = np.flatnonzero(negative <= np.partition(negative, count - 1)[count - 1])
        order = possible[places[np.argsort(negative[places], kind="stable")]]
        before = probabilities[order].cumsum() - probabilities[order]
        if before[-1] >= top_p:
            break
    found = np.full_like(scores, -np.inf)
    kept = order[before < top_p]
    found[kept] = scores[kept]
    return found


def keep_min_p(scores: Array, min_p: float) -> Array:
    """(B, V), -inf for tokens less than ``min_p`` times as likely as the likeliest (Nguyen et al., 2024)."""
    xp = _library(scores)
    probabilities = _softmax(scores)
    return xp.where(probabilities < min_p * xp.amax(probabilities, -1)[:, None], -xp.inf, scores)


def contrast_layers(final: Array, early: Array, least: float = 0.1) -> Array:
    """log q_N - log q_M for the tokens whose q_N is at least ``least`` times the largest, -inf elsewhere.

    Contrastive decoding between the last layer and an early-exit layer, as in the course (after Chuang et al., "DoLa",
    2023).

    Args:
        final: (B, V), the model's logits; q_N is their softmax.
        early: (B, V), the head's logits of the normed output of early-exit layer M; q_M is their softmax.
        least: the smallest q_N of a candidate token, relative to the largest q_N.

    Returns:
        (B, V) float32 scores, logits for `distribution`.
    """
    xp = _library(final)
    final, early = xp.asarray(final, dtype=xp.float32), xp.asarray(early, dtype=xp.float32)
    with np.errstate(invalid="ignore"):  # `greedy` and `draw` detect NaN
        plausible = final >= xp.amax(final, -1)[:, None] + float(np.log(least))
        return xp.where(plausible, _log_softmax(final) - _log_softmax(early), -xp.inf)


def draw(probabilities: Array, keys: Sequence[int]) -> Array:
    """Draw a token for each row by an exponential race: the argmin over tokens of E / p, with E ~ Exp(1).

    This is the Gumbel-max trick (Maddison et al., 2014). E comes from a hash of the key and the token, so a draw is a
    function of its key, the same on every device. Two similar distributions give the same token for the same key with
    high probability, so a draft that draws with the model's key usually proposes the token that the model will draw.

    Args:
        probabilities: (B, V) float32, rows sum to 1.
        keys: B integers of 64 bits, from `draw_key`.

    Returns:
        (B) int64. A token with probability 0 is never drawn; -1 where a row is NaN.
    """
    if isinstance(probabilities, np.ndarray):  # row by row, so that temporaries stay in the core's cache
        return np.array([_first_in_row(row, key) for row, key in zip(probabilities, keys, strict=True)])
    import torch

    device = probabilities.device
    low, high = (torch.tensor([key >> shift & _WORD for key in keys], device=device)[:, None] for shift in (0, 32))
    x = torch.arange(probabilities.shape[-1], device=device) * _GOLDEN + low & _WORD
    x = (x ^ x >> 16) * _FIRST & _WORD ^ high
    x = (x ^ x >> 15) * _SECOND & _WORD
    times = torch.log1p(((x ^ x >> 16).to(torch.float32) + 0.5) * -_TO_UNIT)
    ids = (probabilities / times).argmin(-1)  # argmin returns a NaN's index if there is one
    drawn = probabilities.gather(-1, ids[:, None])[:, 0]
    return torch.where(drawn == drawn, ids, -1)


def draw_key(seed: int, place: int) -> int:
    """The 64-bit key for the draw of the new token number ``place`` (from 0) of a text with this seed."""
    return _mixed(_mixed(seed) + place)


def _first_in_row(probabilities: NDArray[np.float32], key: int) -> int:
    """`draw` for one row (V)."""
    x = np.arange(len(probabilities), dtype=np.uint32)
    x *= np.uint32(_GOLDEN)
    x += np.uint32(key & _WORD)
    x ^= x >> 16
    x *= np.uint32(_FIRST)
    x ^= np.uint32(key >> 32)
    x ^= x >> 15
    x *= np.uint32(_SECOND)
    x ^= x >> 16
    times = x.astype(np.float32)
    times += np.float32(0.5)
    times *= np.float32(-_TO_UNIT)
    np.log1p(times, out=times)  # -E: the least p / -E belongs to the least E / p
    np.divide(probabilities, times, out=times)
    first = int(times.argmin())  # argmin returns a NaN's index if there is one
    return -1 if np.isnan(probabilities[first]) else first


def _mixed(number: int) -> int:
    """The output of splitmix64 (Steele et al., 2014) for the state ``number``: a 64-bit hash."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def greedy(logits: Array, config: SamplingConfig, seen: Array | None = None) -> Array:
    """(B) int64: the tokens to which `distribution` gives probability 1 at temperature 0; arguments as there.

    -1 for a row of logits that contains NaN or inf or is all -inf.
    """
    if config.repetition_penalty != 1.0 and seen is not None:
        logits = penalise_repeats(logits, seen, config.repetition_penalty)
    if isinstance(logits, np.ndarray):  # row by row: four times as fast as numpy's argmax along an axis
        return np.array([_largest_in_row(row) for row in logits])
    import torch

    best, ids = logits.max(-1)  # max returns NaN if there is one
    return torch.where(best - best == 0, ids, -1)


def _largest_in_row(row: NDArray[np.float32]) -> int:
    """`greedy` for one row (V)."""
    best = int(row.argmax())  # argmax returns a NaN's index if there is one
    return best if np.isfinite(row[best]) else -1


def likeliest(scores: Array) -> tuple[int, float]:
    """The likeliest token by scores (1, V), the lowest id of equals, and its margin over the second; changes scores.

    The token is -1 if its score is not finite.
    """
    best = int(scores[0].argmax())
    score = float(scores[0, best])
    if not math.isfinite(score):
        return -1, 0.0
    scores[0, best] = -float("inf")
    return best, score - float(scores[0].max())


def likeliest_first(scores: Array) -> Array:
    """(B, V) int64: the indices that sort scores (B, V) from the largest to the smallest; a stable sort."""
    xp = _library(scores)
    return np.argsort(-scores, axis=-1, kind="stable") if xp is np else xp.argsort(-scores, dim=-1, stable=True)


def like(array: Array, values: Any) -> Array:
    """``values`` (nested lists of numbers, or an array) in the library and on the device of ``array``."""
    if isinstance(array, np.ndarray):
        return np.asarray(values)
    import torch

    return torch.as_tensor(values, device=array.device)


def _rows(scores: Array) -> Array:
    """(B, 1) int64: the index of each row, for indexing together with column indices."""
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
