"""The torch engine: rows of any lengths through one step, forks, spans of the cache, and packed weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import read, step
from models import tiny_checkpoint, tiny_model
from ragged import assert_each_as_alone, ragged_requests

from gptcli.checkpoints import checkpoint, derived
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model.quantization import is_packed_name, packed, unpacked
from gptcli.model.quantized import PackedModel


@pytest.mark.parametrize("slots", [1, 3, 20])
def test_every_row_equals_what_it_would_be_alone(slots: int) -> None:
    """Ragged prompts, some with a common beginning, other options each, some past the context."""
    model = tiny_model(context_length=40)
    requests = ragged_requests(common=[(11 * i) % 61 for i in range(20)])
    assert_each_as_alone(requests, TorchEngine(model), TorchEngine(model, slots=slots, span=16))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_step_with_fixed_shapes_equals_the_plain_model(count: int) -> None:
    """The very step that a graph captures, across the borders of its spans."""
    model = tiny_model(context_length=40)
    ids = np.random.default_rng(1).integers(0, 61, 40).tolist()
    engine = TorchEngine(model, span=16)
    parts = [read(engine, 0, ids[at : at + count], at, every=True).clone() for at in range(0, 40, count)]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts), model(torch.tensor([ids]))[0], atol=1e-5, rtol=1e-5)


def test_rows_that_have_no_part_in_a_step_are_left_alone() -> None:
    model = tiny_model()
    engine = TorchEngine(model, slots=3, span=8)
    first, second = [1, 2, 3, 4], [9, 8, 7]
    read(engine, 0, first, 0)
    read(engine, 2, second, 0)
    for at, token in enumerate([5, 6, 7]):
        step(engine, [token], [4 + at], [0])
    found = step(engine, [11, 12], [3, 7], [2, 0])
    with torch.no_grad():
        for row, ids in enumerate(([*second, 11], [*first, 5, 6, 7, 12])):
            torch.testing.assert_close(found[row], model(torch.tensor([ids]))[0, -1], atol=1e-5, rtol=1e-5)


def test_a_fork_goes_its_own_way() -> None:
    model = tiny_model()
    engine = TorchEngine(model, slots=2)
    read(engine, 0, [1, 2, 3, 4, 5], 0)
    engine.fork(0, 1, 5)
    with torch.no_grad():
        for slot, token in ((0, 6), (1, 7)):
            expected = model(torch.tensor([[1, 2, 3, 4, 5, token]]))[0, -1]
            torch.testing.assert_close(read(engine, slot, [token], 5)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [{}, {"tie_weights": False, "qkv_bias": False}, {"emb_dim": 35, "n_heads": 5}])
def test_packed_layers_equal_their_own_dequantised_weights(shape: dict[str, Any], bits: int) -> None:
    model = tiny_model(**shape)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    small = PackedModel(model.config, arrays, bits, "cpu", torch.float32)
    for name in filter(is_packed_name, arrays):
        restored = unpacked(name, packed(name, arrays[name], bits))  # type: ignore[arg-type]
        model.state_dict()[name].copy_(torch.from_numpy(restored))
    ids = torch.randint(0, 61, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(small(ids), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("bits", "times"), [(8, 3.7), (4, 6)])
def test_a_packed_checkpoint_stays_packed_in_memory(tmp_path: Path, bits: int, times: float) -> None:
    source = tiny_checkpoint(tmp_path / "run", emb_dim=128, n_heads=2)
    derived.create_packed(tmp_path / "small", source, bits)  # type: ignore[arg-type]

    def size(model: torch.nn.Module) -> int:
        return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])

    whole = checkpoint.load(source).model()
    runners = checkpoint.load(tmp_path / "small").runner(), checkpoint.load(source).runner(bits=bits)
    for runner in runners:
        assert size(whole) / size(runner) > times
    ids = torch.randint(0, 61, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(runners[0](ids), runners[1](ids))
        torch.testing.assert_close(runners[0](ids), checkpoint.load(tmp_path / "small").model()(ids))
