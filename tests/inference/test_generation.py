"""Cached generation against uncached generation under the same rule, and what a seed promises."""

from itertools import pairwise

import pytest
import torch
from decoding import ids_of as ids_alone
from models import tiny_model
from uncached import continuation

from gptcli.config.sampling import Overflow, SamplingConfig
from gptcli.errors import GptcliError
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sequence import Request, Window
from gptcli.inference.torch_engine import TorchEngine

GREEDY, SAMPLED = SamplingConfig(temperature=0), SamplingConfig(temperature=1.2, top_k=20, repetition_penalty=1.1)


def ids_of(model: torch.nn.Module, prompt: list[int], **options: object) -> list[int]:
    defaults = {"max_new_tokens": 50, "sampling": GREEDY, "seed": 3}
    return [token.id for token in continuation(model, prompt, **(defaults | options))]  # type: ignore[arg-type]


@pytest.mark.parametrize("overflow", ["slide", "crop"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("length", [1, 7, 19, 20, 33])
def test_cached_equals_uncached_before_and_after_the_window_is_full(
    overflow: Overflow, sampling: SamplingConfig, length: int
) -> None:
    model = tiny_model()
    prompt = [(7 * i) % 61 for i in range(length)]
    options = {"overflow": overflow, "sampling": sampling}
    cached, uncached = ids_of(model, prompt, **options), ids_of(model, prompt, use_cache=False, **options)
    assert cached == uncached
    assert len(cached) == 50
    assert len(set(cached)) > 1  # a constant sequence would prove little


def test_crop_is_the_courses_loop() -> None:
    model = tiny_model()
    prompt = [5, 9, 2]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(40):
            logits = model(ids[:, -model.config.context_length :])[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert ids_of(model, prompt, max_new_tokens=40, overflow="crop") == ids[0, 3:].tolist()


def test_slide_drops_the_older_half_and_then_costs_one_token_a_step() -> None:
    window = Window(range(8), 8, "slide")
    lengths = [len(window.ids)]
    moves = []
    for token in range(8, 20):
        moves.append(window.append(token))
        lengths.append(len(window.ids))
    assert window.ids[-1] == 19
    assert moves == [True, False, False, False, False] * 2 + [True, False]
    assert max(lengths) == 8
    assert all(after == before + 1 or after == 4 for before, after in pairwise(lengths))


def test_error_refuses_what_does_not_fit_and_nothing_else() -> None:
    model = tiny_model()
    assert len(ids_of(model, [1] * 15, max_new_tokens=6, overflow="error")) == 6  # the last is never read
    with pytest.raises(GptcliError, match="context holds 20"):
        ids_of(model, [1] * 15, max_new_tokens=7, overflow="error")
    with pytest.raises(GptcliError, match="grown to 21"):
        ids_of(model, [1] * 21, max_new_tokens=1, overflow="error")


def test_a_context_of_one_token_works_under_every_rule() -> None:
    model = tiny_model(context_length=1)
    assert ids_of(model, [4, 5], overflow="slide") == ids_of(model, [5], overflow="crop", use_cache=False)


def test_the_same_seed_gives_the_same_tokens_and_another_one_others() -> None:
    model = tiny_model()
    runs = [ids_of(model, [1, 2], sampling=SamplingConfig(), seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("overflow", ["slide", "crop"])
def test_a_beginning_that_has_been_overwritten_is_read_again(overflow: Overflow) -> None:
    """Samples that outgrow the context, of prompts in turn, with one decoder and with a fresh one each."""
    model = tiny_model()
    prompts = [[(7 * i) % 61 for i in range(length)] for length in (7, 7, 20, 20, 1, 1, 7)]
    requests = [Request(prompt, 5 if n % 2 else 30, SAMPLED, n, overflow=overflow) for n, prompt in enumerate(prompts)]
    shared = Scheduler(Scorer(TorchEngine(model)))
    for request in [*requests, *requests]:
        assert [token.id for token in generate(shared, request)] == ids_alone(TorchEngine(model), request)


def test_end_of_text_ends_and_is_not_yielded() -> None:
    model = tiny_model()
    free = ids_of(model, [1, 2], sampling=SAMPLED)
    eot = free[10]
    first = free.index(eot)
    assert ids_of(model, [1, 2], sampling=SAMPLED, eot_id=eot) == free[:first]


def test_min_new_tokens_holds_end_of_text_back() -> None:
    model = tiny_model()
    eot = ids_of(model, [1, 2])[0]
    assert ids_of(model, [1, 2], eot_id=eot) == []
    forced = ids_of(model, [1, 2], eot_id=eot, min_new_tokens=5)
    assert len(forced) >= 5
    assert eot not in forced


def test_candidates_are_the_likeliest_and_the_drawn_one_has_its_share() -> None:
    model = tiny_model()
    for token in continuation(model, [3], max_new_tokens=8, sampling=SamplingConfig(top_k=4), seed=0, n_candidates=5):
        shares = dict(token.candidates)
        assert len(shares) == 4  # the fifth is impossible under top-k 4
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert shares[token.id] == pytest.approx(token.probability)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(GptcliError, match="empty"):
        ids_of(tiny_model(), [])
