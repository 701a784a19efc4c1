"""Two processes and one run: one goes on, the other is told which process has it, and not a byte is lost."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
from runs import TINY

from gptcli.checkpoints import checkpoint, run_lock
from gptcli.errors import GptcliError

HERE = ("--dtype", "float32", "--device", "cpu", "--threads", 1, "--sample-every", 0)
BEGUN = (*TINY, *HERE, "--max-steps", 4, "--save-every", 3, "--eval-every", 50, "--keep", 1)
MORE = ("--max-steps", 250, "--save-every", 100)


def command(folder: Path, name: str, barrier: Any, arguments: tuple[Any, ...]) -> None:
    """One process's command, begun when the other one is ready as well; its words in the file ``name``."""
    from gptcli.cli import main

    os.chdir(folder)
    told = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    if barrier is not None:
        barrier.wait()
    os._exit(main([str(argument) for argument in arguments]))


def context() -> Any:
    """Children that begin with torch imported, where the system can fork."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["gptcli.cli", "gptcli.training.trainer", "gptcli.data.documents", "matplotlib.figure"])
    return made


def start(folder: Path, name: str, *arguments: Any, barrier: Any = None) -> Any:
    process = context().Process(target=command, args=(folder, name, barrier, arguments))
    process.start()
    return process


def wait_for_steps(run: Path, process: Any) -> None:
    """Until a run that was just begun has trained, or has ended."""
    while process.is_alive() and not (run / run_lock.OWNER).exists():
        time.sleep(0.01)
    while process.is_alive() and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    assert process.is_alive()


def left_behind(run: Path) -> tuple[bytes, bytes, list[Any]]:
    """The weights, the newest optimizer state, and the metrics without what clocks and meters say."""
    newest = max((run / "training").iterdir())
    measured = ("seconds", "tokens_per_second", "memory", "mfu")
    rows = [{k: v for k, v in row.items() if k not in measured} for row in checkpoint.read_metrics(run)]
    return (run / "model.safetensors").read_bytes(), (newest / "optimizer.safetensors").read_bytes(), rows


def go_on_twice_at_once(gptcli: Any, folder: Path, story: Path, pairs: int) -> None:
    assert gptcli("train", story, *BEGUN, "--out", "begun").code == 0
    shutil.copytree("begun", "alone")
    assert gptcli("train", "--resume", "alone", *MORE).code == 0
    expected = left_behind(Path("alone"))
    for number in range(pairs):
        run = Path(shutil.copytree("begun", f"run-{number}"))
        barrier = context().Barrier(2)
        processes = [start(folder, f"told-{n}", "train", "--resume", run, *MORE, barrier=barrier) for n in (0, 1)]
        for process in processes:
            process.join()
        told = [Path(f"told-{n}").read_text(encoding="utf-8") for n in (0, 1)]
        refused = [process.exitcode for process in processes].index(2)
        assert processes[1 - refused].exitcode == 0, told[1 - refused]
        lines = told[refused].strip().splitlines()
        assert len(lines) == 2, told[refused]
        assert lines[0].startswith(f"Error: {run} is in use: process {processes[1 - refused].pid} on "), lines
        assert left_behind(run) == expected
        assert not (run / run_lock.OWNER).exists()
        shutil.rmtree(run)


def test_of_two_that_go_on_at_once_one_is_refused(gptcli: Any, tmp_path: Path, story: Path) -> None:
    go_on_twice_at_once(gptcli, tmp_path, story, pairs=2)


@pytest.mark.slow
def test_fifty_pairs_that_go_on_at_once(gptcli: Any, tmp_path: Path, story: Path) -> None:
    go_on_twice_at_once(gptcli, tmp_path, story, pairs=50)


def test_a_run_under_way_is_neither_replaced_nor_gone_on_with_until_its_process_is_gone(
    gptcli: Any, tmp_path: Path, story: Path
) -> None:
    begin = ("train", story, *TINY, *HERE, "--max-steps", 100_000, "--save-every", 20, "--eval-every", 20)
    process = start(tmp_path, "told", *begin, "--out", "run")
    wait_for_steps(Path("run"), process)
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "finished", "other")
    for arguments in (
        (*begin, "--out", "run", "--force"), ("train", "--resume", "run"), ("export", "other", "run", "--force"),
        ("quantize", "other", "--out", "run", "--force"),
    ):  # fmt: skip
        gptcli(*arguments).assert_user_error("run is in use", f"process {process.pid} on {socket.gethostname()}")
    process.kill()
    process.join()
    step = checkpoint.load(Path("run")).training["step"]
    assert step >= 1
    assert (Path("run") / run_lock.OWNER).exists()  # it could not tidy up, and that hinders nobody
    result = gptcli("train", "--resume", "run", "--max-steps", step + 2)
    assert result.code == 0, result.err
    assert gptcli("quantize", "other", "--out", "run", "--force").code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["other", "run", "story.txt", "told"]


def test_a_refused_resume_lets_go_of_the_lock(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *BEGUN, "--out", "run").code == 0
    gptcli("train", "--resume", "run").assert_user_error("has ended")
    assert gptcli("train", "--resume", "run", "--max-steps", 5).code == 0
    assert gptcli("train", story, *BEGUN, "--out", "run", "--force").code == 0


def test_what_is_no_run_gets_no_lock(gptcli: Any, tmp_path: Path) -> None:
    Path("folder").mkdir()
    gptcli("train", "--resume", "folder").assert_user_error("no snapshot")
    assert list(Path("folder").iterdir()) == []


def test_a_disk_without_locks_is_said_in_one_line(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    for arguments in (("train", story, *BEGUN, "--out", "run"), ("train", "--resume", "run", "--max-steps", 5)):
        result = gptcli(*arguments, "--quiet")
        assert result.code == 0, result.err
        assert result.err.count("The disk of run supports no locks") == 1
    assert gptcli("train", story, *BEGUN, "--out", "run", "--force").code == 0


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(GptcliError, match="Cannot lock"), run_lock.held(tmp_path):
        raise AssertionError


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"pid": 4194999, "host": "HERE"}', '{"pid": 10000000000000000000, "host": "HERE"}']
)
def test_an_owner_that_is_unknown_or_long_gone_is_not_named(tmp_path: Path, said: str) -> None:
    with run_lock.held(tmp_path):
        (tmp_path / run_lock.OWNER).write_text(said.replace("HERE", socket.gethostname()), encoding="utf-8")
        with pytest.raises(GptcliError, match="in use: another process trains"), run_lock.held(tmp_path):
            raise AssertionError
        (tmp_path / run_lock.OWNER).write_text(json.dumps({"pid": 7, "host": "elsewhere"}), encoding="utf-8")
        with pytest.raises(GptcliError, match="process 7 on elsewhere"):
            run_lock.refuse_held(tmp_path)


def test_the_first_process_alone_takes_the_lock(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gptcli("train", story, *BEGUN, "--out", "run").code == 0
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with run_lock.held(Path("run")):
        result = gptcli("train", "--resume", "run")
        assert "has ended" in result.err
        assert "in use" not in result.err
