"""A run that is killed, stopped, starved of disk or fed NaN, and goes on: to the bit as if nothing had happened."""

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TEXT, TINY

from gptcli import tokenizers
from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPTModel
from gptcli.training import snapshots
from gptcli.training.optimizers import learning_rate
from gptcli.training.progress import Progress

OFTEN = (*TINY, "--save-every", 1, "--eval-every", 3, "--sample-every", 0, "--threads", 1)
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def left_behind(run: Path) -> tuple[bytes, bytes, list[Any]]:
    """The weights, the newest optimizer state, and the metrics without what clocks and meters say."""
    newest = max((run / "training").iterdir())
    measured = ("seconds", "tokens_per_second", "memory", "mfu")
    rows = [{k: v for k, v in row.items() if k not in measured} for row in checkpoint.read_metrics(run)]
    return (run / "model.safetensors").read_bytes(), (newest / "optimizer.safetensors").read_bytes(), rows


# Killed


def session(folder: Path, arguments: tuple[Any, ...], changes: int | None = None) -> None:
    """One process of a run, its words in a file; it is killed before a change of the run's files, if ``changes`` says
    how many it makes before that."""
    from gptcli.cli import main

    os.chdir(folder)
    if changes is not None:
        left = iter(range(changes))

        def die_before(event: str, about: tuple[Any, ...]) -> None:
            writes = event in CHANGES or (event == "open" and isinstance(about[0], str) and about[2] & WRITING)
            if not writes:  # some events have no arguments
                return
            is_its_own = str(about[0]).startswith((f"{folder}/run", f"{folder}/.run", "run", ".run"))
            if is_its_own and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die_before)
    told = os.open("told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(told, 1)
    os.dup2(told, 2)
    os._exit(main([str(argument) for argument in arguments]))


# What a session imports before its first step and after its last; a module that is not there is passed over.
IMPORTED_BEFORE = [
    "gptcli.cli.train", "gptcli.cli.training_view", "gptcli.cli.training_end", "gptcli.cli.tables",
    "gptcli.training.new_run", "gptcli.training.resume", "gptcli.training.calibration", "gptcli.inspection.plots",
    "matplotlib.backends.backend_agg", "pydantic.type_adapter", "safetensors.torch", "filelock",
]  # fmt: skip


CHANGES = ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR


def start(folder: Path, *arguments: Any, changes: int | None = None) -> Any:
    """A session in a child of a server that has imported torch but never computed: it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_BEFORE)
    process = context.Process(target=session, args=(folder, arguments, changes))
    process.start()
    return process


def kill_until_done(folder: Path, story: Path, kills: int, seed: int) -> int:
    """Train in sessions that are killed with -9 at random instants, from scratch again once done; the kills it took."""
    instants, done, whole = random.Random(seed), 0, None
    begin = ("train", story, *OFTEN, "--epochs", 1, "--out", "run")
    while True:
        arguments = ("train", "--resume", "run") if (folder / "run").exists() else begin
        started = time.perf_counter()
        process = start(folder, *arguments)
        if whole is not None and done < kills:
            process.join(instants.uniform(0.0, whole))
        else:
            process.join()
        if process.is_alive():
            process.kill()
            process.join()
            done += 1
            continue
        assert process.exitcode in (0, 2), (folder / "told").read_text()
        if process.exitcode == 2:  # killed after the last save
            assert "has ended" in (folder / "told").read_text().splitlines()[-2]
        found = left_behind(folder / "run")
        if whole is None:
            whole, expected = time.perf_counter() - started, found
        if arguments is begin:
            whole = min(whole, time.perf_counter() - started)  # the first session waits for the server as well
        assert found == expected
        if done >= kills:
            return done
        shutil.rmtree(folder / "run")


@posix
def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(tmp_path: Path, story: Path) -> None:
    assert kill_until_done(tmp_path, story, kills=3, seed=1) == 3


@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 7))
def test_killed_at_many_random_instants(tmp_path: Path, story: Path, seed: int) -> None:
    """200 kills in all; a seed takes half a minute, and on a busy machine several times that."""
    assert kill_until_done(tmp_path, story, kills=40, seed=seed) == 40


def killed_before_change(folder: Path, options: tuple[Any, ...], changes: int) -> bool:
    """Train with a kill after so many changes of files, then go on to the end; whether there was one to kill before."""
    process = start(folder, "train", *options, "--out", "run", changes=changes)
    process.join()
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL, (folder / "told").read_text()
    again = ("train", "--resume", "run") if (folder / "run").exists() else ("train", *options, "--out", "run")
    process = start(folder, *again)
    process.join()
    assert process.exitcode in (0, 2), (folder / "told").read_text()
    if process.exitcode == 2:  # killed when all was done but a picture or the like
        assert "has ended" in (folder / "told").read_text().splitlines()[-2]
    return True


def test_resuming_makes_up_for_the_end_of_the_last_save(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OFTEN, "--max-steps", 3, "--out", "run").code == 0
    run = Path("run")
    expected, config = left_behind(run), (run / "config.json").read_bytes()
    assert not list(run.glob(".*.link"))
    before = run / "training" / "step-00000002"
    for name in ("model.safetensors", "config.json"):
        (run / name).unlink()
        shutil.copyfile(before / name, run / name)
    assert left_behind(run) != expected
    result = gptcli("train", "--resume", "run")
    assert result.code == 0, result.err
    assert left_behind(run) == expected
    assert (run / "config.json").read_bytes() == config
    gptcli("train", "--resume", "run").assert_user_error("run has ended")


def test_a_run_that_a_clock_ends_is_saved_after_its_last_evaluation(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "ended", lambda self, *_: "the time is over" if self.step >= 3 else None)
    assert gptcli("train", story, *OFTEN, "--eval-every", 100, "--max-steps", 50, "--out", "run").code == 0
    training = json.loads(Path("run/config.json").read_text(encoding="utf-8"))["gptcli"]["training"]
    assert checkpoint.read_metrics(Path("run"))[-1]["val_loss"] == training["val_loss"] == training["best"]["val_loss"]
    assert training["best"]["step"] == 2


@posix
@pytest.mark.slow
def test_killed_before_every_change_of_a_file(tmp_path: Path, story: Path) -> None:
    options = (story, *OFTEN, "--max-steps", 2)
    assert not killed_before_change(tmp_path, options, 10_000)
    expected = left_behind(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    changes = 0
    while killed_before_change(tmp_path, options, changes):
        assert left_behind(tmp_path / "run") == expected, changes
        snapshots_left = sorted(path.name for path in (tmp_path / "run" / "training").iterdir())
        assert snapshots_left == ["step-00000001", "step-00000002"], changes
        shutil.rmtree(tmp_path / "run")
        changes += 1
    assert changes > 50


# Stopped


@posix
def test_sigterm_saves_and_exits_143_and_the_run_goes_on(gptcli: Any, tmp_path: Path, story: Path) -> None:
    options = ("train", story, *OFTEN, "--epochs", 40, "--save-every", 1000, "--eval-every", 200)
    assert gptcli(*options, "--out", "whole", "-q").code == 0
    process = start(tmp_path, *options, "--out", "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 1):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    told = (tmp_path / "told").read_text(encoding="utf-8")
    assert process.exitcode == 143, told
    assert "Stopped by SIGTERM" in told
    stopped_at = checkpoint.load(tmp_path / "run").training["step"]
    assert 1 <= stopped_at < 320
    result = gptcli("train", "--resume", "run")
    assert result.code == 0, result.err
    assert f"Going on with run after step {stopped_at}." in result.err
    assert left_behind(Path("run")) == left_behind(Path("whole"))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor", "muon"])
def test_every_optimizers_memory_comes_back(gptcli: Any, story: Path, optimizer: str) -> None:
    options = (*OFTEN, "--optimizer", optimizer, "--max-steps", 4, "--save-every", 2)
    assert gptcli("train", story, *options, "--out", "run").code == 0
    expected = left_behind(Path("run"))
    shutil.rmtree("run/training/step-00000004")
    assert gptcli("train", "--resume", "run").code == 0
    assert left_behind(Path("run")) == expected


def test_more_epochs_of_a_run_that_has_ended(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OFTEN, "--epochs", 2, "--save-every", 9, "--out", "a").code == 0
    assert gptcli("train", story, *OFTEN, "--epochs", 1, "--save-every", 9, "--out", "b").code == 0
    gptcli("train", "--resume", "b").assert_user_error("b has ended: all 8 steps are done", "--epochs 2")
    assert gptcli("train", "--resume", "b", "--epochs", 2).code == 0
    weights = [left_behind(Path(name))[0] for name in "ab"]
    assert weights[0] == weights[1]


# Snapshots


def test_the_newest_snapshots_stay_and_open_as_checkpoints(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OFTEN, "--max-steps", 8, "--keep", 2, "--out", "run").code == 0
    kept = sorted(path.name for path in Path("run/training").iterdir())
    assert kept == ["step-00000007", "step-00000008"]
    result = gptcli("generate", "the", "--checkpoint", f"run/training/{kept[0]}", "-n", 3)
    assert result.code == 0, result.err


def test_by_default_saving_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    store = snapshots.Store(tmp_path, None, None, {}, keep=1, every=None)  # type: ignore[arg-type]
    assert not store.due(1)
    store._saved_at -= 61.0
    assert store.due(1)  # what it costs is not known yet: within a minute
    store._saved_at += 61.0
    store._cost = 1000.0
    store._saved_at -= 25_000.0
    assert not store.due(2)
    store._saved_at -= 40_000.0
    assert store.due(2)


def begun(run: Path) -> tuple[snapshots.Store, dict[str, torch.Tensor]]:
    """The store of a run that has begun, and weights for its snapshots."""
    tokenizer = tokenizers.build("char", TEXT)
    config = GPTConfig(tokenizer.vocab_size, 8, 8, 2, 1, 0.0)
    weights = checkpoint.to_file(GPTModel(config))
    store = snapshots.Store(run, config, tokenizer, {"recipe": {}}, keep=2, every=None)
    store.begin(weights, asdict(Progress()), force=False)
    return store, weights


def test_a_snapshot_holds_what_it_was_given(tmp_path: Path) -> None:
    store, weights = begun(tmp_path / "run")
    for step in (1, 2, 3):
        given = {name: tensor + step for name, tensor in weights.items()}
        store.save(given, {"moment": torch.full((3,), float(step))}, asdict(Progress(step=step)), {"scale": 2.0}, {})
        found, _ = snapshots.newest(tmp_path / "run")
        assert (found.progress, found.scaler) == (asdict(Progress(step=step)), {"scale": 2.0})
        assert all(torch.equal(tensor, given[name]) for name, tensor in found.weights().items())
        assert found.state()["moment"].tolist() == [step] * 3
        assert torch.equal(found.best_weights(step - 1)["wte.weight"], given["wte.weight"])


def test_a_save_begins_the_time_to_the_next(tmp_path: Path) -> None:
    store, weights = begun(tmp_path / "run")
    store._saved_at -= 61.0
    assert store.due(1)
    store.save(weights, {}, asdict(Progress(step=1)), {}, {})
    assert not store.due(2)


@posix
def test_a_save_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    store, weights = begun(tmp_path / "run")
    training = tmp_path / "run" / "training"
    for name in (".step-00000001.4194999.partial", ".step-00000003.00000001.partial", ".step-00000000.old", "notes"):
        (training / name).mkdir()
        (training / name / "file").touch()
    (training / ".step-00000002.partial").symlink_to(training / "notes")
    store.save(weights, {}, asdict(Progress(step=1)), {}, {})
    kept = sorted(path.name for path in training.iterdir())
    assert kept == [".step-00000002.partial", "notes", "step-00000000", "step-00000001"]
    assert (training / "notes" / "file").exists()


def test_an_old_snapshot_that_cannot_be_removed_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("a file in it is open elsewhere")

    store, weights = begun(tmp_path / "run")
    training = tmp_path / "run" / "training"
    store.save(weights, {}, asdict(Progress(step=1)), {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        store.save(weights, {}, asdict(Progress(step=2)), {}, {})
    assert {path.name for path in training.glob("step-*")} == {"step-00000001", "step-00000002"}
    assert (training / ".step-00000000.old").exists()
    store.save(weights, {}, asdict(Progress(step=3)), {}, {})
    assert sorted(path.name for path in training.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_config_says_what_is_known_of_a_run(tmp_path: Path) -> None:
    store, weights = begun(tmp_path / "run")
    assert checkpoint.load(tmp_path / "run").training == {"step": 0, "recipe": {}}
    evaluated = Progress(step=1, train_loss=2.0, val_loss=3.0)
    evaluated.rank(2.0, 3.0)
    store.save(weights, {}, asdict(evaluated), {}, {})
    losses, best = {"train_loss": 2.0, "val_loss": 3.0}, {"step": 0, "train_loss": 2.0, "val_loss": 3.0}
    expected = {"step": 1, "recipe": {}, **losses, "best": best, "weights": "best"}
    assert checkpoint.load(tmp_path / "run").training == expected


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"sums": {}}', '{"sums": 1}', "\xff", DEEP])
def test_a_state_of_another_form_is_passed_over(tmp_path: Path, text: str) -> None:
    store, weights = begun(tmp_path / "run")
    file = store.save(weights, {}, asdict(Progress(step=1)), {}, {}) / "state.json"
    file.write_bytes(text.encode("latin-1"))
    snapshot, passed_over = snapshots.newest(tmp_path / "run")
    assert snapshot.progress["step"] == 0
    assert passed_over == [f"{file} is missing or damaged. This snapshot is passed over for the one before."]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_newest_snapshot_is_passed_over(gptcli: Any, story: Path, name: str, damage: str) -> None:
    assert gptcli("train", story, *OFTEN, "--max-steps", 3, "--save-every", 2, "--out", "run").code == 0
    expected = left_behind(Path("run"))
    file = Path("run/training/step-00000003") / name
    raw = bytearray(file.read_bytes())
    file.unlink()  # a hard link: the run's own weights stay whole
    if damage == "cut":
        file.write_bytes(raw[:-3])
    elif damage == "flipped":
        raw[len(raw) // 2 if name != "state.json" else 0] ^= 0x10
        file.write_bytes(raw)
    result = gptcli("train", "--resume", "run")
    assert result.code == 0, result.err
    assert f"{file} is missing or damaged. This snapshot is passed over" in result.err
    assert left_behind(Path("run")) == expected


# What must not change


def test_a_changed_run_is_refused_by_name(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OFTEN, "--max-steps", 3, "--out", "run").code == 0
    before = left_behind(Path("run"))
    again = ("train", "--resume", "run", "--max-steps", 5)
    gptcli(*again, "--learning-rate", 1e-3).assert_user_error("--learning-rate is 0.001", "began with 0.0005")
    gptcli(*again, "--batch-size", 2).assert_user_error("--batch-size is 2", "began with 4")
    gptcli(*again, "--optimizer", "sgd").assert_user_error("--optimizer is sgd", "began with adamw")
    gptcli(*again, "--emb-dim", 32).assert_user_error("--emb-dim is 32", "began with 16")
    gptcli(*again, "--tokenizer", "byte").assert_user_error("--tokenizer is byte", "began with char")
    gptcli(*again, "--out", "other").assert_user_error("--out cannot be combined with --resume")
    gptcli(*again, "--init-from", "run").assert_user_error("--init-from cannot be combined with --resume")
    gptcli(*again, "--errors", "ignore").assert_user_error("--errors is ignore", "began with strict")
    story.write_text(TEXT[:-52], encoding="utf-8")
    gptcli(*again).assert_user_error("has changed: 624 characters, 624 tokens then; 572, 572 now")
    story.write_text(TEXT.replace("dog", "god"), encoding="utf-8")
    gptcli(*again).assert_user_error("is another one, though it has 624 characters")
    assert left_behind(Path("run")) == before
    story.write_text(TEXT, encoding="utf-8")
    assert gptcli(*again).code == 0


def test_resuming_what_is_no_run(gptcli: Any, story: Path) -> None:
    gptcli("train", "--resume", "nowhere").assert_user_error("nowhere")
    assert gptcli("train", story, *OFTEN, "--max-steps", 1, "--out", "run").code == 0
    shutil.rmtree("run/training")
    gptcli("train", "--resume", "run").assert_user_error("no snapshot of a training run", "--init-from run")
    with pytest.raises(GptcliError, match="no snapshot of a training run"):
        snapshots.newest(Path("run"))
    gptcli("train").assert_user_error("no text")


def test_a_tokenizer_of_another_text_is_refused(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *OFTEN, "--max-steps", 1, "--out", "run").code == 0
    for file in Path("run/training/step-00000001").glob("tokenizer*"):
        said = json.loads(file.read_text(encoding="utf-8"))
        told = json.dumps(said).replace('"a"', '"z"')
        file.unlink()
        file.write_text(told, encoding="utf-8")
    result = gptcli("train", "--resume", "run", "--max-steps", 2)
    assert result.code == 2
    assert "tokenizer" in result.err


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Any]:
    """Mount a tmpfs of so many bytes, where this user may."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / f"disk-{size}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@posix
def test_a_disk_that_fills_up_at_any_write_leaves_a_loadable_checkpoint(
    gptcli: Any, story: Path, small_disk: Any
) -> None:
    """Ten sizes of disk from too small for the first file to almost enough: every write is once the one that fails."""
    options = (*OFTEN, "--max-steps", 4, "--keep", 1, "-q")
    assert gptcli("train", story, *options, "--out", "whole").code == 0
    needed = sum(file.stat().st_blocks * 512 for file in Path("whole").rglob("*") if file.is_file())
    codes = []
    for size in (needed * share // 10 for share in (1, 2, 4, 5, 6, 7, 8, 9, 10, 30)):
        disk = small_disk(size // 4096 * 4096)
        result = gptcli("train", story, *options, "--out", disk / "run")
        codes.append(result.code)
        if result.code:
            assert result.code == 2, result.err
            assert len(result.err.strip().splitlines()) == 2, result.err
        if (disk / "run").exists():
            checkpoint.load(disk / "run")
            snapshot, passed_over = snapshots.newest(disk / "run")
            assert not passed_over
            shutil.copytree(disk / "run", f"moved-{size}")
            if snapshot.progress["step"] < 4:
                assert gptcli("train", "--resume", f"moved-{size}", "-q").code == 0
            assert left_behind(Path(f"moved-{size}"))[:2] == left_behind(Path("whole"))[:2]
    assert codes[0] == 2
    assert codes[-1] == 0


# NaN


def test_bad_steps_are_skipped_then_the_run_goes_back_then_it_stops(story: Path, tmp_path: Path) -> None:
    from gptcli.config.runtime import RuntimeConfig
    from gptcli.data.dataset import make_corpus
    from gptcli.training import events, trainer

    tokenizer = tokenizers.build("char", TEXT)
    config = GPTConfig(tokenizer.vocab_size, 16, 16, 2, 1, 0.0)
    recipe, runtime = RecipeConfig(context_length=16, max_steps=12, eval_every=100), RuntimeConfig(save_every=2)
    torch.manual_seed(0)
    model = GPTModel(config)
    store = snapshots.Store(tmp_path / "run", config, tokenizer, {"recipe": {}}, 2, 2)
    store.begin(checkpoint.to_file(model), trainer.asdict(trainer.Progress()), force=False)
    bad = {2, 5, 6, 7}
    poison = model.ln_f.bias.register_hook(lambda grad: grad * float("nan") if step in bad else grad)
    step, told, rates = 0, [], {}
    for event in trainer.train(model, make_corpus([TEXT], tokenizer, 0.9), recipe, runtime, store=store):
        told.append(type(event).__name__)
        if isinstance(event, events.Evaluated):
            rates[event.step] = event.learning_rate
        elif isinstance(event, events.RolledBack):
            assert event.step == 4
            step, bad = 4, {9}
        elif isinstance(event, events.Stepped | events.Skipped):
            step = event.step + 1
    assert told.count("Skipped") == 1 + 3 + 1
    assert told.count("RolledBack") == 1
    assert rates[11] == recipe.learning_rate * trainer.LOWER_RATE
    assert snapshots.newest(tmp_path / "run")[0].progress["skipped"] == 2  # those before going back are forgotten
    poison.remove()

    model.ln_f.bias.register_hook(lambda grad: grad * float("nan"))
    store = snapshots.Store(tmp_path / "hopeless", config, tokenizer, {"recipe": {}}, 2, 2)
    store.begin(checkpoint.to_file(model), trainer.asdict(trainer.Progress()), force=False)
    with pytest.raises(GptcliError, match="diverged"):
        list(trainer.train(model, make_corpus([TEXT], tokenizer, 0.9), recipe, runtime, store=store))
    assert all(checkpoint.all_finite(t) for t in checkpoint.load(tmp_path / "hopeless").tensors.values())


def test_weights_with_nan_are_never_saved(story: Path, tmp_path: Path) -> None:
    """NaN in a position that no window reaches: the loss stays finite, and still nothing of it is written."""
    from gptcli.config.runtime import RuntimeConfig
    from gptcli.data.dataset import make_corpus
    from gptcli.training import events, trainer

    tokenizer = tokenizers.build("char", TEXT)
    config = GPTConfig(tokenizer.vocab_size, 20, 16, 2, 1, 0.0)
    recipe, runtime = RecipeConfig(context_length=16, max_steps=9, eval_every=100), RuntimeConfig(save_every=2)
    model = GPTModel(config)
    store = snapshots.Store(tmp_path / "run", config, tokenizer, {"recipe": {}}, 2, 2)
    store.begin(checkpoint.to_file(model), trainer.asdict(trainer.Progress()), force=False)
    went_back = []

    def poison_twice() -> None:
        for event in trainer.train(model, make_corpus([TEXT], tokenizer, 0.9), recipe, runtime, store=store):
            if isinstance(event, events.RolledBack):
                went_back.append(event.step)
            elif isinstance(event, events.Stepped) and event.step == 2:
                with torch.no_grad():
                    model.wpe.weight[18] = torch.nan

    with pytest.raises(GptcliError, match="diverged"):
        poison_twice()
    assert went_back == [2]
    assert all(checkpoint.all_finite(t) for t in checkpoint.load(tmp_path / "run").tensors.values())


# A longer plan

COSINE = (*TINY, "--sample-every", 0, "--threads", 1, "--schedule", "cosine", "--max-steps", 6, "--save-every", 3)
SCHEDULE_LINE = re.compile(r"The (\w+) schedule now ends after (\d+) steps, not (\d+): .* of (\S+); by .* be (\S+)\.")


@pytest.mark.parametrize(("schedule", "step"), [("cosine", 3), ("cosine", 6), ("linear", 3)])
def test_another_horizon_of_the_schedule_is_said_with_both_rates(
    gptcli: Any, story: Path, schedule: str, step: int
) -> None:
    assert gptcli("train", story, *COSINE, "--schedule", schedule, "--out", "run").code == 0
    if step == 3:
        shutil.rmtree("run/training/step-00000006")
    result = gptcli("train", "--resume", "run", "--max-steps", 12, "--eval-every", 5)
    assert result.code == 0, result.err
    said = SCHEDULE_LINE.search(result.err.replace("\n", " "))
    assert said is not None, result.err
    assert said.groups()[:3] == (schedule, "12", "6")
    now, planned = (float(rate) for rate in said.groups()[3:])
    recipe = RecipeConfig(schedule=schedule)  # type: ignore[arg-type]
    assert now == pytest.approx(learning_rate(recipe, step, 12), rel=1e-2)
    assert planned == pytest.approx(learning_rate(recipe, min(step, 5), 6), rel=1e-2)
    rows = [row for row in checkpoint.read_metrics(Path("run")) if row["step"] >= step]
    assert rows[-1]["learning_rate"] == pytest.approx(learning_rate(recipe, 11, 12))


def test_the_same_horizon_or_a_constant_rate_needs_no_line(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *COSINE, "--out", "run").code == 0
    assert gptcli("train", story, *COSINE, "--schedule", "constant", "--out", "constant").code == 0
    shutil.rmtree("run/training/step-00000006")
    for how in (("run",), ("constant", "--max-steps", 9)):
        result = gptcli("train", "--resume", *how)
        assert result.code == 0, result.err
        assert "schedule now ends" not in result.err
        assert "dropout" not in result.err


@pytest.mark.parametrize(
    ("began", "resumed_with"),
    [
        (("--max-steps", 8), ("--max-steps", 3)),
        (("--max-steps", 8), ()),
        (("--epochs", 2), ("--epochs", 1)),
        (("--epochs", 2), ("--max-steps", 3)),
        (("--max-steps", 8, "--max-time", "0.001s"), ()),
        (("--max-steps", 8, "--eval-every", 1, "--early-stop", 1, "--learning-rate", 3), ()),
        (("--max-steps", 1, "--max-time", "0.001s"), ()),
    ],
)
def test_the_command_of_the_hint_works(
    gptcli: Any, story: Path, began: tuple[Any, ...], resumed_with: tuple[Any, ...]
) -> None:
    options = (*TINY, "--sample-every", 0, "--threads", 1, "--save-every", 50)
    assert gptcli("train", story, *options, *began, "--out", "my run").code == 0
    refused = gptcli("train", "--resume", "my run", *resumed_with)
    refused.assert_user_error("my run has ended", "To go on, give it more: ")
    command = shlex.split(refused.err.split("give it more: ")[1])
    assert command[:4] == ["gptcli", "train", "--resume", "my run"]
    result = gptcli(*command[1:])
    assert result.code == 0, result.err


def test_a_run_of_an_older_version_says_that_its_dropout_changes(gptcli: Any, story: Path) -> None:
    for rate in (0, 0.1):
        run = Path(f"dropped-{rate}")
        assert gptcli("train", story, *OFTEN, "--max-steps", 4, "--drop-rate", rate, "--out", run).code == 0
        for state in run.glob("training/*/state.json"):
            said = json.loads(state.read_text(encoding="utf-8"))
            assert said["facts"].pop("dropout")
            state.write_text(json.dumps(said), encoding="utf-8")
        result = gptcli("train", "--resume", run, "--max-steps", 6)
        assert result.code == 0, result.err
        assert ("dropout had other random numbers" in result.err) == (rate > 0)
        assert "dropout had" not in gptcli("train", "--resume", run, "--max-steps", 8).err


def test_where_no_snapshot_is_whole_the_way_out_is_a_command(gptcli: Any, tmp_path: Path) -> None:
    run = shutil.copytree(Path(__file__).parents[1] / "fixtures" / "stopped-adamw", tmp_path / "a run")
    for state in run.rglob("state.json"):
        state.write_text("{", encoding="utf-8")
    gptcli("train", "--resume", "a run").assert_user_error("is whole", 'gptcli train TEXT --init-from "a run" --out')
    (run / "config.json").write_text("{", encoding="utf-8")
    gptcli("train", "--resume", run).assert_user_error()
