"""Triton's kernels without a GPU: in Triton's interpreter, against the plain model, and what a step costs on paper."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_config, tiny_model

from gptcli.config.model import GPTConfig
from gptcli.evaluation.benchmark.engines import bytes_read
from gptcli.inference import torch_engine
from gptcli.inference.torch_engine import TorchEngine
from gptcli.model import cost
from gptcli.model.gpt import GPTModel
from gptcli.model.quantized import PackedModel

TESTS = Path(__file__).parents[2]


@pytest.mark.parametrize("case", ["steps", "half", "long_texts", "draws", "texts", "together", "prompts"])
def test_kernels_in_the_interpreter(case: str) -> None:
    """triton_cases.py says what each holds."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, str(TESTS / "triton_cases.py"), case]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def step_of(size: str, rows: int = 1) -> Any:
    """The step of a model that takes no memory."""
    pytest.importorskip("triton")
    from gptcli.inference.step_launches import DecodeStep

    config = GPTConfig.preset(size)
    with torch.device("meta"):
        model = GPTModel(config, init=None).to(torch.bfloat16)
        store = torch.zeros(config.n_layers, 2, rows, config.n_heads, 1152, config.head_dim, dtype=torch.bfloat16)
        ids, places = torch.zeros(rows, 8, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
        return DecodeStep(model, store, ids, places, 1144)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("size", ["small", "xl"])
def test_a_step_reads_each_weight_once_in_five_launches_a_layer(size: str, rows: int) -> None:
    """Seven with several rows, whose norms are launches of their own."""
    config = GPTConfig.preset(size)
    launches = step_of(size, rows).launches(1)
    norms = 0 if rows == 1 else 2 * config.n_layers + 1
    assert len(launches) == 5 * config.n_layers + 2 + norms
    assert sum(launch.weight_bytes for launch in launches) == bytes_read(config, "bfloat16")
    assert sum(launch.flops for launch in launches) == rows * cost.flops_per_token(config).matrices


@pytest.mark.parametrize("size", ["small", "medium", "large", "xl"])
def test_a_product_of_one_row_fills_the_chip(size: str) -> None:
    """At least a program for every multiprocessor, and weights on their way for the memory's latency."""
    for launch in step_of(size).launches(1):
        if launch.weight_bytes and launch.name != "embed":
            assert launch.grid[0] >= 132
            options = launch.options
            assert options["BLOCK_N"] * options["WIDTH"] <= 32 * 64 * options["num_warps"]


@pytest.mark.parametrize("rows", [2, 8, 16, 20, 64, 128])
@pytest.mark.parametrize("size", ["small", "medium", "large", "xl"])
def test_a_product_of_few_rows_fits_a_multiprocessor(size: str, rows: int) -> None:
    """Its blocks lie in shared memory, its inputs are covered, and its weights are fetched where they are aligned."""
    for launch in step_of(size, rows).launches(1):
        if "BLOCK_N" not in launch.options:
            continue
        options = launch.options
        inputs = options["KB"] * options["KW"]
        assert options["num_stages"] * (options["BLOCK_M"] + options["BLOCK_N"]) * inputs * 2 <= 227 * 1024
        assert options["BLOCK_M"] * launch.grid[1] >= rows
        assert options["FETCH"] == 2 * launch.arguments[10]
        assert launch.grid[0] >= 48


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_model_reads_what_the_kernels_read(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its matrices are views of the repacked rows, also where inputs are padded, and its logits stay the same."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch_engine, "triton_reason", lambda device: None)
    weights = {name: tensor.numpy() for name, tensor in tiny_model().state_dict().items()}
    model = PackedModel(tiny_config(), weights, bits, "cpu", torch.float32)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids)
        step = TorchEngine(model)._kernels
        assert step is not None
        torch.testing.assert_close(model(ids), before, atol=0, rtol=0)
    layer: Any = model.h[0].attn.c_attn
    assert layer.values.data_ptr() == step.matrices[0][0].rows.data_ptr()


def test_a_kernel_that_fails_is_told_once_and_the_plain_step_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from gptcli.inference.prompt_launches import PromptStep
    from gptcli.inference.step_launches import DecodeStep

    def fail(*_: object) -> None:
        raise RuntimeError("ptxas: no such thing\nand more")

    def memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_engine, "triton_reason", lambda device: None)
    for kind, what in ((DecodeStep, "run"), (PromptStep, "run")):
        model = tiny_model()
        told: list[str] = []
        engine = TorchEngine(model, report=told.append)
        with monkeypatch.context() as patch:
            patch.setattr(kind, what, fail)
            ids = [1] if kind is DecodeStep else list(range(12))
            with torch.no_grad():
                torch.testing.assert_close(engine.forward([0], [ids], [0]), model(torch.tensor([ids]))[0, -1:])
            engine.forward([0], [ids], [0])
        assert told == ["Triton's kernels cannot run here (ptxas: no such thing); decoding continues without."]
        engine = TorchEngine(model, report=told.append)
        with monkeypatch.context() as patch:
            patch.setattr(kind, what, memory)
            with pytest.raises(torch.OutOfMemoryError):
                engine.forward([0], [ids], [0])


def test_a_cpu_says_nothing_about_kernels() -> None:
    told: list[str] = []
    assert TorchEngine(tiny_model(), report=told.append)._kernels is None
    assert told == []
