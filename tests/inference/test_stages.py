"""Every sampling stage against its formula in float64, over a real vocabulary, in numpy and in torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.config.sampling import SamplingConfig
from gptcli.inference import stages
from gptcli.inference.sampling import distribution
from gptcli.inference.stages import STAGES, History, State

VOCAB, PROMPT = 50_257, 6
RNG = np.random.default_rng(0)
SCORES = (RNG.standard_normal((1, VOCAB)) * 3).astype(np.float32)
TEXT = [*RNG.integers(0, VOCAB, 20).tolist(), 5, 9, 9, 7, 5, 9]  # ends as it was before: 5 9 was followed by 9
OPTIONS: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.4,
    "presence_penalty": -0.7,
    "no_repeat_ngram_size": 3,
    "temperature": 0.6,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
}


def softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max())
    return exponentials / exponentials.sum()


def repeats(x: np.ndarray, penalty: float) -> np.ndarray:
    seen = np.isin(np.arange(len(x)), TEXT)
    return np.where(seen, np.where(x > 0, x / penalty, x * penalty), x)


def frequency(x: np.ndarray, penalty: float) -> np.ndarray:
    return x - np.bincount(TEXT[PROMPT:], minlength=len(x)) * penalty


def presence(x: np.ndarray, penalty: float) -> np.ndarray:
    return x - (np.bincount(TEXT[PROMPT:], minlength=len(x)) > 0) * penalty


def ngrams(x: np.ndarray, size: int) -> np.ndarray:
    held = {tuple(TEXT[i : i + size]) for i in range(len(TEXT) - size + 1)}
    start = tuple(TEXT[len(TEXT) - size + 1 :])
    return np.array([-np.inf if (*start, token) in held else score for token, score in enumerate(x)])


def top_p(x: np.ndarray, share: float) -> np.ndarray:
    order = np.argsort(-x, kind="stable")
    before = np.cumsum(softmax(x)[order]) - softmax(x)[order]
    kept = x.copy()
    kept[order[before >= share]] = -np.inf
    return kept


FORMULAS: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "repetition_penalty": repeats,
    "frequency_penalty": frequency,
    "presence_penalty": presence,
    "no_repeat_ngram_size": ngrams,
    "temperature": lambda x, t: (x - x.max()) / t,
    "top_k": lambda x, k: np.where(x >= np.sort(x)[-k], x, -np.inf),
    "top_p": top_p,
    "min_p": lambda x, p: np.where(softmax(x) >= p * softmax(x).max(), x, -np.inf),
}


def in_library(library: str, array: Any) -> Any:
    return np.array(array) if library == "numpy" else torch.tensor(array)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.field)
def test_a_stage_equals_its_formula(stage: stages.Stage, library: str) -> None:
    config = SamplingConfig(**{stage.field: OPTIONS[stage.field]})
    assert stage.is_on(config)
    given = in_library(library, SCORES)
    history = History(in_library(library, [TEXT]), PROMPT) if stage.reads_text else None
    found = stage.apply(given, State(config, history))
    expected = FORMULAS[stage.field](SCORES[0].astype(np.float64), OPTIONS[stage.field])
    np.testing.assert_allclose(np.asarray(found)[0], expected, atol=1e-5)
    assert str(found.dtype).endswith("float32")
    np.testing.assert_array_equal(np.asarray(given), SCORES)  # unchanged


def test_every_option_has_a_stage_and_is_off_by_default() -> None:
    assert {stage.field for stage in STAGES} == set(SamplingConfig.__dataclass_fields__) == set(OPTIONS)
    assert [stage.field for stage in STAGES if stage.is_on(SamplingConfig())] == ["temperature"]


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 26, 27, 40])
def test_forbidden_ngrams_are_those_of_transformers(size: int, library: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = SamplingConfig(no_repeat_ngram_size=size)
    state = State(config, History(in_library(library, [TEXT]), PROMPT))
    found = stages.forbid_repeated_ngrams(in_library(library, SCORES), state)
    expected = transformers.NoRepeatNGramLogitsProcessor(size)(torch.tensor([TEXT]), torch.tensor(SCORES))
    np.testing.assert_array_equal(np.asarray(found), expected.numpy())


def test_penalties_count_new_tokens_and_not_the_prompt() -> None:
    """OpenAI: c[j] is how often token j "was sampled prior to the current position"."""
    config = SamplingConfig(frequency_penalty=0.5, presence_penalty=0.25)
    text = History(np.array([[3, 3, 1, 2, 2]]), prompt_length=2)
    found = stages.penalised(np.zeros((1, 5), np.float32), State(config, text))
    np.testing.assert_allclose(found, [[0, -0.75, -1.25, 0, 0]])
    before = History(np.array([[3, 3]]), prompt_length=2)
    np.testing.assert_array_equal(
        stages.penalised(np.zeros((1, 5), np.float32), State(config, before)), np.zeros((1, 5))
    )


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_top_p_of_1_keeps_every_token(library: str) -> None:
    equal = in_library(library, np.zeros((1, VOCAB), np.float32))
    assert int((distribution(equal, SamplingConfig(top_p=1.0)) > 0).sum()) == VOCAB


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999, 1.0])
def test_both_libraries_keep_the_same_tokens_at_every_top_p(share: float) -> None:
    for scores in (np.zeros((1, VOCAB), np.float32), SCORES, SCORES / 100):
        kept = [distribution(in_library(name, scores), SamplingConfig(top_p=share)) > 0 for name in ("numpy", "torch")]
        np.testing.assert_array_equal(np.asarray(kept[0]), np.asarray(kept[1]))
