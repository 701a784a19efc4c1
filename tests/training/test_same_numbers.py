"""One seed, one run: whatever computes a step, and in however many parts, threads and processes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model

from gptcli.config.recipe import RecipeConfig
from gptcli.config.runtime import RuntimeConfig
from gptcli.kernels.cpu.numba_support import numba_reason
from gptcli.kernels.cpu.train_kernels import TrainKernels, open_kernels
from gptcli.training.step import Stepper

needs_numba = pytest.mark.skipif(numba_reason() is not None, reason="numba cannot be loaded")
RUN = ("--size", "tiny", "--tokenizer", "char", "--context-length", 64, "--emb-dim", 48, "--n-heads", 3)
RUN += ("--n-layers", 2, "--batch-size", 6, "--max-steps", 10, "--eval-every", 1, "--sample-every", 0, "--seed", 3)


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def losses(numba: bool = False, threads: int = 1, **runtime: Any) -> list[float]:
    """Of ten steps with dropout, on six windows each."""
    torch.set_num_threads(threads)
    model = tiny_model(drop_rate=0.2, spread=0.02).train()
    if numba:
        kernels = open_kernels()
        assert isinstance(kernels, TrainKernels)
        model.use(kernels)
    stepper = Stepper(model, RecipeConfig(batch_size=6, dtype="float32"), RuntimeConfig(**runtime))
    ids = torch.randint(61, (10, 6, 21), generator=torch.Generator().manual_seed(1))
    return [stepper.step(x[:, :-1], x[:, 1:], 1e-3, number).loss for number, x in enumerate(ids)]


@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("numba", [False, pytest.param(True, marks=needs_numba)], ids=["torch", "numba"])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_neither_kernels_nor_parts_nor_threads_change_what_dropout_drops(
    numba: bool, accumulate: int, threads: int
) -> None:
    alone, found = losses(), losses(numba, threads, accumulate=accumulate)
    assert found[0] == pytest.approx(alone[0], rel=1e-6)
    assert found == pytest.approx(alone, rel=1e-4)


@pytest.mark.usefixtures("_threads_as_before")
def test_recomputation_changes_no_bit() -> None:
    assert losses(recompute=True) == losses()


@pytest.mark.slow
@pytest.mark.usefixtures("_threads_as_before")
def test_compiled_blocks_drop_the_same() -> None:
    found, plain = losses(compile=True), losses()
    assert found[0] == pytest.approx(plain[0], rel=1e-6)
    assert found == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_twelve_runs_of_one_command_are_one_file(gptcli: Any, story: Path) -> None:
    hashes = set()
    for number in range(12):
        assert gptcli("train", story, *RUN, "--threads", 2, "--out", f"run-{number}").code == 0
        hashes.add(hashlib.sha256(Path(f"run-{number}/model.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1
