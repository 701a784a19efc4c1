"""Two processes on one machine against one process: the same losses, one voice, one death."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from runs import TINY

from gptcli.checkpoints import checkpoint

OPTIONS = (*TINY, "--drop-rate", 0.1, "--threads", 1, "--sample-every", 0, "--eval-every", 1, "--save-every", 10)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun are for Unix")


def start(folder: Path, *arguments: Any, processes: int = 2) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "gptcli", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def together(folder: Path, *arguments: Any) -> str:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert out.decode().count("\n") == 1  # the first process alone speaks
    return err.decode()


def losses(run: Path) -> list[float]:
    return [value for row in checkpoint.read_metrics(run) for value in (row["train_loss"], row["val_loss"])]


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ddp", "fsdp"])
def test_two_processes_are_one_and_a_checkpoint_of_two_goes_on_with_one(
    gptcli: Any, tmp_path: Path, story: Path, shard: bool
) -> None:
    """Twenty steps each; the two stop after twelve of them, the last eight are done by one process alone."""
    how = ("--shard",) if shard else ("--accumulate", 2)
    assert gptcli("train", story, *OPTIONS, "--max-steps", 20, "--out", "one").code == 0
    err = together(tmp_path, "train", story, *OPTIONS, *how, "--max-steps", 12, "--out", "two")
    assert "2 processes" in err
    assert len(re.findall(r"\(Step 000003\)", err)) == 1
    result = gptcli("train", "--resume", "two", "--max-steps", 20, *(() if shard else how))
    assert result.code == 0, result.err
    assert losses(Path("two")) == pytest.approx(losses(Path("one")), rel=1e-5)
    kept = json.loads((max(Path("two/training").iterdir()) / "state.json").read_text(encoding="utf-8"))
    assert kept["progress"]["step"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor", "muon"])
def test_every_optimizer_works_on_shards_and_remembers(
    gptcli: Any, tmp_path: Path, story: Path, optimizer: str
) -> None:
    """Ten steps of one process, against six of two with shards and, resumed, four more."""
    options = (*OPTIONS, "--optimizer", optimizer, "--learning-rate", 3e-3)
    assert gptcli("train", story, *options, "--max-steps", 10, "--out", "one").code == 0
    together(tmp_path, "train", story, *options, "--shard", "--max-steps", 6, "--out", "two")
    together(tmp_path, "train", "--resume", "two", "--max-steps", 10)
    assert losses(Path("two")) == pytest.approx(losses(Path("one")), rel=1e-5)


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_with_it(gptcli: Any, tmp_path: Path, story: Path) -> None:
    process = start(tmp_path, "train", story, *OPTIONS, "--epochs", 5000, "--out", "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 12):
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        os.killpg(process.pid, signal.SIGKILL)
        pytest.skip("this system does not list a process's children")
    victim = [
        pid
        for pid in map(int, children.read_text().split())
        if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    os.kill(victim[0], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in err.decode() or "another one died" in err.decode()
    step = checkpoint.load(tmp_path / "run").training["step"]
    assert step >= 10
    assert gptcli("train", "--resume", "run", "--max-steps", step + 2).code == 0


def test_a_world_that_cannot_share_the_batch_out_is_refused(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = gptcli("train", story, *OPTIONS, "--batch-size", 3, "--out", "run")
    refused.assert_user_error("--batch-size 3 cannot be shared out evenly among 2 processes", "Give --batch-size 4")
    monkeypatch.setenv("WORLD_SIZE", "two")
    gptcli("train", story, *OPTIONS, "--out", "run").assert_user_error("WORLD_SIZE=two", "torchrun")
    assert not Path("run").exists()
