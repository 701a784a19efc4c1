"""Logits -> distribution -> token: the definition of sampling that all engines share, for batches of rows.

The functions take torch tensors or numpy arrays (`Array` is either) and return the same kind: logits on a GPU stay
there, and generation on the CPU needs no torch. The options of sampling are the stages of stages.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptcli.config.sampling import SamplingConfig
from gptcli.errors import SettingError
from gptcli.inference.arrays import Array, library, log_softmax, row_numbers, softmax
from gptcli.inference.stages import History, State, filtered, penalised
from gptcli.tokenizers import Tokenizer

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


def not_finite() -> SettingError:
    """The error for NaN or infinite logits."""
    return SettingError(
        "The model gives NaN or infinite logits for this text.",
        "Its weights have diverged, or {dtype} is too narrow for them: try {dtype} float32, or another run.",
    )


def distribution(logits: Array, config: SamplingConfig, history: History | None = None) -> Array:
    """The probabilities that the next token is drawn from: the softmax after all `stages.STAGES` that are on.

    Temperature 0 gives probability 1 to the likeliest token (the one with the lowest id of several).

    Args:
        logits: (B, V), any float dtype.
        config: sampling options.
        history: the text so far; None if no stage that is on reads it.

    Returns:
        (B, V) float32, rows sum to 1; a row is all NaN if its logits contain NaN or inf or are all -inf.
    """
    xp, state = library(logits), State(config, history)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which `draw` detects
        scores = penalised(xp.asarray(logits, dtype=xp.float32), state)
        if config.temperature == 0.0:
            certain = xp.zeros_like(scores)
            # Ones on the device: a number would be copied from the host, which a graph's capture does not allow.
            certain[row_numbers(scores)[:, 0], scores.argmax(-1)] = xp.ones_like(scores[:, 0])
            return certain
        return softmax(filtered(scores, state))


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
    xp = library(final)
    final, early = xp.asarray(final, dtype=xp.float32), xp.asarray(early, dtype=xp.float32)
    with np.errstate(invalid="ignore"):  # `greedy` and `draw` detect NaN
        plausible = final >= xp.amax(final, -1)[:, None] + float(np.log(least))
        return xp.where(plausible, log_softmax(final) - log_softmax(early), -xp.inf)


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


def greedy(logits: Array, config: SamplingConfig, history: History | None = None) -> Array:
    """(B) int64: the tokens to which `distribution` gives probability 1 at temperature 0; arguments as there.

    -1 for a row of logits that contains NaN or inf or is all -inf.
    """
    logits = penalised(logits, State(config, history))
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
