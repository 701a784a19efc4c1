"""The arithmetic against the real model, a real training step, and the figures that papers print."""

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gptcli.config.model import GPT3_PRESETS, PRESETS, GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.data.dataset import Corpus
from gptcli.errors import GptcliError
from gptcli.model import cost, loss, quantization
from gptcli.model import parameters as shapes
from gptcli.model.gpt import GPTModel, KVCache
from gptcli.training.trainer import train

TINY = GPTConfig(vocab_size=65, context_length=64, emb_dim=128, n_heads=4, n_layers=4)


def on_meta(config: GPTConfig) -> GPTModel:
    with torch.device("meta"):
        return GPTModel(config, init=None)


# Parameters


@pytest.mark.parametrize(
    ("size", "tied"),
    [("small", 124_439_808), ("medium", 354_823_168), ("large", 774_030_080), ("xl", 1_557_611_200)],
)
def test_published_totals(size: str, tied: int) -> None:
    assert cost.parameter_count(PRESETS[size]) == tied


def test_feed_forward_of_another_width() -> None:
    config = PRESETS["tiny"].with_changes(ffn_dim=300)
    real = {name: tuple(parameter.shape) for name, parameter in on_meta(config).state_dict().items()}
    assert shapes.parameter_shapes(config) == real


def test_published_totals_of_small_with_its_own_head() -> None:
    untied = PRESETS["small"].with_changes(tie_weights=False)
    assert cost.parameter_count(untied) == 163_037_184
    assert cost.parameter_count(untied.with_changes(qkv_bias=False)) == 163_009_536


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", cost.SIZES)
def test_every_parameter_of_the_real_model_is_there_with_its_shape(
    size: str, qkv_bias: bool, tie_weights: bool
) -> None:
    config = cost.size_named(size).with_changes(qkv_bias=qkv_bias, tie_weights=tie_weights)
    real = {name: tuple(parameter.shape) for name, parameter in on_meta(config).state_dict().items()}
    assert shapes.parameter_shapes(config) == real


@pytest.mark.parametrize("size", PRESETS)
def test_totals_are_those_of_the_real_model(size: str) -> None:
    config, model = PRESETS[size], on_meta(PRESETS[size])
    everything = sum(p.numel() for p in model.parameters())
    outside = model.wte.weight.numel() + model.wpe.weight.numel()
    assert cost.parameter_count(config) == everything
    assert cost.non_embedding_parameter_count(config) == everything - outside
    assert cost.non_embedding_parameter_count(config.with_changes(tie_weights=False)) == everything - outside
    assert cost.weight_bytes(config, "float32") == sum(p.nbytes for p in model.parameters())
    assert cost.weight_bytes(config, "bfloat16") == sum(p.nbytes for p in model.bfloat16().parameters())


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(GptcliError) as caught:
        cost.size_named("gpt3-14b")
    assert "gpt3-14b" in caught.value.message
    assert "gpt3-13b" in caught.value.hint


@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=12).filter(any))
def test_percentages_add_up_as_printed(counts: list[int]) -> None:
    shares = cost.percentages(counts)
    assert sum(round(float(f"{share:.1f}") * 10) for share in shares) == 1_000
    for share, count in zip(shares, counts, strict=True):
        assert abs(share - 100 * count / sum(counts)) < 0.1 + 1e-9


def test_percentages_give_the_missing_tenth_to_the_largest_remainder() -> None:
    assert cost.percentages([1, 1, 1]) == [33.4, 33.3, 33.3]
    assert cost.percentages([3, 3, 1]) == [42.9, 42.8, 14.3]


# Bytes


@pytest.mark.parametrize(("weight_format", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("tie_weights", [True, False])
def test_packed_bytes_are_those_of_really_packed_weights(
    weight_format: cost.WeightFormat, bits: quantization.Bits, tie_weights: bool
) -> None:
    config = GPTConfig(
        vocab_size=61, context_length=20, emb_dim=42, n_heads=3, n_layers=2, tie_weights=tie_weights
    )  # 42 inputs are two groups of 32, the second one padded
    measured = 0
    for name, parameter in GPTModel(config).state_dict().items():
        if quantization.is_packed_name(name):
            weight = (parameter.T if quantization.is_transposed(name) else parameter).numpy()
            packed = quantization.quantize(weight, bits)
            measured += packed.values.nbytes + packed.scale.nbytes
        else:
            measured += parameter.nbytes
    assert cost.weight_bytes(config, weight_format) == measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_the_real_cache(dtype: torch.dtype) -> None:
    cache = KVCache(TINY, dtype=dtype)
    per_token = cost.kv_cache_bytes_per_token(TINY, dtype.itemsize)
    assert cache.store.nbytes == per_token * TINY.context_length


# FLOPs


@pytest.mark.parametrize("tie_weights", [True, False])
def test_forward_flops_are_what_torch_counts(tie_weights: bool) -> None:
    config = PRESETS["tiny"].with_changes(tie_weights=tie_weights)
    model, ids = on_meta(config).eval(), torch.zeros(2, config.context_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    assert cost.flops_per_token(config).forward * ids.numel() == counter.get_total_flops()


def test_training_is_three_times_forward_and_attention_grows_with_the_context() -> None:
    short, long = (cost.flops_per_token(PRESETS["small"], context) for context in (256, 1_024))
    assert long.training == 3 * long.forward
    assert long.matrices == short.matrices
    assert long.attention == 4 * short.attention
    # PaLM's appendix B: 12·L·H·Q·T a token in training.
    assert 3 * long.attention == 12 * 12 * 12 * 64 * 1_024


@pytest.mark.parametrize(
    ("size", "flops"),
    [("small", 2.25e20), ("medium", 6.41e20), ("large", 1.37e21), ("xl", 2.38e21), ("2.7b", 4.77e21), ("6.7b", 1.20e22),
     ("13b", 2.31e22)],
)  # fmt: skip
def test_training_compute_of_the_gpt3_papers_table(size: str, flops: float) -> None:
    assert cost.training_compute(GPT3_PRESETS[f"gpt3-{size}"]) == pytest.approx(flops, rel=0.01)


def test_gpt3_has_175_billion_parameters_and_takes_355_v100_years() -> None:
    gpt3 = GPT3_PRESETS["gpt3"]
    by_hand = 50_257 * 12_288 + 2_048 * 12_288 + 96 * (12 * 12_288**2 + 13 * 12_288) + 2 * 12_288
    assert cost.parameter_count(gpt3) == by_hand == 174_604_259_328
    compute = cost.training_compute(gpt3)
    assert compute == pytest.approx(3.14e23, rel=0.002)
    assert int(cost.v100_years(compute)) == 355


# Training memory


def peak_of_tensors(run: Callable[[], None], folder: Path) -> int:
    """The most bytes that torch held at once while ``run()`` ran, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for one another cost ten times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recompute_blocks(model: GPTModel) -> None:
    for block in model.h:
        forward = block.forward
        block.forward = partial(checkpoint, forward, use_reentrant=False)


def test_logits_chunk_is_the_that_of_the_loss() -> None:
    assert cost.LOGITS_CHUNK_BYTES == loss.CHUNK_BYTES
    assert cost.GPU_LOGITS_CHUNK_BYTES == loss.GPU_CHUNK_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_rate": 0.1},
        {"drop_rate": 0.0},
        {"tie_weights": False, "qkv_bias": False},
        {"ffn_dim": 200},
        {"activation": "relu"},
        {"scale_attn": False},
        {"scale_attn": False, "drop_rate": 0.0},
    ],
)
def test_activations_are_what_the_backward_pass_has_saved(changes: dict[str, Any]) -> None:
    config = TINY.with_changes(**changes)
    model, ids = GPTModel(config).train(), torch.randint(config.vocab_size, (6, 48))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def look(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        loss.chunked_cross_entropy(model.hidden(ids), model.head, ids)
    measured = sum(storage.nbytes() for address, storage in saved.items() if address not in parameters)
    measured += 4 * ids.numel() * config.emb_dim  # the gradient that the loss holds itself, unseen by the hooks
    assert cost.activation_bytes(config, 6, 48) == pytest.approx(measured, rel=0.05)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("changes", "batch_size", "context"),
    [
        pytest.param({}, 12, 64, id="activations"),
        pytest.param({"drop_rate": 0.0}, 12, 64, id="activations without dropout"),
        pytest.param({"n_layers": 9}, 3, 64, id="gradients of the blocks"),
        pytest.param({"vocab_size": 50_257}, 6, 64, id="logits"),
        pytest.param({"vocab_size": 20_000, "tie_weights": False}, 1, 16, id="gradients"),
        pytest.param({"vocab_size": 20_000}, 1, 16, id="gradients and a tied head"),
    ],
)
def test_peak_of_a_training_step(
    changes: dict[str, Any], batch_size: int, context: int, recompute: bool, tmp_path: Path
) -> None:
    """Named by what is largest at the peak: together they take every branch of the formula."""
    config = TINY.with_changes(**changes)
    model = GPTModel(config)
    if recompute:
        recompute_blocks(model)
    corpus = Corpus(
        torch.arange(2 * batch_size * context + 1) % config.vocab_size, torch.empty(0), characters=1, tokens=1
    )
    recipe = RecipeConfig(context_length=context, batch_size=batch_size, max_steps=2, eval_batches=1)
    measured = peak_of_tensors(lambda: deque(train(model, corpus, recipe), maxlen=0), tmp_path)
    forecast = cost.training_memory(config, batch_size, context, recompute)
    assert forecast.peak - forecast.weights == pytest.approx(measured, rel=0.05)


def test_a_gpu_holds_no_mask_of_the_attention_weights() -> None:
    less = cost.activation_bytes(TINY, 2, 64) - cost.activation_bytes(TINY, 2, 64, on_cpu=False)
    assert less == TINY.n_layers * 2 * TINY.n_heads * 64 * (64 - 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes", "batch_size", "context"),
    [
        ("tiny", {}, 16, 128),
        ("mini", {}, 8, 256),
        ("mini", {"vocab_size": 65}, 32, 256),
        ("small", {"tie_weights": False, "qkv_bias": False}, 4, 256),
    ],
)
def test_peak_memory_of_a_fresh_process(size: str, changes: dict[str, Any], batch_size: int, context: int) -> None:
    """What the operating system says that a process which trains took; the last case is the course's run."""
    config = PRESETS[size].with_changes(**changes)
    program = f"""
import torch
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.data.dataset import Corpus
from gptcli.device.allocator import reuse_freed_memory
from gptcli.device.placement import peak_memory, resident_memory
from gptcli.model.gpt import GPTModel
from gptcli.training.trainer import train
config = {config!r}
text = torch.randint(config.vocab_size, ({2 * batch_size * context + 1},))
corpus = Corpus(text, torch.empty(0), characters=1, tokens=1)
recipe = RecipeConfig(context_length={context}, batch_size={batch_size}, max_steps=3, eval_batches=1)
reuse_freed_memory()
print(resident_memory())
for event in train(GPTModel(config), corpus, recipe):
    pass
print(peak_memory(torch.device("cpu")))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    before, peak = map(int, run.stdout.split())
    forecast = cost.training_memory(config, batch_size, context).resident
    assert before + forecast == pytest.approx(peak, rel=0.15)
