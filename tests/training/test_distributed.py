"""Two processes on one machine against one process: the same losses, one voice, one death."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
import torch
from runs import TINY

from gptcli.checkpoints import checkpoint
from gptcli.device.placement import Placement
from gptcli.errors import GptcliError
from gptcli.training import distributed
from gptcli.training.distributed import World

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
    options = OPTIONS if shard else (*OPTIONS, "--average-share", 0.3)
    assert gptcli("train", story, *options, "--max-steps", 20, "--out", "one").code == 0
    err = together(tmp_path, "train", story, *options, *how, "--max-steps", 12, "--out", "two")
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


SLOW_SAVES = """
import sys, time
from datetime import timedelta
from gptcli.training import distributed, snapshots
distributed.PATIENCE, distributed.HEARTBEAT = timedelta(seconds=6), 1.0
real = {name: getattr(snapshots.Store, name) for name in ("begin", "save")}
def slowly(name):
    def work(*arguments):
        time.sleep(9)
        return real[name](*arguments)
    return work
for name in real:
    setattr(snapshots.Store, name, slowly(name))
from gptcli.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_save_may_take_longer_than_the_patience_of_a_collective(tmp_path: Path, story: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_SAVES, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "slow.py"]
    command += list(map(str, ("train", story, *OPTIONS, "--max-steps", 4, "--save-every", 2, "--out", "run")))
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / "run").training["step"] == 4


class Meeting(World):
    """A process of two whose collective is a list of the other's flags."""

    votes: ClassVar[list[bool]] = []

    def any(self, flag: bool) -> bool:
        self.votes.append(flag)
        return flag if self.is_first else len(self.votes) == 3


def test_the_first_process_works_while_the_others_meet_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "HEARTBEAT", 0.01)
    assert World().while_first(lambda: 5) == 5
    released = Event()
    monkeypatch.setattr(Meeting, "votes", [])
    first = Meeting(0, 2)

    def work() -> int:
        released.wait(10)
        return 7

    def any_of(world: Meeting, flag: bool) -> bool:
        Meeting.votes.append(flag)
        if len(Meeting.votes) == 3:
            released.set()
        return flag

    monkeypatch.setattr(Meeting, "any", any_of)
    assert first.while_first(work) == 7
    assert len(Meeting.votes) >= 4
    assert Meeting.votes[-1]
    assert not any(Meeting.votes[:3])
    with pytest.raises(GptcliError, match="no room"):
        first.while_first(fails)


def test_the_others_wait_without_working(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meeting, "votes", [])
    assert Meeting(1, 2).while_first(fails) is None
    assert Meeting.votes == [False] * 3


def fails() -> None:
    raise GptcliError("no room", "")


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = Placement(torch.device("cuda"), torch.float32, "a GPU is present")
    assert distributed.place(World(1, 2, 1, 2), gpu).device == torch.device("cuda", 1)
    assert distributed.place(World(3, 4, 1, 2), gpu).device == torch.device("cuda", 1)
    for rank in range(3):
        with pytest.raises(GptcliError) as error:
            distributed.place(World(rank, 3, rank, 3), gpu)
        assert "3 processes on this machine" in error.value.message
        assert "Start 2 processes" in error.value.hint


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
