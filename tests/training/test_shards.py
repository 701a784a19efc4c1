"""FSDP2's shards: what a run begins with, what it writes, and how much memory a process takes for it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY

from gptcli.checkpoints import checkpoint, overwrite
from gptcli.checkpoints.safetensors_file import write_tensors
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import Init
from gptcli.errors import GptcliError, SettingError
from gptcli.tokenizers.byte import ByteTokenizer
from gptcli.training import distributed, snapshot_rows, snapshots
from gptcli.training.distributed import World
from gptcli.training.initial_model import initial_model, streamed_weights

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
SHAPE = {"vocab_size": 257, "context_length": 8, "emb_dim": 12, "n_heads": 2, "n_layers": 2}
CPU = torch.device("cpu")


@pytest.mark.parametrize("init", ["gpt2", "course"])
@pytest.mark.parametrize(
    "more",
    [
        {"qkv_bias": False, "tie_weights": False},
        {"qkv_bias": True, "tie_weights": True},
        {"qkv_bias": True, "tie_weights": True, "labels": ("no", "yes")},
    ],
    ids=["untied", "tied", "classifier"],
)
def test_streamed_weights_are_those_of_the_whole_model(tmp_path: Path, more: dict[str, Any], init: Init) -> None:
    config = GPTConfig(**SHAPE, **more)
    whole = checkpoint.to_file(initial_model(config, init, 7, None, None, CPU))
    write_tensors(tmp_path / "whole", whole)
    write_tensors(tmp_path / "streamed", streamed_weights(config, init, 7, None))
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_streamed_weights_of_a_checkpoint_are_its_own(tmp_path: Path) -> None:
    config = GPTConfig(**SHAPE, qkv_bias=False, tie_weights=False)
    model = initial_model(config, "gpt2", 3, None, None, CPU)
    checkpoint.create(tmp_path / "origin", model, ByteTokenizer(), {})
    origin = checkpoint.load(tmp_path / "origin")
    write_tensors(tmp_path / "streamed", streamed_weights(config, "gpt2", 7, origin))
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "origin" / "model.safetensors").read_bytes()


def test_frozen_weights_are_not_shared_out() -> None:
    tuned = FinetuneConfig(train="lora")
    with pytest.raises(SettingError, match="all weights are trained, but train is lora") as error:
        initial_model(GPTConfig(**SHAPE), None, 1, None, tuned, CPU, World(0, 2))
    assert "Leave shard out" in error.value.hint


def test_the_first_process_writes_what_is_no_shard() -> None:
    tensors = {"step": torch.tensor(3.0), "random": torch.arange(4)}
    assert distributed.own_rows(tensors, World(0, 2)).keys() == tensors.keys()
    assert distributed.own_rows(tensors, World(1, 2)) == {}


def test_rows_on_another_disk_are_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    weights = {"wte.weight": torch.ones(3, 2)}
    snapshot_rows.write(run, 12, 0, (weights, {}, {}))
    with pytest.raises(SettingError, match="Process 1 has written its part of the model to another disk") as error:
        snapshot_rows.read(run, 12, 2)
    assert "on a disk that they share" in error.value.hint
    snapshot_rows.write(run, 12, 1, (weights, {}, {}))
    read, state, best = snapshot_rows.read(run, 12, 2)
    assert (state, best) == ({}, {})
    write_tensors(tmp_path / "merged", read)
    with pytest.raises(SettingError, match="Process 1 does not find ") as error:
        snapshot_rows.first(tmp_path / "absent", 1)
    assert "on a disk that they share" in error.value.hint


def test_rows_that_a_killed_run_left_are_a_part_of_a_snapshot(tmp_path: Path) -> None:
    folder = snapshots.rows_folder(tmp_path, 12, 3)
    assert folder.parent == tmp_path / "training"
    assert snapshots.HALF_A_SNAPSHOT.fullmatch(folder.name)
    for name in snapshot_rows.FILES:
        assert overwrite.CHECKPOINT.ours.fullmatch(f"training/{folder.name}/{name}")


def test_all_processes_wait_for_the_slowest_and_hear_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "HEARTBEAT", 0.01)
    assert World().while_all(lambda: 5) == 5
    others = [True, True, False, False]  # another process works on for two heartbeats

    def votes(world: World, flag: bool) -> bool:
        return others.pop(0) or flag

    monkeypatch.setattr(World, "any", votes)
    assert World(0, 2).while_all(lambda: 7) == 7
    assert others == []

    def fails() -> None:
        raise GptcliError("no room", "")

    others[:] = [False, True]
    with pytest.raises(GptcliError, match="no room"):
        World(0, 2).while_all(fails)
    others[:] = [False, True]
    with pytest.raises(GptcliError, match="Another process has failed"):
        World(0, 2).while_all(lambda: 7)


MEASURED = """
import json, os, sys
from pathlib import Path
import torch.distributed.fsdp, torch.distributed.tensor, torch._dynamo  # their code is not what is measured
from gptcli.checkpoints import checkpoint
from gptcli.training import distributed, snapshots, trainer
from gptcli.training.run import Run

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))

def measured(owner, name):
    real = getattr(owner, name)
    def work(*arguments):
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        result = real(*arguments)
        with open(f"memory-{os.environ['RANK']}.jsonl", "a") as file:
            file.write(json.dumps({"work": name, "peak": status("VmHWM") - before}) + "\\n")
        return result
    setattr(owner, name, work)

measured(distributed, "shard")
measured(Run, "_begin_directory")
measured(trainer._Run, "_restore")
measured(trainer._Run, "_save")
from gptcli.cli import main
sys.exit(main(sys.argv[1:]))
"""
LARGE = ("--emb-dim", 768, "--n-heads", 12, "--n-layers", 5, "--context-length", 16, "--batch-size", 4)
MEGABYTE = 2**20


def run_measured(folder: Path, processes: int, *arguments: Any) -> list[dict[str, int]]:
    """The peaks of a command's parts, each above what the process held before, of every process."""
    for old in folder.glob("memory-*.jsonl"):
        old.unlink()
    (folder / "measured.py").write_text(MEASURED, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, "measured.py", *map(str, arguments)],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = []
    for rank in range(processes):
        peaks: dict[str, int] = {}
        for line in (folder / f"memory-{rank}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            peaks[row["work"]] = max(row["peak"], peaks.get(row["work"], 0))
        found.append(peaks)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a part is read from /proc")
def test_a_process_takes_its_share_and_one_tensor(gptcli: Any, tmp_path: Path, story: Path) -> None:
    """143 MB of weights, of which the largest tensor has 9.4: four processes, then two, then one without shards."""
    text = tmp_path / "text.txt"
    text.write_text(story.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    # Code that is loaded and the heaps of threads; in the first process also that of saving, with its buffers.
    slack = [16 * MEGABYTE, *[6 * MEGABYTE] * 3]
    options = ("--tokenizer", "byte", *LARGE, "--eval-every", 1, "--save-every", 1, "--sample-every", 0, "--threads", 1)
    four = run_measured(tmp_path, 4, "train", text, *options, "--shard", "--max-steps", 2, "--out", "run")
    weights = (tmp_path / "run" / "model.safetensors").stat().st_size
    one_tensor = 4 * 768 * 3072
    for peaks, more in zip(four, slack, strict=True):
        assert peaks["shard"] + peaks.get("_begin_directory", 0) <= weights / 4 + one_tensor + more
        assert peaks["shard"] + peaks["_restore"] <= weights / 4 + one_tensor + more
        assert peaks["_save"] <= one_tensor + more
    two = run_measured(tmp_path, 2, "train", "--resume", "run", "--max-steps", 3)
    # Half of the weights, of the two moments and of the best weights, and pages of the mapped files that they are read
    # from: those count as this process's, and the system takes them back when it needs memory.
    for peaks in two:
        assert peaks["shard"] + peaks["_restore"] <= 0.75 * 4 * weights
    assert gptcli("train", text, *options, "--max-steps", 4, "--out", "whole").code == 0
    assert gptcli("train", "--resume", "run", "--max-steps", 4).code == 0
    ours, theirs = (checkpoint.read_metrics(Path(name)) for name in ("run", "whole"))
    assert [row["val_loss"] for row in ours] == pytest.approx([row["val_loss"] for row in theirs], rel=1e-5)


@pytest.mark.slow
def test_the_snapshots_of_shards_are_like_any_others(gptcli: Any, tmp_path: Path, story: Path) -> None:
    options = (*TINY, "--threads", 1, "--sample-every", 0, "--eval-every", 1, "--save-every", 1, "--keep", 5)
    run_measured(tmp_path, 2, "train", story, *options, "--shard", "--max-steps", 3, "--out", "run")
    assert gptcli("train", story, *options, "--max-steps", 3, "--out", "whole").code == 0
    ours = {file.relative_to(tmp_path / "run") for file in (tmp_path / "run").rglob("*.safetensors")}
    assert ours == {file.relative_to("whole") for file in Path("whole").rglob("*.safetensors")}
    first = Path("training/step-00000000/model.safetensors")
    assert (tmp_path / "run" / first).read_bytes() == (Path("whole") / first).read_bytes()
    assert not list((tmp_path / "run" / "training").glob(".*"))
