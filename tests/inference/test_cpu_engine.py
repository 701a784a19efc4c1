"""The CPU engine against the torch model, and against itself: in company, on more threads, from a cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import read, step
from models import tiny_model

from gptcli.config.model import GPTConfig
from gptcli.model import quantization
from gptcli.model.gpt import GPTModel
from gptcli.model.quantization import dequantize, is_packed_name, is_transposed, quantize

pytest.importorskip("numba", exc_type=ImportError)

from gptcli.inference.cpu_engine import CpuEngine
from gptcli.inference.open import obstacle
from gptcli.kernels.cpu.compile_cache import DATA_TYPES
from gptcli.kernels.cpu.target import INTEGER_PRODUCTS

needs_integers = pytest.mark.skipif(not INTEGER_PRODUCTS, reason="this machine does not multiply pairs of int16")
# Bits and what data is made of: int8 weights meet floats on some machines and int16 on others.
PACKED = [
    pytest.param(8, np.int8, id="int8-floats"),
    pytest.param(8, np.int16, id="int8-integers", marks=needs_integers),
    pytest.param(4, np.uint8, id="int4"),
]


def arrays(model: GPTModel) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def engine(model: GPTModel, **options: Any) -> CpuEngine:
    return CpuEngine(model.config, arrays(model), **options)


def token_by_token(cpu: CpuEngine, slot: int, ids: list[int]) -> np.ndarray:
    return np.stack([read(cpu, slot, [token], at)[0].copy() for at, token in enumerate(ids)])


def torch_logits(model: GPTModel, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0].numpy()


def some_ids(model: GPTModel, length: int | None = None, seed: int = 0) -> list[int]:
    size = model.config.context_length if length is None else length
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, size).tolist()


def rounded(model: GPTModel, bits: int) -> GPTModel:
    """The same model with every packed matrix replaced by what packing makes of it."""
    tensors: dict[str, torch.Tensor] = {}
    for name, array in arrays(model).items():
        if is_packed_name(name):
            turned = array.T if is_transposed(name) else array
            restored = dequantize(quantize(turned, bits))  # type: ignore[arg-type]
            array = np.ascontiguousarray(restored.T if is_transposed(name) else restored)
        tensors[name] = torch.from_numpy(array)
    with torch.device("meta"):
        copy = GPTModel(model.config, init=None).eval()
    copy.load_state_dict(tensors, assign=True)
    return copy


SHAPES: dict[str, dict[str, Any]] = {
    "odd": {},
    "own head, no qkv bias": {"tie_weights": False, "qkv_bias": False},
    "one wide head": {"emb_dim": 96, "n_heads": 1},
    "five heads of seven": {"emb_dim": 35, "n_heads": 5, "n_layers": 3},
    "heads of a lane": {"emb_dim": 64, "n_heads": 4, "context_length": 70, "vocab_size": 257},
    "heads of four lanes": {"emb_dim": 128, "n_heads": 2, "context_length": 67},
    "one of everything": {"emb_dim": 1, "n_heads": 1, "n_layers": 1, "vocab_size": 2, "context_length": 3},
    "relu, narrow": {"activation": "relu", "ffn_dim": 50},
    "other scales": {"scale_attn": False, "scale_attn_by_layer": True, "layer_norm_eps": 1e-2},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_equals_the_torch_model_from_the_first_token_to_the_full_context(shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    ids = some_ids(model)
    expected = torch_logits(model, ids)
    cpu = engine(model, slots=2, threads=2)
    decoded = token_by_token(cpu, 0, ids)
    np.testing.assert_allclose(decoded, expected, atol=1e-4)
    for length in {1, 2, 3, 5, 9, len(ids)}.intersection(range(len(ids) + 1)):
        np.testing.assert_allclose(read(cpu, 1, ids[:length], 0)[0], expected[length - 1], atol=1e-4)


@pytest.mark.parametrize(("bits", "kind"), PACKED)
@pytest.mark.parametrize("shape", list(SHAPES.values())[:7], ids=list(SHAPES)[:7])
def test_packed_weights_equal_their_own_dequantised_selves_in_torch(
    monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any], bits: int, kind: type[np.generic]
) -> None:
    monkeypatch.setitem(DATA_TYPES, bits, kind)
    model = tiny_model(**shape)
    ids = some_ids(model)
    expected = torch_logits(rounded(model, bits), ids)
    cpu = engine(model, bits=bits, slots=2, threads=2)
    np.testing.assert_allclose(read(cpu, 0, ids, 0, every=True), expected, atol=1e-3)
    decoded = token_by_token(cpu, 1, ids)
    np.testing.assert_allclose(decoded, expected, atol=1e-3)


@pytest.mark.parametrize(("bits", "kind"), PACKED)
def test_channels_far_above_the_others_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, bits: int, kind: type[np.generic]
) -> None:
    """GPT-2 has channels of 50 to 100 times the others, before and after a norm."""
    monkeypatch.setitem(DATA_TYPES, bits, kind)
    model = tiny_model(emb_dim=320, n_heads=4, context_length=30, spread=0.03)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "wpe.weight":
                parameter[:, 100] += 60
            elif "ln_" in name:
                parameter[[7, 280]] *= 60
    ids = some_ids(model)
    expected = torch_logits(rounded(model, bits), ids)
    cpu = engine(model, bits=bits, threads=2)
    spread = np.float32(expected.std())
    np.testing.assert_allclose(read(cpu, 0, ids, 0, every=True) / spread, expected / spread, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", list(SHAPES.values())[:5], ids=list(SHAPES)[:5])
def test_the_kernels_pack_to_the_bit_as_numpy_does(shape: dict[str, Any], bits: int) -> None:
    """From float32 on the way in, from float32 that is in memory already, and from what numpy has packed."""
    model = tiny_model(**shape)
    with torch.no_grad():
        model.wte.weight[0] = 0  # an output without a largest weight
        model.h[0].mlp.c_fc.weight[:32] = 0
        model.h[0].mlp.c_fc.weight[-1] *= 100
    weights = arrays(model)
    packed = {n: quantization.packed(n, w, bits) if is_packed_name(n) else w for n, w in weights.items()}  # type: ignore[arg-type]
    ids = some_ids(model)
    expected = read(CpuEngine(model.config, packed, bits=bits), 0, ids, 0, every=True)
    assert np.abs(expected).max() > 0
    for cpu in (engine(model, bits=bits, threads=2), engine(model, threads=2).quantized_copy(bits)):
        np.testing.assert_array_equal(read(cpu, 0, ids, 0, every=True), expected)


def test_a_twin_reads_on_where_the_model_is_and_the_model_writes_over_it() -> None:
    model = tiny_model()
    ids = some_ids(model, 12)
    cpu = engine(model, threads=2)
    packed = cpu.quantized_copy(8)
    read(cpu, 0, ids[:8], 0)
    guessed = read(packed, 0, ids[8:10], 8)[0].copy()
    np.testing.assert_allclose(guessed, torch_logits(model, ids[:10])[-1], atol=0.2)
    np.testing.assert_array_equal(read(cpu, 0, ids[8:], 8, every=True), read(engine(model), 0, ids, 0, every=True)[8:])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium", "large", "xl"])
def test_the_presets_equal_torch_in_all_kinds_of_weights(size: str) -> None:
    """xl takes 16 GB, and all of them some minutes."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig.preset(size, drop_rate=0.0)).eval()
    ids = some_ids(model, 1024 if size == "small" else 40)
    for bits, tolerance in ((32, 1e-4), (8, 1e-3), (4, 1e-3)):
        expected = torch_logits(model if bits == 32 else rounded(model, bits), ids)
        cpu = engine(model, bits=bits, slots=2, threads=2, capacity=len(ids))
        np.testing.assert_allclose(read(cpu, 0, ids, 0, every=True), expected, atol=tolerance)
        np.testing.assert_allclose(token_by_token(cpu, 1, ids[:20]), expected[:20], atol=tolerance)
        cpu.close()
        del cpu  # xl's next copy needs the room


@pytest.mark.parametrize(("bits", "kind"), [pytest.param(32, np.float32, id="float32"), *PACKED])
def test_a_row_is_the_same_to_the_bit_alone_in_company_and_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, bits: int, kind: type[np.generic]
) -> None:
    """One prompt at once, token by token, among other sequences, on 1 to 3 threads: the same arithmetic each time."""
    monkeypatch.setitem(DATA_TYPES, bits, kind)
    model = tiny_model(emb_dim=64, n_heads=4, context_length=40)
    ids, others = some_ids(model), [some_ids(model, seed=seed) for seed in range(1, 11)]
    alone = engine(model, bits=bits, threads=1)
    expected = token_by_token(alone, 0, ids)
    for threads in (1, 2, 3):
        cpu = engine(model, bits=bits, threads=threads, slots=11)
        np.testing.assert_array_equal(read(cpu, 0, ids, 0, every=True), expected)
        rows = []
        for at in range(len(ids)):
            step = [other[at] for other in others[:7]] + [ids[at]] + [other[at] for other in others[7:]]
            rows.append(cpu._pass(step, [at] * 11, range(11), [7], 0)[0].copy())
        np.testing.assert_array_equal(np.stack(rows), expected)
        cpu.close()


def test_a_prompt_longer_than_one_step_is_read_in_parts() -> None:
    model = tiny_model(context_length=300, n_layers=1)
    ids = some_ids(model)
    cpu = engine(model, threads=2)
    assert cpu.max_rows < 300
    np.testing.assert_allclose(read(cpu, 0, ids, 0, every=True), torch_logits(model, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("length", "back"), [(15, 9), (16, 5), (20, 9), (33, 17), (40, 16), (48, 47), (34, 3), (47, 0)]
)
def test_going_back_and_on_forgets_what_was_there(length: int, back: int) -> None:
    """Whether the panel of keys that it goes on in is being filled, is full, or has others behind it."""
    model = tiny_model(context_length=64)
    ids = some_ids(model, 64)
    cpu = engine(model)
    read(cpu, 0, ids[:length], 0)
    other = [*ids[:back], *reversed(ids[back + 1 :])]
    for at in range(back, back + 3):
        step(cpu, other[at : at + 1], [at], [0])
    logits = read(cpu, 0, other[back + 3 :], back + 3, every=True)
    np.testing.assert_array_equal(logits, read(engine(model), 0, other, 0, every=True)[back + 3 :])
    np.testing.assert_allclose(logits, torch_logits(model, other)[back + 3 :], atol=1e-4)


@pytest.mark.parametrize(("length", "known"), [(10, 10), (16, 16), (40, 40), (40, 21), (48, 33), (33, 7)])
def test_a_fork_goes_its_own_way(length: int, known: int) -> None:
    model = tiny_model(context_length=64)
    ids = some_ids(model, length)
    cpu = engine(model, slots=3)
    read(cpu, 1, ids, 0)
    cpu.fork(1, 2, known)
    first, second = read(cpu, 1, [4], length)[0].copy(), read(cpu, 2, [5], known)[0]
    np.testing.assert_allclose(first, torch_logits(model, [*ids, 4])[-1], atol=1e-4)
    np.testing.assert_allclose(second, torch_logits(model, [*ids[:known], 5])[-1], atol=1e-4)


@pytest.mark.parametrize("exit_at", [1, 2, 3])
def test_a_tapped_layer_gives_what_the_norm_and_the_head_make_of_it(exit_at: int) -> None:
    model = tiny_model(n_layers=3)
    ids = some_ids(model, 11)
    shorter = GPTModel(model.config.with_changes(n_layers=exit_at), init=None).eval()
    shorter.load_state_dict({n: t for n, t in model.state_dict().items() if n in shorter.state_dict()})
    cpu = engine(model, threads=2)
    both = cpu._pass(ids, range(11), [0] * 11, [2, 10], exit_at=exit_at)
    np.testing.assert_allclose(both[:2], torch_logits(model, ids)[[2, 10]], atol=1e-4)
    np.testing.assert_allclose(both[2:], torch_logits(shorter, ids)[[2, 10]], atol=1e-4)
    np.testing.assert_allclose(read(cpu, 0, [3], 11)[0], torch_logits(model, [*ids, 3])[-1], atol=1e-4)


def test_weights_are_asked_for_one_at_a_time_and_let_go() -> None:
    """What holds two copies of a model at once does not fit where one would."""
    model = tiny_model(n_layers=3)
    alive: set[int] = set()
    most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.discard(id(self))

    class Source(Mapping[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            nonlocal most
            array = arrays(model)[name].copy().view(Counted)
            alive.add(id(array))
            most = max(most, len(alive))
            return array

        def __iter__(self) -> Any:
            return iter(model.state_dict())

        def __len__(self) -> int:
            return len(model.state_dict())

    CpuEngine(model.config, Source())  # type: ignore[arg-type]
    assert 1 <= most <= 3


def test_what_the_kernels_do_not_know_is_named() -> None:
    assert obstacle(GPTConfig()) is None
    assert "gelu" in str(obstacle(GPTConfig(activation="gelu")))


def test_a_cache_directory_that_cannot_be_written_is_said_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    model = tiny_model(n_layers=1)
    lines: list[str] = []
    cpu = engine(model, report=lines.append)
    np.testing.assert_allclose(read(cpu, 0, [1, 2], 0)[0], torch_logits(model, [1, 2])[-1], atol=1e-4)
    assert "cannot be written" in lines[0]
