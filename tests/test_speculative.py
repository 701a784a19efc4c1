"""Speculation: the same greedy text, the same distribution of sampled ones, and fewer readings of the model."""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from models import tiny_model

from gptcli import decoding, speculative
from gptcli.config import GPTConfig, SamplingConfig
from gptcli.continuation import Request
from gptcli.sampling import distribution
from gptcli.speculative import ModelDrafter, NgramDrafter, Tally
from gptcli.torch_engine import TorchEngine

SIZES = {"vocab_size": 23, "context_length": 24, "emb_dim": 24, "n_heads": 2}


def decoders(kind: str) -> tuple[Any, Any]:
    """The model and a smaller draft of it that guesses well now and then."""
    model = tiny_model(n_layers=3, **SIZES)
    draft = tiny_model(n_layers=1, **SIZES)
    draft.load_state_dict(
        {**draft.state_dict(), **{n: t for n, t in model.state_dict().items() if "h.0." not in n and "h." not in n}}
    )
    if kind == "torch":
        return decoding.SlotDecoder(TorchEngine(model)), decoding.SlotDecoder(TorchEngine(draft))
    pytest.importorskip("numba")
    from gptcli.engine import Engine

    return tuple(
        decoding.SlotDecoder(Engine(m.config, {n: t.detach().numpy() for n, t in m.state_dict().items()}))
        for m in (model, draft)
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
        plain = [token.id for token in decoding.decode(model, request)]
        guess = ModelDrafter(draft) if drafter == "model" else NgramDrafter()
        assert [token.id for token in speculative.decode(model, guess, request, tally)] == plain
    assert 0 < tally.taken < tally.proposed  # both branches were taken
    assert tally.tokens == prompts * 40
    assert tally.readings < tally.tokens


class Table:
    """A decoder whose logits depend on the last token alone: every probability is known exactly."""

    config = GPTConfig(vocab_size=3, context_length=16, emb_dim=1, n_heads=1, n_layers=1)

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        self.logits = np.array(logits, np.float32)
        self.length = 0
        self.read_tokens = 0

    def read(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
        self.length += len(ids)
        self.read_tokens += 1
        return self.logits[list(ids)] if every else self.logits[[ids[-1]]]

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


MODEL = [[0.0, 1.0, -1.0], [0.5, 0.0, 1.0], [1.0, -0.5, 0.0]]
DRAFT = [[1.0, 0.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 0.5, -1.0]]


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=2)], ids=str)
@pytest.mark.parametrize("drafter", ["model", "ngram"])
def test_sampled_texts_come_in_the_exact_proportions(drafter: str, sampling: SamplingConfig) -> None:
    """Every text of four tokens, counted against the product of its probabilities."""
    model, runs, length = Table(MODEL), 4_000, 4
    table = distribution(model.logits, sampling)
    counts: Counter[tuple[int, ...]] = Counter()
    tally = Tally()
    prompt = [0, 1, 0, 2, 1, 0]
    for seed in range(runs):
        guess = ModelDrafter(Table(DRAFT)) if drafter == "model" else NgramDrafter(shortest=1)
        request = Request(prompt, length, sampling, seed=seed)
        counts[tuple(token.id for token in speculative.decode(model, guess, request, tally, ahead=3))] += 1
    chi2 = possible = 0.0
    for text in product(range(3), repeat=length):
        expected = runs * float(np.prod([table[last, new] for last, new in zip([0, *text], text, strict=False)]))
        if expected == 0:
            assert counts[text] == 0
        else:
            chi2 += (counts[text] - expected) ** 2 / expected
            possible += 1
    freedom = possible - 1
    assert chi2 < freedom + 4.5 * (2 * freedom) ** 0.5  # one run in a hundred thousand is above
    assert 0 < tally.taken < tally.proposed


def test_text_that_repeats_is_read_in_far_fewer_steps() -> None:
    """A model that goes round in a circle: after one round the lookup is right every time."""
    circle = Table(np.roll(np.eye(16), 1, axis=1) * 20)
    circle.config = GPTConfig(vocab_size=16, context_length=200, emb_dim=1, n_heads=1, n_layers=1)
    request = Request([0], 150, SamplingConfig(temperature=0), seed=0)
    tally = Tally()
    ids = [token.id for token in speculative.decode(circle, NgramDrafter(), request, tally)]
    assert ids == [(i + 1) % 16 for i in range(150)]
    assert tally.tokens / tally.readings > 3


def test_end_of_text_among_the_proposals_ends_it() -> None:
    circle = Table(np.roll(np.eye(3), 1, axis=1) * 20)
    request = Request([0, 1, 2, 0, 1], 10, SamplingConfig(temperature=0), seed=0, eot_id=0)
    assert [token.id for token in speculative.decode(circle, NgramDrafter(), request, Tally())] == [2]
    held = Request([0, 1, 2, 0, 1], 6, SamplingConfig(temperature=0), seed=0, eot_id=0, min_new_tokens=4)
    plain = [token.id for token in decoding.decode(circle, held)]
    assert [token.id for token in speculative.decode(circle, NgramDrafter(), held, Tally())] == plain
    assert len(plain) >= 4
