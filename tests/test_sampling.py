"""The sampling distribution against a few lines of numpy, against transformers, and by counting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config import SamplingConfig
from gptcli.sampling import contrast_layers, distribution, draw, greedy


def plain(logits: np.ndarray, config: SamplingConfig, seen: list[int]) -> np.ndarray:
    """The distribution of one row, in float64, as the definitions read."""
    scores = logits.astype(np.float64)
    for token in set(seen):
        penalty = config.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    if config.temperature == 0:
        return np.eye(len(scores))[scores.argmax()]
    scores = scores / config.temperature
    if config.top_k is not None:
        scores[scores < np.sort(scores)[::-1][: config.top_k][-1]] = -np.inf
    if config.top_p is not None:
        p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        order = np.argsort(-p, kind="stable")
        fewest = int(np.searchsorted(np.cumsum(p[order]), config.top_p - 1e-12)) + 1
        scores[order[fewest:]] = -np.inf
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if config.min_p is not None:
        p[p < config.min_p * p.max()] = 0
    return p / p.sum()


CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=0.5, top_k=3),
    SamplingConfig(temperature=2.0, top_p=0.7),
    SamplingConfig(min_p=0.2),
    SamplingConfig(temperature=0.9, top_k=12, top_p=0.83, min_p=0.05, repetition_penalty=1.3),
    SamplingConfig(top_k=1000),
    SamplingConfig(repetition_penalty=1.7),
    SamplingConfig(top_p=1.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_filter_equals_a_few_lines_of_numpy(config: SamplingConfig) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 37) * 3
    seen = torch.randint(0, 37, (5, 9))
    actual = distribution(logits, config, seen)
    expected = np.stack([plain(row.numpy(), config, s.tolist()) for row, s in zip(logits, seen, strict=True)])
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_numpy_and_torch_give_the_same_distribution_and_the_same_tokens(config: SamplingConfig) -> None:
    torch.manual_seed(2)
    logits, seen = torch.randn(6, 41) * 3, torch.randint(0, 41, (6, 9))
    logits[0, 5:9] = logits[0, 3]  # equals are where two libraries may differ
    logits[1, :30] = -torch.inf
    in_torch = distribution(logits, config, seen)
    in_numpy = distribution(logits.numpy(), config, seen.numpy())
    assert in_numpy.dtype == np.float32
    np.testing.assert_allclose(in_numpy, in_torch.numpy(), atol=1e-6)
    uniforms = [0.0, 0.1, 0.37, 0.5, 0.9, 0.999]
    assert draw(in_numpy, uniforms).tolist() == draw(in_torch, uniforms).tolist()


def test_the_layer_contrast_equals_a_few_lines_of_numpy() -> None:
    rng = np.random.default_rng(0)
    final, early = (rng.standard_normal((4, 30)).astype(np.float32) * 2 for _ in range(2))
    q_final, q_early = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (final, early))
    with np.errstate(divide="ignore"):
        kept = q_final >= 0.1 * q_final.max(-1, keepdims=True)
        expected = np.where(kept, np.log(q_final) - np.log(q_early), -np.inf)
    assert 4 < kept.sum() < 60  # some are kept and some are not
    np.testing.assert_allclose(contrast_layers(final, early), expected, atol=1e-4)
    np.testing.assert_allclose(contrast_layers(torch.tensor(final), torch.tensor(early)), expected, atol=1e-4)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.temperature > 0], ids=str)
def test_every_filter_equals_transformers(config: SamplingConfig) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    logits, seen = torch.randn(4, 50) * 2, torch.randint(0, 50, (4, 7))
    processors = transformers.LogitsProcessorList()
    if config.repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    processors.append(transformers.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        processors.append(transformers.TopKLogitsWarper(config.top_k))
    if config.top_p:
        processors.append(transformers.TopPLogitsWarper(config.top_p))
    if config.min_p:
        processors.append(transformers.MinPLogitsWarper(config.min_p))
    expected = processors(seen, logits.clone()).softmax(-1)
    torch.testing.assert_close(distribution(logits, config, seen), expected, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=30),
    st.floats(0, 5),
    st.integers(1, 40),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_it_is_a_distribution_and_keeps_the_likeliest(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = torch.tensor([logits])
    p = distribution(scores, SamplingConfig(temperature, top_k, top_p, min_p))
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert (p >= 0).all()
    assert p[0, scores[0].argmax()] == p.max()


def test_draws_come_in_the_proportions_of_the_distribution() -> None:
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0]])
    n = 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = draw(p.expand(n, -1), uniforms)
    counts = torch.bincount(ids, minlength=5).double()
    assert counts[1] == counts[4] == 0
    kept = counts > 0
    chi2 = ((counts - n * p[0].double())[kept] ** 2 / (n * p[0].double())[kept]).sum().item()
    assert chi2 < 13.8  # 2 degrees of freedom: one run in a thousand is above


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    p = torch.tensor([[0.0, 0.4, 0.6, 0.0]])
    assert draw(p, torch.tensor([0.0], dtype=torch.float64)).item() == 1
    assert draw(p, torch.tensor([1 - 2**-53], dtype=torch.float64)).item() == 2


def test_greedy_takes_the_first_of_equals() -> None:
    assert distribution(torch.tensor([[1.0, 3.0, 3.0]]), SamplingConfig(temperature=0)).argmax().item() == 1


@pytest.mark.parametrize("size", [3, 256, 257, 1000])
def test_a_draw_is_what_a_running_sum_over_the_whole_vocabulary_gives(size: int) -> None:
    rng = np.random.default_rng(size)
    probabilities = rng.random((300, size), np.float32) ** 8 * (rng.random((300, size)) < 0.3)
    probabilities[:, rng.integers(size)] += 1e-3
    probabilities /= probabilities.sum(-1, keepdims=True)
    uniforms = np.concatenate([rng.random(298), [0.0, np.nextafter(1.0, 0.0)]])
    sums = probabilities.cumsum(-1, dtype=np.float64)
    expected = [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(sums, uniforms, strict=True)]
    for values in (probabilities, torch.from_numpy(probabilities)):
        drawn = np.asarray(draw(values, uniforms))
        assert (probabilities[range(300), drawn] > 0).all()
        assert (drawn == expected).mean() > 0.99  # rounding may decide between neighbours


def test_greedy_is_the_one_token_that_the_distribution_leaves() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    seen = logits.argmax(-1)[:, None]
    for penalty in (1.0, 5.0):
        config = SamplingConfig(temperature=0, repetition_penalty=penalty)
        assert (greedy(logits, config, seen) == distribution(logits, config, seen).argmax(-1)).all()
