"""The sampling distribution against a few lines of numpy, against transformers, and by counting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config.sampling import SamplingConfig
from gptcli.inference import arrays, sampling, stages
from gptcli.inference.sampling import contrast_layers, distribution, draw, draw_key, greedy
from gptcli.inference.stages import History


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
    actual = distribution(logits, config, History(seen))
    expected = np.stack([plain(row.numpy(), config, s.tolist()) for row, s in zip(logits, seen, strict=True)])
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_numpy_and_torch_give_the_same_distribution_and_the_same_tokens(config: SamplingConfig) -> None:
    torch.manual_seed(2)
    logits, seen = torch.randn(6, 41) * 3, torch.randint(0, 41, (6, 9))
    logits[0, 5:9] = logits[0, 3]  # equals are where two libraries may differ
    logits[1, :30] = -torch.inf
    in_torch = distribution(logits, config, History(seen))
    in_numpy = distribution(logits.numpy(), config, History(seen.numpy()))
    assert in_numpy.dtype == np.float32
    np.testing.assert_allclose(in_numpy, in_torch.numpy(), atol=1e-6)
    for place in range(20):
        keys = [draw_key(seed, place) for seed in range(6)]
        assert draw(in_numpy, keys).tolist() == draw(in_torch, keys).tolist()


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


def test_the_layer_contrast_of_narrow_logits_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    final, early = (torch.randn(4, 30) * 2).bfloat16(), (torch.randn(4, 30) * 2).bfloat16()
    found = contrast_layers(final, early)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrast_layers(final.float(), early.float()))


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
    torch.testing.assert_close(distribution(logits, config, History(seen)), expected, atol=1e-6, rtol=1e-5)


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


@pytest.mark.parametrize("nucleus", [1, 7, 5_000])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999, 1.0])
def test_a_nucleus_is_the_same_wherever_it_is_looked_for_first(
    top_p: float, nucleus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "NUCLEUS", nucleus)
    rng = np.random.default_rng(0)
    scores = np.stack([rng.standard_normal(300).astype(np.float32) * spread for spread in (0.01, 1, 5, 60)])
    scores[1, 40:60] = scores[1].max()  # equals
    scores[2, :250] = -np.inf
    kept = distribution(scores, SamplingConfig(top_p=top_p))
    expected = distribution(torch.from_numpy(scores), SamplingConfig(top_p=top_p)).numpy()
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    assert ((kept > 1e-6) == (expected > 1e-6)).all()


def chi_square(ids: np.ndarray, p: np.ndarray) -> float:
    """How far counts are from their expectations, in standard deviations (by Wilson and Hilferty's approximation)."""
    counts, expected = np.bincount(ids, minlength=len(p)), len(ids) * p
    assert (counts[p == 0] == 0).all()
    chi2, freedom = ((counts - expected)[p > 0] ** 2 / expected[p > 0]).sum(), (p > 0).sum() - 1
    spread = 2 / (9 * freedom)
    return float(((chi2 / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5)


P = np.array([0.5, 0.0, 0.29, 0.2, 0.01, 0.0], np.float32)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("varied", ["seed", "place"])
def test_draws_come_in_the_proportions_of_the_distribution(varied: str, library: str) -> None:
    n = 20_000
    keys = [draw_key(i, 7) if varied == "seed" else draw_key(123, i) for i in range(n)]
    rows = np.broadcast_to(P, (n, len(P)))
    ids = np.asarray(draw(rows if library == "numpy" else torch.from_numpy(rows.copy()), keys))
    assert chi_square(ids, P) < 4


def test_draws_of_many_tokens_come_in_the_proportions_too() -> None:
    """Tails of a real vocabulary: by groups of tokens that are equally likely, from 1e-2 down to 1e-7 each."""
    groups = np.repeat(np.arange(5), [20, 180, 2_000, 8_000, 40_000])
    share = np.array([0.4, 0.3, 0.2, 0.09, 0.01])
    p = (share / np.bincount(groups))[groups].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(p))
    keys = [draw_key(5, place) for place in range(3_000)]
    ids = np.concatenate([draw(p[None, order], [key]) for key in keys])
    assert chi_square(groups[order[ids]], share) < 4


def test_draws_one_after_another_know_nothing_of_each_other() -> None:
    for gap in (1, 2, 2**16, 2**32):
        pairs = [(draw_key(1, place), draw_key(1, place + gap)) for place in range(10_000)]
        first, second = (draw(np.broadcast_to(P, (len(pairs), len(P))), keys) for keys in zip(*pairs, strict=True))
        assert chi_square(len(P) * first + second, np.outer(P, P).ravel()) < 4


def test_the_same_key_draws_the_same_token_from_distributions_that_are_near() -> None:
    """A draft's are; the chance of another token is at most 2 d / (1 + d), d being half the sum of the differences."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 5_000)).astype(np.float32)
    near = logits + rng.standard_normal(logits.shape).astype(np.float32) * 0.05
    one, other = (distribution(scores, SamplingConfig()) for scores in (logits, near))
    apart = float(np.abs(one - other).sum()) / 2
    assert 0.01 < apart < 0.05
    keys = [draw_key(0, place) for place in range(2_000)]
    differ = np.mean([draw(one, [key])[0] != draw(other, [key])[0] for key in keys])
    assert differ < 2 * apart / (1 + apart) + 0.015


def test_a_token_that_is_certain_is_drawn_whatever_the_key() -> None:
    certain = np.zeros((1, 3), np.float32)
    certain[0, 1] = 1
    keys = [draw_key(seed, 0) for seed in range(1000)] + [0, 2**64 - 1, 2**32 - 1, 2**64 - 2**32]
    for values in (certain, torch.from_numpy(certain)):
        assert {int(draw(values, [key])[0]) for key in keys} == {1}


def test_keys_are_splitmix64() -> None:
    """The first outputs of its authors' program for the seed 0."""
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert [sampling._mixed(number * 0x9E3779B97F4A7C15 % 2**64) for number in range(4)] == outputs
    assert draw_key(0, 5) == sampling._mixed(outputs[0] + 5)


@pytest.mark.parametrize("key", [0, 1, 2**32, 2**63 + 12_345, 2**64 - 1])
def test_a_draw_is_the_race_of_its_hashes(key: int) -> None:
    """lowbias32 in Python's whole numbers and float64; equally likely tokens, so that the order of times decides."""

    def time(token: int) -> float:
        x = (token * 0x9E3779B9 + key) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32 ^ key >> 32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return -math.log1p(-((x ^ x >> 16) + 0.5) / 2**32)

    for size in (2, 7, 1_000, 50_257):
        times = np.array([time(token) for token in range(size)])
        uniform = np.full((1, size), 1 / size, np.float32)
        for values in (uniform, torch.from_numpy(uniform)):
            assert times[int(draw(values, [key])[0])] == pytest.approx(times.min(), rel=1e-4)


def test_softmax_and_its_logarithm_of_large_scores() -> None:
    scores = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    expected = np.exp([0.0, -1.0, -2000.0]) / (1 + np.exp(-1.0))
    for values in (scores, torch.from_numpy(scores)):
        assert np.asarray(arrays.softmax(values))[0] == pytest.approx(expected, rel=1e-6)
        assert np.asarray(arrays.log_softmax(values))[0] == pytest.approx(
            [-np.log1p(np.exp(-1.0)) - far for far in (0, 1, 2000)], rel=1e-6
        )


def test_a_seed_may_be_any_number() -> None:
    keys = {draw_key(seed, place) for seed in (-1, 0, 1, 2**31, 2**64, 2**80) for place in range(3)}
    assert len(keys) == 12  # 0, 2^64 and 2^80 are one seed
    assert all(0 <= key < 2**64 for key in keys)


def test_greedy_takes_the_first_of_equals() -> None:
    assert distribution(torch.tensor([[1.0, 3.0, 3.0]]), SamplingConfig(temperature=0)).argmax().item() == 1


def test_greedy_is_the_one_token_that_the_distribution_leaves() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    seen = logits.argmax(-1)[:, None]
    for penalty in (1.0, 5.0):
        config = SamplingConfig(temperature=0, repetition_penalty=penalty)
        assert (greedy(logits, config, History(seen)) == distribution(logits, config, History(seen)).argmax(-1)).all()
