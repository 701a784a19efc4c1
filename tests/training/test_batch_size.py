"""In how many parts a step is computed, so that it fits into memory: --batch-size auto."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_config
from runs import TINY

from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.model.cost import training_memory
from gptcli.training import batch_size as fitting
from gptcli.training.distributed import ALONE, World
from gptcli.training.step import Outcome, Stepper

OPTIONS = (*TINY, "--drop-rate", 0, "--max-steps", 4, "--save-every", 2, "--sample-every", 0, "--threads", 1)
CPU = torch.device("cpu")


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[GPTConfig, int, int], None]:
    """Leave just as much free memory as a forecast of so many windows needs."""

    def set_free(config: GPTConfig, rows: int, context: int) -> None:
        free = int(training_memory(config, rows, context).resident / fitting.ROOM) + 1
        monkeypatch.setattr(fitting, "available_memory", lambda device: free)

    return set_free


def test_the_fewest_parts_are_found() -> None:
    for most in range(1, 35):
        for needed in range(1, most + 1):
            asked: list[int] = []
            assert fitting.smallest(lambda n, k=needed, a=asked: a.append(n) or n >= k, most) == needed
            assert len(asked) == len(set(asked)) <= 11
        assert fitting.smallest(lambda n: False, most) is None


@pytest.mark.parametrize(("rows", "parts"), [(12, 1), (11, 2), (6, 2), (5, 3), (1, 12)])
def test_a_forecast_decides_on_a_cpu(room_for: Any, rows: int, parts: int) -> None:
    config = tiny_config(context_length=512)  # big enough that a window weighs more than rounding
    room_for(config, rows, 512)
    assert fitting.fewest_parts(config, RecipeConfig(), RuntimeConfig(), 12, 512, CPU, ALONE) == parts


def test_processes_of_one_machine_share_its_memory_and_shards_their_weights(room_for: Any) -> None:
    config = tiny_config(context_length=512)
    room_for(config, 12, 512)
    assert fitting.forecast_fits(config, RecipeConfig(), RuntimeConfig(), 12, 512, CPU, ALONE)
    assert not fitting.forecast_fits(config, RecipeConfig(), RuntimeConfig(), 12, 512, CPU, World(0, 2, 0, 2))
    assert fitting.forecast_fits(config, RecipeConfig(), RuntimeConfig(), 12, 512, CPU, World(0, 2, 0, 1))
    assert not fitting.forecast_fits(config, RecipeConfig(), RuntimeConfig(), 13, 512, CPU, World(0, 2, 0, 1))
    wide = tiny_config(emb_dim=420)
    room_for(wide, 12, 20)
    assert fitting.forecast_fits(wide, RecipeConfig(), RuntimeConfig(shard=True), 20, 20, CPU, World(0, 2, 0, 1))


def test_real_steps_decide_on_a_gpu_and_out_of_memory_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself, on the CPU, with a step that needs room for more than 5 windows or has none."""
    step, tried = Stepper.step, []

    def step_of_five(self: Stepper, inputs: torch.Tensor, targets: torch.Tensor, rate: float) -> Outcome:
        tried.append(len(inputs))
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, inputs, targets, rate)

    monkeypatch.setattr(Stepper, "step", step_of_five)
    recipe, runtime = RecipeConfig(batch_size=12), RuntimeConfig(accumulate=3)

    def fits(rows: int) -> bool:
        return fitting.step_fits(tiny_config(), recipe, runtime, rows, 20, CPU, size=2)

    assert not fits(6)
    assert fits(5)
    assert tried == [6, 5, 5]
    assert fitting.smallest(lambda parts: fits(-(-12 // parts)), 12) == 3


def test_a_run_in_parts_is_the_same_run_and_goes_on_in_as_many(gptcli: Any, story: Path, room_for: Any) -> None:
    config = GPTConfig(
        vocab_size=16, context_length=16, emb_dim=16, n_heads=2, n_layers=2, qkv_bias=False, tie_weights=False
    )
    assert gptcli("train", story, *OPTIONS, "--batch-size", 8, "--out", "whole").code == 0
    room_for(config, 3, 16)
    result = gptcli("train", story, *OPTIONS, "--batch-size", "auto:8", "--out", "parts")
    assert result.code == 0, result.err
    assert "room to compute the 8 windows of a step in 3 parts of at most 3 (accumulate 3)" in result.err
    rows = [checkpoint.read_metrics(Path(name)) for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
    assert gptcli("train", story, *OPTIONS, "--batch-size", "auto:8", "--max-steps", 2, "--out", "cut").code == 0
    room_for(config, 8, 16)
    assert gptcli("train", "--resume", "cut", "--max-steps", 4).code == 0
    weights = [(Path(name) / "model.safetensors").read_bytes() for name in ("parts", "cut")]
    assert weights[0] == weights[1]
    for name in ("parts", "cut"):
        kept = json.loads((max(Path(name, "training").iterdir()) / "state.json").read_text(encoding="utf-8"))
        assert (kept["facts"]["recipe"]["batch_size"], kept["facts"]["runtime"]["accumulate"]) == (8, 3)


def test_auto_alone_keeps_the_default_batch(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *OPTIONS, "--batch-size", "auto", "--out", "run")
    assert result.code == 0, result.err
    assert "the 4 windows of a step at once (accumulate 1)" in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", "auto:0"), ("--batch-size is 0", "at least 1")),
        (("--batch-size", "auto:many"), ("--batch-size is 'auto:many'", "auto:64")),
        (("--batch-size", "4.5"), ("--batch-size is '4.5'",)),
        (("--batch-size", "auto", "--accumulate", 2), ("--batch-size auto cannot be combined with --accumulate",)),
        (("--batch-size", "auto", "--resume", "run"), ("--batch-size auto cannot be combined with --resume",)),
    ],
)
def test_a_wrong_size_is_named(gptcli: Any, story: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    gptcli("train", story, *TINY, *options, "--out", "run").assert_user_error(*words)
    assert not Path("run").exists()


def test_a_device_without_room_for_a_step_says_so_and_the_run_can_go_on(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Stepper, *_: Any) -> Outcome:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "launch", step)
        result = gptcli("train", story, *OPTIONS, "--out", "run", "-q")
    result.assert_user_error(
        "cpu has no room left: CUDA out of memory. Tried to allocate 20.00 GiB.", "--batch-size auto"
    )
    assert gptcli("train", "--resume", "run", "--accumulate", 2).code == 0


def test_a_window_that_does_not_fit_is_told(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available_memory", lambda device: 1000)
    result = gptcli("train", story, *OPTIONS, "--batch-size", "auto", "--out", "run")
    result.assert_user_error("Not even one window of 16 tokens fits into the memory of cpu", "--recompute")
    assert not Path("run").exists()
