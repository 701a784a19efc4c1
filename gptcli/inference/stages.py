"""The stages between logits and probabilities, each a function (scores (B, V), state) -> scores (B, V).

`STAGES` is their order. A new stage is a function here, a line in `STAGES`, a field of `SamplingConfig`, and a test
against its formula. Scores are float32, numpy or torch; a stage changes no array that it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.config.sampling import SamplingConfig
from gptcli.inference.arrays import Array, library, likeliest_first, row_numbers, softmax

NUCLEUS = 1024  # likeliest tokens that top-p sorts first; it sorts all if they do not add up to top_p


class History(NamedTuple):
    """The text so far, for stages that depend on it.

    Attributes:
        ids: (B, S) int64, the prompt and the new tokens, in the library and on the device of the scores.
        prompt_length: how many of them are the prompt's.
    """

    ids: Array
    prompt_length: int = 0


class State(NamedTuple):
    """What a stage may depend on: the sampling options, and the text if a stage that reads it is on."""

    config: SamplingConfig
    history: History | None = None

    @property
    def text(self) -> History:
        assert self.history is not None, "a stage that reads the text was given none"
        return self.history


@dataclass(frozen=True)
class Stage:
    """A function, the field of `SamplingConfig` that it obeys, and that field's values for which it does nothing.

    Attributes:
        reads_text: whether it uses `State.text`.
    """

    apply: Callable[[Array, State], Array]
    field: str
    off: tuple[object, ...] = ()
    reads_text: bool = False

    def is_on(self, config: SamplingConfig) -> bool:
        return getattr(config, self.field) not in self.off


def penalise_repeats(scores: Array, state: State) -> Array:
    """Divide positive and multiply negative scores of the text's tokens by the penalty (Keskar et al., 2019)."""
    xp, penalty, ids = library(scores), state.config.repetition_penalty, state.text.ids
    of_text = scores[row_numbers(scores), ids]
    changed = scores + 0.0
    changed[row_numbers(scores), ids] = xp.where(of_text > 0, of_text / penalty, of_text * penalty)
    return changed


def penalise_frequency(scores: Array, state: State) -> Array:
    """Subtract the penalty times the token's count among the new tokens, as OpenAI's API documents it.

    The prompt is not counted: OpenAI's formula counts how often a token "was sampled prior to the current position".
    """
    return scores - _new_counts(scores, state.text) * state.config.frequency_penalty


def penalise_presence(scores: Array, state: State) -> Array:
    """Subtract the penalty once from every token that is among the new tokens; the prompt is not counted (OpenAI)."""
    counts = _new_counts(scores, state.text)
    return library(scores).where(counts > 0, scores - state.config.presence_penalty, scores)


def forbid_repeated_ngrams(scores: Array, state: State) -> Array:
    """-inf for tokens that would end an n-gram that the text, prompt included, holds (as transformers forbids them)."""
    size, ids = state.config.no_repeat_ngram_size, state.text.ids
    assert size is not None
    ends = ids[:, size - 1 :]  # (B, N): the last token of every n-gram; N is 0 or less than S
    count = ends.shape[1]
    repeats = ends == ends
    for place in range(size - 1 if count else 0):
        repeats = repeats & (ids[:, place : place + count] == ids[:, ids.shape[1] - size + 1 + place, None])
    rows, places = library(scores).where(repeats)
    changed = scores + 0.0
    changed[rows, ends[rows, places]] = -float("inf")
    return changed


def scale_by_temperature(scores: Array, state: State) -> Array:
    """Scores, less their largest, divided by a temperature above 0."""
    # Scores are at most 0, so exp cannot overflow; a temperature below 1e-38 would be 0 in float32.
    return (scores - library(scores).amax(scores, -1)[:, None]) / max(state.config.temperature, 1e-30)


def keep_top_k(scores: Array, state: State) -> Array:
    """All but the top_k largest of a row at -inf; scores equal to the smallest that is kept are kept too."""
    assert state.config.top_k is not None
    xp, count = library(scores), min(state.config.top_k, scores.shape[-1])
    if xp is np:
        smallest_kept = np.partition(scores, -count, axis=-1)[:, -count, None]
    else:
        smallest_kept = scores.topk(count).values[:, -1:]
    return xp.where(scores < smallest_kept, -xp.inf, scores)


def keep_top_p(scores: Array, state: State) -> Array:
    """-inf except for the fewest tokens whose probabilities add up to top_p (Holtzman et al., 2020).

    Sums are float64: over a real vocabulary those of float32 differ between libraries, and end before 1.
    """
    xp, top_p = library(scores), state.config.top_p
    assert top_p is not None
    if xp is np:
        return np.stack([_keep_nucleus(row, top_p) for row in scores])
    order = likeliest_first(scores)
    masses = xp.exp(scores - xp.amax(scores, -1)[:, None])[row_numbers(scores), order]
    masses = masses if masses.device.type == "mps" else masses.double()  # Apple's GPUs have no float64
    drop_ordered = masses.cumsum(-1) - masses >= top_p * masses.sum(-1)[:, None]
    drop_ordered[:, 0] = False
    drop = xp.zeros_like(drop_ordered)
    drop[row_numbers(scores), order] = drop_ordered
    return xp.where(drop, -xp.inf, scores)


def keep_min_p(scores: Array, state: State) -> Array:
    """-inf for tokens less than min_p times as likely as the likeliest (Nguyen et al., 2024)."""
    xp, probabilities = library(scores), softmax(scores)
    return xp.where(probabilities < state.config.min_p * xp.amax(probabilities, -1)[:, None], -xp.inf, scores)


STAGES = (
    Stage(penalise_repeats, "repetition_penalty", off=(1.0,), reads_text=True),
    Stage(penalise_frequency, "frequency_penalty", off=(0.0,), reads_text=True),
    Stage(penalise_presence, "presence_penalty", off=(0.0,), reads_text=True),
    Stage(forbid_repeated_ngrams, "no_repeat_ngram_size", off=(None,), reads_text=True),
    Stage(scale_by_temperature, "temperature"),
    Stage(keep_top_k, "top_k", off=(None,)),
    Stage(keep_top_p, "top_p", off=(None, 1.0)),
    Stage(keep_min_p, "min_p", off=(None,)),
)


def text_stages(config: SamplingConfig) -> list[Stage]:
    """The stages that are on and read the text; all of them come before the temperature."""
    return [stage for stage in STAGES if stage.reads_text and stage.is_on(config)]


def penalised(scores: Array, state: State) -> Array:
    """Scores after `text_stages`."""
    for stage in text_stages(state.config):
        scores = stage.apply(scores, state)
    return scores


def filtered(scores: Array, state: State) -> Array:
    """Scores after the stages that do not read the text."""
    for stage in STAGES:
        if not stage.reads_text and stage.is_on(state.config):
            scores = stage.apply(scores, state)
    return scores


def _new_counts(scores: Array, text: History) -> Array:
    """(B, V) float32: how often each token is among the new tokens."""
    new = text.ids[:, text.prompt_length :]
    if library(scores) is np:
        counts = np.zeros_like(scores)
        np.add.at(counts, (row_numbers(scores), new), 1.0)
        return counts
    return scores.new_zeros(scores.shape).scatter_add_(1, new, scores.new_ones(new.shape))


def _keep_nucleus(scores: NDArray[np.float32], top_p: float) -> NDArray[np.float32]:
    """`keep_top_p` for one row (V). Sorts the `NUCLEUS` likeliest tokens, and all tokens if those do not suffice."""
    largest = scores.max()
    if not np.isfinite(largest):  # no distribution: the softmax makes the whole row NaN
        return scores
    masses = np.exp(scores - largest)
    enough = top_p * masses.sum(dtype=np.float64)
    possible = np.flatnonzero(masses)
    negative = -scores[possible]
    for count in (min(NUCLEUS, len(possible)), len(possible)):
        places = np.flatnonzero(negative <= np.partition(negative, count - 1)[count - 1])
        order = possible[places[np.argsort(negative[places], kind="stable")]]
        before = masses[order].cumsum(dtype=np.float64) - masses[order]
        if before[-1] >= enough:
            break
    found = np.full_like(scores, -np.inf)
    kept = order[before < enough]
    found[kept] = scores[kept]
    return found
