"""The loop: requests that join and leave between two steps, and drafts that change no text."""

from typing import Any

import numpy as np
import pytest
import torch
from decoding import ids_of
from models import tiny_model
from ragged import ragged_requests

from gptcli.config.sampling import SamplingConfig
from gptcli.errors import GptcliError
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Engine, Scorer
from gptcli.inference.sequence import Request
from gptcli.inference.speculative import NgramDrafter, quantized_drafter
from gptcli.inference.torch_engine import TorchEngine

GREEDY = SamplingConfig(temperature=0)


def engine(kind: str, slots: int = 1, **shape: Any) -> Engine:
    model = tiny_model(**shape)
    if kind == "torch":
        return TorchEngine(model, slots=slots)
    pytest.importorskip("numba", exc_type=ImportError)
    from gptcli.inference.cpu_engine import CpuEngine

    return CpuEngine(model.config, {n: t.detach().numpy() for n, t in model.state_dict().items()}, slots=slots)


@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_requests_that_join_and_leave_in_mid_flight_change_no_text(kind: str) -> None:
    requests = ragged_requests(common=[(11 * i) % 61 for i in range(18)])
    alone = [ids_of(engine(kind), request) for request in requests]
    rng = np.random.default_rng(1)
    scheduler = Scheduler(Scorer(engine(kind, slots=3)))
    sequences, left = [], set()
    for number, request in enumerate(requests):
        sequences.append(scheduler.add(request))
        for _ in range(int(rng.integers(0, 12))):
            scheduler.step()
        if number % 4 == 3:  # one that is under way, has ended or still waits leaves
            left.add(number - 1)
            scheduler.cancel(sequences[number - 1])
            assert sequences[number - 1].done
    while not all(sequence.done for sequence in sequences):
        for sequence, _ in scheduler.step():
            assert sequences.index(sequence) not in left
    for number, (sequence, expected) in enumerate(zip(sequences, alone, strict=True)):
        ids = [token.id for token in sequence.tokens]
        assert ids == (expected[: len(ids)] if number in left else expected)
    assert any(0 < len(sequences[number].tokens) < len(alone[number]) for number in left)


@pytest.mark.parametrize(
    ("prompts", "passes"),
    [
        ([[1, 2], [3], [4, 5, 6]], [[2, 1, 3]]),
        ([[n] * 100 for n in range(1, 5)], [[100], [100], [100], [100]]),  # two are more than a pass
        ([[*range(20), 50], [*range(20), 51], [7]], [[21], [1, 1]]),  # the second prompt takes the prefix of the first
    ],
    ids=["short", "long", "with a prefix"],
)
def test_prompts_that_wait_are_read_in_one_pass(
    monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], passes: list[list[int]]
) -> None:
    requests = [Request(ids, 4, GREEDY, seed=0) for ids in prompts]
    alone = [ids_of(engine("cpu", context_length=128), request) for request in requests]
    cpu = engine("cpu", slots=len(prompts), context_length=128)
    read: list[list[int]] = []
    forward = cpu.forward

    def counted(slots: Any, ids: Any, positions: Any, **options: Any) -> Any:
        read.append([len(row) for row in ids])
        return forward(slots, ids, positions, **options)

    monkeypatch.setattr(cpu, "forward", counted)
    scheduler = Scheduler(Scorer(cpu))
    sequences = [scheduler.add(request) for request in requests]
    scheduler.step()
    assert read == passes
    while not all(sequence.done for sequence in sequences):
        scheduler.step()
    assert [[token.id for token in sequence.tokens] for sequence in sequences] == alone


@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_two_texts_may_be_iterated_in_turns_on_one_slot_or_two(kind: str) -> None:
    requests = [Request([n, 2, 3], 12, SamplingConfig(), seed=n) for n in range(2)]
    alone = [ids_of(engine(kind), request) for request in requests]
    for slots in (1, 2):
        scheduler = Scheduler(Scorer(engine(kind, slots)))
        pairs = zip(*(generate(scheduler, request) for request in requests), strict=True)
        assert [[token.id for token in row] for row in zip(*pairs, strict=True)] == alone


def test_a_text_that_is_closed_leaves_its_slot_to_the_next() -> None:
    scheduler = Scheduler(Scorer(engine("torch")))
    first = generate(scheduler, Request([1, 2], 30, GREEDY, seed=0))
    next(first)
    first.close()
    request = Request([3, 4], 5, GREEDY, seed=0)
    assert [token.id for token in generate(scheduler, request)] == ids_of(engine("torch"), request)
    assert not scheduler.step()


def test_an_error_ends_its_own_text_alone() -> None:
    scheduler = Scheduler(Scorer(engine("torch", slots=2)))
    full = scheduler.add(Request([1] * 18, 9, GREEDY, seed=0, overflow="error"))
    request = Request([1, 2, 3], 9, GREEDY, seed=0)
    other = scheduler.add(request)
    while not (full.done and other.done):
        scheduler.step()
    assert "context holds 20" in str(full.error)
    assert other.error is None
    assert [token.id for token in other.tokens] == ids_of(engine("torch"), request)
    none_left = Request([1, 2], 99, SamplingConfig(no_repeat_ngram_size=1), seed=0)
    with pytest.raises(GptcliError, match="Every token would repeat 1 tokens"):
        list(generate(Scheduler(Scorer(engine("torch"))), none_left))


@pytest.mark.parametrize("kind", ["cpu", "torch"])
def test_drafts_of_several_texts_at_once_change_none(kind: str) -> None:
    rng = np.random.default_rng(2)
    requests = [Request(rng.integers(0, 9, 12).tolist(), 30, GREEDY, seed=n, eot_id=4) for n in range(5)]
    for draft in ("ngram", "int8"):
        scorer = Scorer(engine(kind, slots=2))
        scheduler = Scheduler(scorer, NgramDrafter(shortest=1) if draft == "ngram" else quantized_drafter(scorer, 8))
        sequences = [scheduler.add(request) for request in requests]
        while not all(sequence.done for sequence in sequences):
            scheduler.step()
        found = [[token.id for token in sequence.tokens] for sequence in sequences]
        assert found == [ids_of(engine(kind), request) for request in requests]
        assert scheduler.tally.accepted > 0


def test_the_draft_never_changes_the_text() -> None:
    """24 prompts in float32; in 16 bits, where the verification rounds otherwise, a draft is refused."""
    rng = np.random.default_rng(0)
    whole, half = (TorchEngine(tiny_model(context_length=64).to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    for seed in range(24):
        request = Request(rng.integers(0, 9, 20).tolist(), 40, GREEDY, seed=seed)
        assert ids_of(whole, request, NgramDrafter()) == ids_of(whole, request)
    for drafter in (NgramDrafter(), quantized_drafter(Scorer(half), 8)):
        with pytest.raises(GptcliError, match="A draft would change some texts") as refused:
            Scheduler(Scorer(half), drafter)
        assert "float32" in refused.value.hint


def test_an_option_that_the_device_does_not_know_takes_the_general_way() -> None:
    from gptcli.inference.device_draws import filters_of

    def possible(**options: Any) -> bool:
        return filters_of([Request([1], 5, SamplingConfig(**options), seed=0)])[0]

    assert possible(repetition_penalty=1.2)
    assert possible(top_k=4, top_p=0.9, min_p=0.1, temperature=0.5)
    for options in ({"frequency_penalty": 0.1}, {"presence_penalty": 0.1}, {"no_repeat_ngram_size": 3}):
        assert not possible(**options)
        assert not possible(**options, repetition_penalty=1.2)
