"""What a run says of itself besides its losses: TensorBoard, its share of the device's peak, its precision."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import TINY

from gptcli.checkpoints import checkpoint
from gptcli.cli import training_view
from gptcli.device import machine, peak_flops, placement
from gptcli.errors import GptcliError
from gptcli.model.cost import training_flops_rule
from gptcli.training import events, tensorboard, trainer
from gptcli.training import step as stepping
from gptcli.training.pace import Forecast

OPTIONS = (*TINY, "--max-steps", 6, "--save-every", 2, "--eval-every", 2, "--sample-every", 0, "--threads", 1)
CPU = torch.device("cpu")
needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: values by step, by tag; no step twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / tensorboard.EVENT_FILES))
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
    log = tensorboard.EventFiles(tmp_path, 0)
    log.start()
    for step in (0, 1, 2):
        log.on(events.Stepped(step, 1, 4.0 - step, 100.0, 1.0, 1e-3, None))
    log.on(events.RolledBack(1, 0.25))
    log.on(events.Stepped(1, 1, 7.0, 100.0, 1.0, 1e-3, None))
    log.end()
    assert scalars(tmp_path)["loss/batch"] == {0: 4.0, 1: 7.0}
    assert "speed/mfu" not in scalars(tmp_path)


@needs_tensorboard
def test_event_files_that_cannot_be_written_do_not_end_the_run(gptcli: Any, story: Path, tmp_path: Path) -> None:
    assert gptcli("train", story, *OPTIONS, "--out", "run").code == 0
    Path("run", tensorboard.EVENT_FILES).write_text("a file is in the way", encoding="utf-8")
    done = gptcli("train", "--resume", "run", "--max-steps", 8, "--log", "tensorboard")
    assert done.code == 0
    assert "TensorBoard's event files: removed, and the run continues." in done.err
    assert checkpoint.read_metrics(Path("run"))[-1]["step"] == 7


def test_without_the_package_tensorboard_is_refused(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    refused = gptcli("train", story, *OPTIONS, "--log", "tensorboard", "--out", "run")
    refused.assert_user_error("tensorboard, which is not installed", 'pip install "gptcli[tensorboard]"')
    gptcli("train", story, *OPTIONS, "--log", "tensorbord", "--out", "run").assert_user_error(
        "'tensorbord'", "Did you mean tensorboard"
    )
    assert not Path("run").exists()


# The time that is left


def test_the_forecast_leaves_out_the_first_step_and_counts_evaluations(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step takes 40 s, every other one 1 s; an evaluation 2 s, half of them on each part."""
    now, steps = 0.0, 0
    take_step, evaluate = stepping.Stepper.launch, trainer.mean_loss

    def step(*arguments: Any) -> Any:
        nonlocal now, steps
        now, steps = now + (1 if steps else 40), steps + 1
        return take_step(*arguments)

    def mean_loss(*arguments: Any) -> float:
        nonlocal now
        now += 1
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(training_view, "Forecast", lambda: Forecast(lambda: now))
    monkeypatch.setattr(stepping.Stepper, "launch", step)
    monkeypatch.setattr(trainer, "mean_loss", mean_loss)
    options = ("--max-steps", 40, "--sample-every", 0, "--eval-every", 5, "--save-every", 100, "--threads", 1)
    result = gptcli("train", story, *TINY, *options, "--out", "run")
    assert result.code == 0, result.err
    rows = checkpoint.read_metrics(Path("run"))
    assert [row["tokens_per_second"] for row in rows] == [64 / 40, *[64.0] * (len(rows) - 1)]
    assert rows[-1]["seconds"] == 40 + 39 + 9 * 2
    assert re.findall(r"Forecast: about (.*) to go", result.err) == ["51 s"]  # after 5 steps: 35, and 8 evaluations


# The device's peak


def test_the_share_of_the_peak_is_the_speed_times_six_flops_a_parameter(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_flops, "measured_rate", lambda *_: 5e13)
    result = gptcli("train", story, *OPTIONS, "--out", "run")
    assert result.code == 0, result.err
    flops = training_flops_rule(checkpoint.load(Path("run")).config.with_changes(tie_weights=True))
    rows = checkpoint.read_metrics(Path("run"))
    for row in rows:
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 5e13)
    speed = f"{rows[-1]['tokens_per_second']:,.0f} tokens/s, {rows[-1]['mfu']:.0%} of the peak"
    assert f"{speed} (50 TFLOP/s in float32, measured), counting 6 FLOPs a parameter and token." in result.err


def test_more_than_the_peak_is_no_share(gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_flops, "measured_rate", lambda *_: 1.0)
    result = gptcli("train", story, *OPTIONS, "--out", "run")
    assert re.search(r"tokens/s, \S+ GFLOP/s beside the peak \(0\.0 GFLOP/s in float32, measured\)", result.err)
    assert "% of the peak" not in result.err
    assert all(row["mfu"] > 1 for row in checkpoint.read_metrics(Path("run")))


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
        assert peak_flops.known_peak(name, dtype) == peak_flops.Peak(half * 1e12, f"of the {name}")
    assert peak_flops.known_peak(name, torch.float32) == peak_flops.Peak(single * 1e12, f"of the {name}")


@pytest.mark.parametrize(
    ("name", "multiprocessors", "half", "share"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 60, 989 * 60 / 132, "60 of 132"),
        ("NVIDIA H100 PCIe MIG 1g.10gb", 14, 756 * 14 / 114, "14 of 114"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 14, 312 * 14 / 108, "14 of 108"),
        ("NVIDIA A100-SXM4-40GB MIG 7g.40gb", 98, 312 * 98 / 108, "98 of 108"),
    ],
)
def test_an_instance_of_a_split_gpu_has_its_share_of_the_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, multiprocessors: int, half: float, share: str
) -> None:
    pretend_gpu(monkeypatch, name, multiprocessors)
    found = peak_flops.peak(torch.device("cuda"), torch.bfloat16)
    assert found == peak_flops.Peak(pytest.approx(half * 1e12), f"of the {name}, {share} multiprocessors")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, name: str, multiprocessors: int) -> None:
    """Have torch say that its GPU is of such a name and size."""
    facts = SimpleNamespace(name=name, multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L4 MIG 1g.5gb", "NVIDIA GeForce GTX 1080", "A1000"],
)
def test_unknown_gpus_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops.known_peak(name, torch.float32) is None
    pretend_gpu(monkeypatch, name, 20)
    monkeypatch.setattr(peak_flops, "measured_rate", lambda *_: 3e12)
    assert peak_flops.peak(torch.device("cuda"), torch.float32) == peak_flops.Peak(3e12, "measured")


def test_a_measured_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 0.25, 0.125, 0.5, 7.0])  # seconds; the first product warms up, and three are measured
    sizes: list[int] = []
    monkeypatch.setattr(peak_flops, "_seconds", lambda square, at_once: sizes.append(len(square)) or next(times))
    rate = peak_flops.measured_rate.__wrapped__(CPU, torch.float32, 1)
    assert set(sizes) == {1024}
    assert rate == 2 * 1024**3 / 0.125
    assert next(times) == 7.0


# The precision


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"avx512_bf16", "amx_bf16"})])
def test_auto_is_float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    assert placement.training_precision("auto", CPU) == placement.Precision("float32", "auto on a CPU")
    assert placement.training_precision("auto", torch.device("mps")).name == "float32"
    assert placement.training_precision("bfloat16", CPU) == placement.Precision("bfloat16", "asked for")
    with pytest.raises(GptcliError, match="float8"):
        placement.training_precision("float8", CPU)


@pytest.mark.parametrize(("has_it", "name"), [(True, "bfloat16"), (False, "float16")])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch, has_it: bool, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert placement.training_precision("auto", torch.device("cuda")).name == name


def test_a_run_says_its_precision_and_keeps_it(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *OPTIONS, "--max-steps", 2, "--out", "run")
    assert "float32 (auto on a CPU)" in result.err
    assert facts_of("run")["recipe"]["dtype"] == "float32"
    result = gptcli("train", story, *OPTIONS, "--max-steps", 2, "--dtype", "bfloat16", "--out", "rough")
    assert "bfloat16 (asked for)" in result.err
    result = gptcli("train", "--resume", "rough", "--max-steps", 4, "--dtype", "auto")
    assert "bfloat16 (as before)" in result.err
    gptcli("train", "--resume", "rough", "--max-steps", 6, "--dtype", "float32").assert_user_error("bfloat16")


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ({"precision": "bfloat16"}, "bfloat16", "goes on in bfloat16, as it began."),
        ({"precision": "float32"}, "float32", "goes on in float32, as it began."),
        ({}, "float32", "goes on in float32: its snapshots do not say what that was."),
    ],
)
def test_an_old_run_that_says_auto_keeps_what_that_was(
    gptcli: Any, story: Path, was: dict[str, str], now: str, said: str
) -> None:
    assert gptcli("train", story, *OPTIONS, "--max-steps", 2, "--out", "run").code == 0
    state = max(Path("run/training").iterdir()) / "state.json"
    written = json.loads(state.read_text(encoding="utf-8"))
    written["facts"] |= was
    written["facts"]["recipe"]["dtype"] = "auto"
    state.write_text(json.dumps(written), encoding="utf-8")
    result = gptcli("train", "--resume", "run", "--max-steps", 4)
    assert result.code == 0, result.err
    assert f"The run was begun with dtype auto and {said}" in result.err
    assert facts_of("run")["recipe"]["dtype"] == now


def facts_of(run: str) -> dict[str, Any]:
    """What the newest snapshot says of its run."""
    newest = max(Path(run, "training").iterdir()) / "state.json"
    facts: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))["facts"]
    return facts


@pytest.mark.parametrize(
    ("text", "has_them"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512_bf16 avx2\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx512f avx512_bf16x\n", False),
        ("vendor\t: nobody\n", False),
        (None, False),
    ],
)
def test_bfloat16_instructions_are_known_by_the_processors_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, has_them: bool
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("sys.platform", "linux")
    assert machine.multiplies_bfloat16() is has_them
    monkeypatch.setattr("sys.platform", "darwin")
    assert not machine.multiplies_bfloat16()


@pytest.mark.parametrize("has_them", [True, False])
def test_a_run_says_that_this_cpu_is_faster_in_bfloat16(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch, has_them: bool
) -> None:
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: has_them)
    advice = "This CPU has bfloat16 instructions: --dtype bfloat16"
    wide = (*OPTIONS, "--emb-dim", 512)
    assert (advice in gptcli("train", story, *wide, "--out", "run").err) is has_them
    assert advice not in gptcli("train", story, *OPTIONS, "--out", "narrow").err
    assert advice not in gptcli("train", story, *wide, "--dtype", "float32", "--out", "other").err
    assert advice not in gptcli("train", "--resume", "run", "--max-steps", 8).err
