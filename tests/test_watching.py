"""What a run says of itself besides its losses: TensorBoard, its share of the device's peak, its precision."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY

from gptcli import checkpoint, device, events, peaks, tensorboard
from gptcli.accounting import training_flops_rule

OPTIONS = (*TINY, "--max-steps", 6, "--save-every", 2, "--eval-every", 2, "--sample-every", 0, "--threads", 1)
CPU = torch.device("cpu")
needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: values by step, by tag; no step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / tensorboard.FOLDER))
    read.Reload()
    found = {tag: read.Scalars(tag) for tag in read.Tags()["scalars"]}
    for tag, points in found.items():
        assert len({point.step for point in points}) == len(points), tag
    return {tag: {point.step: point.value for point in points} for tag, points in found.items()}


@needs_tensorboard
def test_tensorboard_shows_what_the_metrics_say_also_after_a_resume(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OPTIONS, "--log", "tensorboard", "--out", "run").code == 0
    whole = scalars(Path("run"))
    rows = checkpoint.read_metrics(Path("run"))
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    for tag, field in (("loss/train", "train_loss"), ("loss/validation", "val_loss"), ("memory_bytes", "memory")):
        assert whole[tag] == pytest.approx({row["step"]: row[field] for row in rows}, rel=1e-6)
    for tag in ("loss/batch", "learning_rate", "grad_norm", "speed/tokens_per_second", "speed/mfu"):
        assert list(whole[tag]) == list(range(6))
    assert whole["grad_norm"][5] == pytest.approx(rows[-1]["grad_norm"], rel=1e-6)
    shutil.rmtree("run/training/step-00000006")  # as if killed in its fifth step
    assert gptcli("train", "--resume", "run").code == 0
    again = scalars(Path("run"))
    assert len(list(Path("run/tensorboard").iterdir())) == 2
    for tag in ("loss/batch", "loss/train", "loss/validation", "learning_rate", "grad_norm"):
        assert again[tag] == whole[tag]
    assert gptcli("train", "--resume", "run", "--max-steps", 8, "--log", "none").code == 0
    assert scalars(Path("run")) == again


@needs_tensorboard
def test_a_run_that_goes_back_takes_back_what_it_told(tmp_path: Path) -> None:
    log = tensorboard.EventLog(tmp_path, 0)
    for step in (0, 1, 2):
        log.tell(events.Stepped(step, 1, 4.0 - step, 100.0, 1.0, 1e-3, None))
    log.tell(events.WentBack(1, 0.25))
    log.tell(events.Stepped(1, 1, 7.0, 100.0, 1.0, 1e-3, None))
    log.close()
    assert scalars(tmp_path)["loss/batch"] == {0: 4.0, 1: 7.0}
    assert "speed/mfu" not in scalars(tmp_path)


@needs_tensorboard
def test_event_files_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / tensorboard.FOLDER).write_text("a file is in the way", encoding="utf-8")
    with pytest.raises(tensorboard.GptcliError, match=r"Cannot write .*tensorboard"):
        tensorboard.EventLog(tmp_path, 0)


def test_without_the_package_tensorboard_is_refused(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    refused = gptcli("train", story, *OPTIONS, "--log", "tensorboard", "--out", "run")
    refused.assert_user_error("tensorboard, which is not installed", 'pip install "gptcli[tensorboard]"')
    gptcli("train", story, *OPTIONS, "--log", "tensorbord", "--out", "run").assert_user_error(
        "'tensorbord'", "Did you mean tensorboard"
    )
    assert not Path("run").exists()


# The device's peak


def test_the_share_of_the_peak_is_the_speed_times_six_flops_a_parameter(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "measured_rate", lambda *_: 5e9)
    result = gptcli("train", story, *OPTIONS, "--out", "run")
    assert result.code == 0, result.err
    flops = training_flops_rule(checkpoint.load(Path("run")).config.with_changes(tie_weights=True))
    rows = checkpoint.read_metrics(Path("run"))
    for row in rows:
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 5e9)
    speed = f"{rows[-1]['tokens_per_second']:,.0f} tokens/s, {rows[-1]['mfu']:.0%} of the peak"
    assert f"{speed} (5.0 GFLOP/s in float32, measured), counting 6 FLOPs a parameter and token." in result.err


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51.2),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA A10G", 70, 35),
        ("Tesla V100-SXM2-16GB", 125, 15.7),
        ("Tesla T4", 65, 8.1),
        ("NVIDIA GeForce RTX 3090", 71, 35.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ],
)
def test_known_gpus(name: str, half: float, single: float) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert peaks.known_peak(name, dtype) == half * 1e12
    assert peaks.known_peak(name, torch.float32) == single * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GeForce GTX 1080", "A1000"],
)
def test_unknown_gpus_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peaks.known_peak(name, torch.float32) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peaks, "measured_rate", lambda *_: 3e12)
    assert peaks.peak(torch.device("cuda"), torch.float32) == peaks.Peak(3e12, "measured")


def test_a_measured_rate_is_a_real_one() -> None:
    """Above what one product takes at its slowest, and no more than the fastest core could ever do."""
    rate = peaks.measured_rate(CPU, torch.float32, torch.get_num_threads())
    square = torch.ones(1024, 1024)
    slowest = 2 * 1024**3 / max(peaks._seconds(square) for _ in range(5))
    assert 0.5 * slowest < rate < 1e12 * torch.get_num_threads()


# The precision on a CPU


@pytest.mark.parametrize(
    ("speed", "name", "reason"),
    [
        (6.04, "bfloat16", "6.0 times as fast as float32 here"),
        (1.4, "float32", "no faster here"),
        (0.01, "float32", "slower here"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speed: float, name: str, reason: str
) -> None:
    monkeypatch.setattr(device, "bfloat16_speed", lambda width, threads: speed)
    found = device.training_precision("auto", CPU, 64)
    assert found.name == name
    assert reason in found.reason
    assert device.training_precision("float16", CPU, 64) == device.Precision("float16", "asked for")


def test_the_probe_measures_and_gives_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < device.bfloat16_speed.__wrapped__(64, 1) < 100
    rows: list[int] = []

    def seconds(inputs: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> float:
        rows.append(len(inputs))
        return 1.0 if dtype == torch.float32 else 300.0

    monkeypatch.setattr(device, "_product_seconds", seconds)
    assert device.bfloat16_speed.__wrapped__(64, 1) == 1 / 300
    assert max(rows) < 10


def test_a_run_says_its_precision_and_keeps_it(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "bfloat16_speed", lambda width, threads: 3.0)
    result = gptcli("train", story, *OPTIONS, "--max-steps", 2, "--out", "run")
    assert "bfloat16 (3.0 times as fast as float32 here)" in result.err
    monkeypatch.setattr(device, "bfloat16_speed", lambda width, threads: 0.1)
    result = gptcli("train", "--resume", "run", "--max-steps", 4)
    assert "bfloat16 (as before)" in result.err
    state = json.loads((max(Path("run/training").iterdir()) / "state.json").read_text(encoding="utf-8"))
    assert state["facts"]["recipe"]["dtype"] == "auto"
    result = gptcli("train", story, *OPTIONS, "--max-steps", 2, "--out", "other")
    assert "float32 (bfloat16 is slower here)" in result.err
