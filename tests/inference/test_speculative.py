"""Speculation: the same greedy text, the same distribution of sampled ones, and fewer forward_passes of the model."""

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from decoding import Table, continued, ids_of
from models import tiny_model

from gptcli.config.sampling import SamplingConfig
from gptcli.inference import decode, speculative
from gptcli.inference.engine import Scorer
from gptcli.inference.sampling import distribution
from gptcli.inference.sequence import Request
from gptcli.inference.speculative import ModelDrafter, NgramDrafter, Tally
from gptcli.inference.torch_engine import TorchEngine

SIZES = {"vocab_size": 23, "context_length": 24, "emb_dim": 24, "n_heads": 2}


def decoders(kind: str) -> tuple[Any, Any]:
    """The model and a smaller draft of it that guesses well now and then."""
    model = tiny_model(n_layers=3, **SIZES)
    draft = tiny_model(n_layers=1, **SIZES)
    draft.load_state_dict(
        {**draft.state_dict(), **{n: t for n, t in model.state_dict().items() if "h.0." not in n and "h." not in n}}
    )
    if kind == "torch":
        return Scorer(TorchEngine(model)), Scorer(TorchEngine(draft))
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.inference.cpu_engine import CpuEngine

    return tuple(
        Scorer(CpuEngine(m.config, {n: t.detach().numpy() for n, t in m.state_dict().items()})) for m in (model, draft)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("drafter", ["model", "ngram"])
@pytest.mark.parametrize(("kind", "prompts"), [("cpu", 50), ("torch", 6)])
def test_greedy_text_is_identical_past_the_context_too(kind: str, prompts: int, drafter: str) -> None:
    model, draft = decoders(kind)
    rng = np.random.default_rng(0)
    tally = Tally()
    for number in range(prompts):
        prompt = rng.integers(0, 23, rng.integers(1, 30)).tolist()
        penalty = 1.0 if number % 2 else 1.3
        request = Request(prompt, 40, SamplingConfig(temperature=0, repetition_penalty=penalty), seed=1)
        plain = ids_of(model, request)
        guess = ModelDrafter(draft) if drafter == "model" else NgramDrafter()
        assert ids_of(model, request, guess, tally=tally) == plain
    assert 0 < tally.accepted < tally.proposed  # both branches were accepted
    assert tally.tokens + tally.prefilled == prompts * 40
    assert tally.forward_passes < tally.tokens


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("kind", "prompts"), [("cpu", 50), ("torch", 6)])
def test_greedy_text_is_identical_with_the_model_s_own_packed_twin_as_the_draft(
    kind: str, prompts: int, bits: int
) -> None:
    model, _ = decoders(kind)
    guess = speculative.quantized_drafter(model, bits)
    rng = np.random.default_rng(0)
    tally = Tally()
    for number in range(prompts):
        prompt = rng.integers(0, 23, rng.integers(1, 30)).tolist()
        sampling = SamplingConfig(temperature=0, repetition_penalty=1.0 if number % 2 else 1.3)
        request = Request(prompt, 40, sampling, seed=1, overflow="slide" if number % 3 else "crop")
        plain = ids_of(model, request)
        assert ids_of(model, request, guess, tally=tally) == plain
    assert tally.proposed / 2 < tally.accepted < tally.proposed
    assert tally.forward_passes < 0.7 * tally.tokens


def test_a_twin_drafts_under_the_layer_contrast_too() -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    model, _ = decoders("cpu")
    contrasted = Scorer(model.engine, contrast=1)
    request = Request([1, 2, 3], 20, SamplingConfig(temperature=0), seed=1)
    plain = ids_of(contrasted, request)
    tally = Tally()
    assert ids_of(contrasted, request, speculative.quantized_drafter(contrasted, 8), tally=tally) == plain
    assert tally.accepted > 0.7 * tally.proposed  # it draws from the same contrast


def test_a_draft_that_is_never_right_is_soon_asked_for_one_token_at_a_time() -> None:
    circle = Table(np.roll(np.eye(3), 1, axis=1) * 20)
    wrong = Table(np.eye(3) * 20)
    tally = Tally()
    request = Request([0], 100, SamplingConfig(temperature=0), seed=0)
    assert len(continued(circle, request, ModelDrafter(Scorer(wrong)), tally)) == 100
    assert tally.accepted == 0
    assert tally.proposed < 1.5 * tally.forward_passes


MODEL = [[0.0, 1.0, -1.0], [0.5, 0.0, 1.0], [1.0, -0.5, 0.0]]
DRAFT = [[1.0, 0.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 0.5, -1.0]]


@pytest.mark.parametrize("drafter", ["model", "ngram", "quantized"])
@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_sampled_text_is_identical_too(kind: str, drafter: str) -> None:
    model, draft = decoders(kind)
    rng = np.random.default_rng(1)
    quantized = speculative.quantized_drafter(model, 8)
    tally = Tally()
    for number in range(20 if kind == "cpu" else 6):
        prompt = rng.integers(0, 23, rng.integers(1, 30)).tolist()
        sampling = [
            SamplingConfig(temperature=0.3),
            SamplingConfig(temperature=0.7, top_k=5),
            SamplingConfig(top_p=0.8, repetition_penalty=1.2),
            SamplingConfig(min_p=0.1),
        ][number % 4]
        request = Request(prompt, 40, sampling, seed=number, eot_id=3, min_new_tokens=number, n_candidates=2)
        plain = continued(model, request)
        guess = {"model": ModelDrafter(draft), "ngram": NgramDrafter(), "quantized": quantized}[drafter]
        drafted = continued(model, request, guess, tally)
        assert [token.id for token in drafted] == [token.id for token in plain]
        for one, other in zip(drafted, plain, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-5)
            assert [i for i, _ in one.candidates] == [i for i, _ in other.candidates]
    assert tally.accepted > 0
    assert tally.accepted > 0.9 * tally.proposed if drafter == "quantized" else tally.accepted < tally.proposed


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=2)], ids=str)
@pytest.mark.parametrize("drafter", ["model", "ngram", "none"])
def test_sampled_texts_come_in_the_exact_proportions(drafter: str, sampling: SamplingConfig) -> None:
    """Every text of four tokens, counted against the product of its probabilities."""
    model, runs, length = Table(MODEL), 4_000, 4
    table = distribution(model.rows, sampling)
    counts: Counter[tuple[int, ...]] = Counter()
    tally = Tally()
    prompt = [0, 1, 0, 2, 1, 0]
    for seed in range(runs):
        guess = ModelDrafter(Scorer(Table(DRAFT)), cost=0.0) if drafter == "model" else NgramDrafter(shortest=1)
        request = Request(prompt, length, sampling, seed=seed)
        drafted = {} if drafter == "none" else {"drafter": guess, "tally": tally, "ahead": 3}
        counts[tuple(ids_of(model, request, **drafted))] += 1
    assert_proportions(
        counts,
        {
            text: float(np.prod([table[last, new] for last, new in zip([0, *text], text, strict=False)]))
            for text in product(range(3), repeat=length)
        },
    )
    assert drafter == "none" or 0 < tally.accepted < tally.proposed


def assert_proportions(counts: Counter[tuple[int, ...]], shares: dict[tuple[int, ...], float]) -> None:
    """Hold texts that were counted against the exact share of each."""
    runs = counts.total()
    possible = {text: runs * share for text, share in shares.items() if share > 0}
    assert counts.keys() <= possible.keys()
    chi2 = sum((counts[text] - expected) ** 2 / expected for text, expected in possible.items())
    freedom = len(possible) - 1
    assert chi2 < freedom + 4.5 * (2 * freedom) ** 0.5  # one run in a hundred thousand is above


def test_texts_sampled_with_a_twin_come_in_the_exact_proportions() -> None:
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.inference.cpu_engine import CpuEngine

    module = tiny_model(vocab_size=3, context_length=8, emb_dim=8, n_heads=1, n_layers=1, spread=0.5)
    model = Scorer(CpuEngine(module.config, {n: t.detach().numpy() for n, t in module.state_dict().items()}))
    sampling, prompt, length, runs = SamplingConfig(temperature=1.2), [0, 1], 3, 4_000
    shares = {}
    for text in product(range(3), repeat=length):
        table = distribution(model.forward([0], [[*prompt, *text]], [0], every=True), sampling)[len(prompt) - 1 :]
        shares[text] = float(np.prod([table[place, token] for place, token in enumerate(text)]))
    guess, tally = speculative.quantized_drafter(model, 4), Tally()
    counts = Counter(
        tuple(ids_of(model, Request(prompt, length, sampling, seed), guess, tally=tally)) for seed in range(runs)
    )
    assert_proportions(counts, shares)
    assert 0.8 * tally.proposed < tally.accepted < tally.proposed


class Clock:
    """Seconds that pass only when something is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("cost", "worthwhile"), [(0.1, True), (3.0, False)])
def test_a_draft_on_trial_is_let_go_for_a_while_where_it_makes_the_text_slower(
    cost: float, worthwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(decode, "perf_counter", clock)

    class Timed(Table):
        def __init__(self, seconds: float) -> None:
            super().__init__(np.roll(np.eye(3), 1, axis=1) * 20, context_length=400)
            self.seconds = seconds

        def forward(self, *what: Any, **how: Any) -> np.ndarray:
            clock.now += self.seconds
            return super().forward(*what, **how)

    model, draft, tally = Timed(1.0), Timed(cost), Tally()
    request = Request([0], 300, SamplingConfig(temperature=0), seed=0)
    guess = speculative.OnTrial(ModelDrafter(Scorer(draft), cost=0.1), tally)
    ids = ids_of(model, request, guess, tally=tally)
    assert ids == [(i + 1) % 3 for i in range(300)]
    if worthwhile:
        assert len(tally.plain) <= 3  # the last token perhaps, behind which there is none
        assert tally.speed_up() > 2  # type: ignore[operator]
    else:
        assert len(tally.plain) > 200  # two attempts, and rests of 64 and 128
        assert 2 * 16 <= tally.proposed < 2 * 16 + 20


def test_text_that_repeats_is_read_in_far_fewer_steps() -> None:
    """A model that goes round in a circle: after one round the lookup is right every time."""
    circle = Table(np.roll(np.eye(16), 1, axis=1) * 20, context_length=200)
    request = Request([0], 150, SamplingConfig(temperature=0), seed=0)
    tally = Tally()
    ids = ids_of(circle, request, NgramDrafter(), tally=tally)
    assert ids == [(i + 1) % 16 for i in range(150)]
    assert tally.tokens / tally.forward_passes > 3


def test_end_of_text_among_the_proposals_ends_it() -> None:
    circle = Table(np.roll(np.eye(3), 1, axis=1) * 20)
    request = Request([0, 1, 2, 0, 1], 10, SamplingConfig(temperature=0), seed=0, eot_id=0)
    assert ids_of(circle, request, NgramDrafter()) == [2]
    held = Request([0, 1, 2, 0, 1], 6, SamplingConfig(temperature=0), seed=0, eot_id=0, min_new_tokens=4)
    plain = ids_of(circle, held)
    assert ids_of(circle, held, NgramDrafter()) == plain
    assert len(plain) >= 4
