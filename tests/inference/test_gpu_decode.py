"""Decoding on a CUDA GPU: graphs of Triton's kernels against the plain engine. `python -m pytest -m gpu` runs these."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from decoding import ids_of, read, step, together
from draw_check import check_draws
from models import tiny_model

from gptcli.config.sampling import SamplingConfig
from gptcli.inference import speculative
from gptcli.inference.decode import Scheduler, generate
from gptcli.inference.engine import Scorer
from gptcli.inference.sequence import Request
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.gpt import GPTModel
from gptcli.model.quantized import PackedModel

pytestmark = pytest.mark.gpu
SHAPES: dict[str, dict[str, Any]] = {
    "odd": {"context_length": 300},
    "even": {"context_length": 300, "emb_dim": 128, "n_heads": 2, "vocab_size": 503},
    "wide": {"context_length": 300, "emb_dim": 1600, "n_heads": 25, "vocab_size": 1003},
    "exact": {"context_length": 300, "emb_dim": 96, "n_heads": 3, "activation": "gelu", "scale_attn_by_layer": True},
    "relu": {
        "context_length": 300,
        "emb_dim": 64,
        "n_heads": 4,
        "activation": "relu",
        "qkv_bias": False,
        "tie_weights": False,
        "scale_attn": False,
    },
}
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = [  # each takes about twenty compilations
    *(("even", bits, dtype) for bits in (32, 8, 4) for dtype in (F32, BF16, F16)),
    *((shape, bits, dtype) for shape, dtype in (("odd", F32), ("wide", BF16)) for bits in (32, 8, 4)),
    ("odd", 32, BF16),
    ("exact", 32, F32),
    ("relu", 32, F32),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False


def model_of(shape: str, dtype: torch.dtype, bits: int = 32) -> GPTModel:
    """On the GPU; its weights are what ``dtype`` holds."""
    model = tiny_model(spread=0.02 if shape == "wide" else 0.15, **SHAPES[shape])
    if bits == 32:
        return model.to("cuda", dtype)
    return PackedModel(model.config, {n: t.numpy() for n, t in model.state_dict().items()}, bits, "cuda", dtype)


def engine_of(model: GPTModel, slots: int = 1, **options: Any) -> TorchEngine:
    """The engine under test, which says nothing and keeps its kernels."""

    def report(line: str) -> None:
        raise AssertionError(line)

    engine = TorchEngine(model, slots=slots, report=report, **options)
    assert engine._kernels is not None
    return engine


def plain(model: GPTModel, slots: int = 1) -> TorchEngine:
    return TorchEngine(model, slots=slots, kernels=False, capture=False)


def reference(model: GPTModel) -> TorchEngine:
    """The plain engine in float32 over the model's own weights: in 16 bits the plain engine errs as much as kernels."""
    return plain(copy.deepcopy(model).float())


def some_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 61, count).tolist()


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = float(expected.float().abs().max())
    worst = float((found.float() - expected.float()).abs().max())
    assert worst <= TOLERANCE[dtype] * scale, f"{worst / scale:.2e} of the largest logit"
    if dtype == torch.float32:
        assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize(("shape", "bits", "dtype"), CASES)
def test_steps_equal_the_plain_engine(shape: str, bits: int, dtype: torch.dtype) -> None:
    """Single tokens, several of one text, several texts; what the cache holds is each other's."""
    model = model_of(shape, dtype, bits)
    ids = some_ids(30)
    expected = read(reference(model), 0, ids, 0, every=True).clone()
    engine = engine_of(model)
    for count in (1, 3, 8):
        parts = [read(engine, 0, ids[at : at + count], at, every=True).clone() for at in range(0, 24, count)]
        assert_near(torch.cat(parts), expected[:24], dtype)
    several = engine_of(model, slots=3)
    for at in range(6):
        found = step(several, [ids[at]] * 2, [at] * 2, [2, 0])
        assert_near(found, expected[[at, at]], dtype)


@pytest.mark.parametrize(("slots", "bits"), [(8, 32), (8, 8), (8, 4), (20, 32), (40, 4), (128, 32), (128, 8)])
def test_steps_of_few_rows_equal_the_plain_engine(slots: int, bits: int) -> None:
    """In every size of a block of rows, with rows that take no part."""
    model = model_of("wide", BF16, bits)
    ids = some_ids(4)
    expected = read(reference(model), 0, ids, 0, every=True).clone()
    engine = engine_of(model, slots=slots)
    some = [slot for slot in range(slots) if slot % 5 != 1]
    for at in range(4):
        found = step(engine, [ids[at]] * len(some), [at] * len(some), some)
        assert_near(found, expected[[at] * len(some)], BF16)


@pytest.mark.parametrize(("shape", "bits", "dtype"), CASES)
def test_prompts_equal_the_plain_engine(shape: str, bits: int, dtype: torch.dtype) -> None:
    """Every time they come: the third time by a graph of a padded length. The cache goes on from them."""
    model = model_of(shape, dtype, bits)
    slow, engine = reference(model), engine_of(model, slots=2)
    for turn in range(5):
        ids = some_ids(200 + turn, seed=turn)
        expected = read(slow, 0, ids, 0).clone()
        assert_near(read(engine, turn % 2, ids, 0), expected, dtype)
        expected = read(slow, 0, [7], len(ids)).clone()
        assert_near(step(engine, [7], [len(ids)], [turn % 2]), expected, dtype)


def test_prompts_of_any_length_equal_the_plain_engine() -> None:
    """Shorter than the shortest padded length, as long, between two, and longer than the longest that fits."""
    model = model_of("even", BF16)
    slow, engine = reference(model), engine_of(model)
    for count in (3, 64, 200, 300):
        ids = some_ids(count)
        assert_near(read(engine, 0, ids, 0), read(slow, 0, ids, 0).clone(), BF16)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 290])
def test_attention_in_parts_reads_texts_of_any_length(length: int) -> None:
    model = model_of("even", torch.float32)
    ids = some_ids(length + 1)
    expected = read(plain(model), 0, ids, 0)
    engine = engine_of(model)
    read(engine, 0, ids[:-1], 0)
    assert_near(read(engine, 0, ids[-1:], length), expected, torch.float32)


def test_draws_are_those_of_sampling() -> None:
    check_draws("cuda")


SAMPLINGS = [
    SamplingConfig(0),
    SamplingConfig(0.9),
    SamplingConfig(1.1, top_k=9),
    SamplingConfig(0.9, top_p=0.8),
    SamplingConfig(1.0, min_p=0.05, repetition_penalty=1.3),
    SamplingConfig(0, repetition_penalty=1.2),
]


@pytest.mark.parametrize("number", range(len(SAMPLINGS)))
def test_texts_drawn_on_the_device_are_those_drawn_on_the_host(number: int) -> None:
    """Ended by a token, not ended before its time, past the context, twice from one engine."""
    model, sampling = model_of("even", torch.float32), SAMPLINGS[number]
    slow, engine = plain(model), engine_of(model)
    for request in (
        Request(some_ids(5), 60, sampling, seed=number, eot_id=4, min_new_tokens=20),
        Request(some_ids(280), 60, sampling, seed=number + 100),
        Request(some_ids(299), 5, sampling, seed=number + 200, overflow="crop"),
    ):
        expected = ids_of(slow, request)
        assert ids_of(engine, request) == expected
        assert ids_of(engine, request) == expected


@pytest.mark.parametrize("slots", [1, 3, 20])
@pytest.mark.parametrize("alike", [True, False])
def test_each_text_is_what_it_would_be_alone(slots: int, alike: bool) -> None:
    model = model_of("even", torch.float32)
    rng = np.random.default_rng(0)
    common = some_ids(20)
    requests = [
        Request(
            [*(common if n % 3 == 0 else ()), *rng.integers(0, 61, rng.integers(1, 30)).tolist()],
            int(rng.integers(1, 50)),
            SamplingConfig(0.5 * (n % 3)) if alike else SAMPLINGS[n % 3],
            seed=n,
            eot_id=n if n % 4 == 0 else None,
        )
        for n in range(14)
    ]
    slow, engine = plain(model), engine_of(model, slots)
    expected = [ids_of(slow, request) for request in requests]
    assert together(engine, requests) == expected


def test_a_text_that_is_dropped_leaves_the_engine_ready() -> None:
    model = model_of("even", torch.float32)
    engine = engine_of(model)
    scheduler = Scheduler(Scorer(engine))
    request = Request(some_ids(12), 30, SamplingConfig(0.9), seed=1)
    expected = ids_of(plain(model), request)
    begun = generate(scheduler, request)
    assert [next(begun).id for _ in range(4)] == expected[:4]
    del begun
    assert [token.id for token in generate(scheduler, request)] == expected


@pytest.mark.parametrize("draft", ["ngram", 8, 4])
def test_drafts_change_no_text(draft: str | int) -> None:
    model = model_of("even", torch.float32)
    scorer = Scorer(engine_of(model))
    drafter = speculative.NgramDrafter() if isinstance(draft, str) else speculative.quantized_drafter(scorer, draft)
    for sampling in (SamplingConfig(0), SamplingConfig(0.8)):
        request = Request([1, 2, 3, 1, 2, 3, 1], 40, sampling, seed=3)
        assert ids_of(scorer, request, drafter) == ids_of(plain(model), request)


def test_a_fork_goes_its_own_way() -> None:
    model = model_of("even", torch.float32)
    ids = some_ids(20)
    engine = engine_of(model, slots=2)
    read(engine, 0, ids, 0)
    engine.fork(0, 1, 20)
    for slot, token in ((0, 6), (1, 7)):
        expected = read(plain(model), 0, [*ids, token], 0)
        assert_near(step(engine, [token], [20], [slot]), expected, torch.float32)


def test_numbers_that_are_not_finite_are_refused() -> None:
    from gptcli.errors import GptcliError

    model = model_of("even", torch.float32)
    with torch.no_grad():
        model.wte.weight[17] = torch.nan
    engine = engine_of(model)
    with pytest.raises(GptcliError, match="NaN or infinite logits"):
        ids_of(engine, Request(some_ids(5), 10, SamplingConfig(0.9), seed=0))
