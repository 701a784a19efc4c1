"""Weights that are packed in a thread: the same as without, and only where the CPU engine will be chosen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_checkpoint

pytest.importorskip("numba", exc_type=ImportError)

from gptcli.checkpoints.adapters import open_weights
from gptcli.checkpoints.layout import CONFIG, WEIGHTS, read_config
from gptcli.errors import GptcliError
from gptcli.inference import open as opening
from gptcli.inference.cpu_engine import CpuEngine

PLAIN: dict[str, Any] = {"engine": "auto", "device": "cpu", "dtype": "auto", "compiled": False, "threads": 2}


def test_an_engine_takes_what_was_packed(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    config, _ = read_config(tmp_path / "model")
    packed = opening.pack_early(tmp_path / "model", None, config, 32, **PLAIN)
    assert packed is not None
    early, plain = CpuEngine(config, packed), CpuEngine(config, open_weights(tmp_path / "model"))
    expected = plain.forward([0], [[1, 2, 3]], [0], every=True)
    np.testing.assert_array_equal(early.forward([0], [[1, 2, 3]], [0], every=True), expected)
    assert early.weight_bytes == plain.weight_bytes


@pytest.mark.parametrize(
    ("bits", "change"),
    [
        (8, {}),
        (32, {"engine": "torch"}),
        (32, {"device": "cuda"}),
        (32, {"dtype": "bfloat16"}),
        (32, {"compiled": True}),
    ],
)
def test_nothing_is_packed_for_another_engine(tmp_path: Path, bits: int, change: dict[str, Any]) -> None:
    tiny_checkpoint(tmp_path / "model")
    config, _ = read_config(tmp_path / "model")
    assert opening.pack_early(tmp_path / "model", None, config, bits, **PLAIN | change) is None


def test_a_damaged_file_is_found_when_the_engine_waits(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    config, _ = read_config(tmp_path / "model")
    (tmp_path / "model" / WEIGHTS).write_bytes(b"no weights")
    packed = opening.pack_early(tmp_path / "model", None, config, 32, **PLAIN)
    assert packed is not None
    with pytest.raises(GptcliError, match=WEIGHTS):
        CpuEngine(config, packed)


def test_nothing_is_allocated_for_shapes_that_the_file_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(tmp_path / "model")
    about = json.loads((tmp_path / "model" / CONFIG).read_text(encoding="utf-8"))
    about["gptcli"]["config"]["vocab_size"] = 99_999_999
    (tmp_path / "model" / CONFIG).write_text(json.dumps(about), encoding="utf-8")
    monkeypatch.setattr("gptcli.inference.early.Matrices", lambda *_: pytest.fail("memory is allocated"))
    packed = opening.pack_early(tmp_path / "model", None, read_config(tmp_path / "model")[0], 32, **PLAIN)
    assert packed is not None
    assert isinstance(packed.exception(), GptcliError)
