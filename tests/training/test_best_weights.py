"""The weights of the best evaluation are the checkpoint, whenever snapshots were written and whatever ended the run."""

import json
import shutil
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TEXT, TINY, killed_after

import gptcli as api
from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.model.gpt import GPTModel
from gptcli.training import best_weights, snapshots
from gptcli.training.best_weights import BestWeights
from gptcli.training.progress import Best, Progress
from gptcli.training.run_plan import Plan
from gptcli.training.trouble import Trouble, lower_rate, suited_rate

# Its best evaluation is neither the first nor the last one.
UP_AND_DOWN = (
    *TINY, "--sample-every", 0, "--threads", 1, "--learning-rate", 0.03, "--schedule", "cosine", "--max-steps", 24,
    "--eval-every", 2, "--seed", 3,
)  # fmt: skip


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A text whose end is unlike its beginning, so that training on the one soon harms the other."""
    path = tmp_path / "story.txt"
    path.write_text(TEXT + "dgo eht tac no tas gol mat. " * 3, encoding="utf-8")
    return path


def best_row(run: str) -> dict[str, Any]:
    rows = checkpoint.read_metrics(Path(run))
    best = min(rows, key=lambda row: row["val_loss"])
    assert 0 < best["step"] < rows[-1]["step"], "else the test shows nothing"
    return best


def root(run: str) -> bytes:
    return Path(run, "model.safetensors").read_bytes()


def newest(run: str) -> Path:
    return max(Path(run, "training").iterdir())


def test_the_best_weights_are_the_checkpoint_and_the_last_are_kept(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *UP_AND_DOWN, "--save-every", 1000, "--out", "run")
    assert result.code == 0, result.err
    best, training = best_row("run"), checkpoint.load(Path("run")).training
    assert training["best"] == {name: best[name] for name in ("step", "train_loss", "val_loss")}
    assert (training["step"], training["weights"]) == (24, "best")
    options = ("--max-steps", best["step"] + 1, "--schedule-steps", 24, "--final", "last")
    assert gptcli("train", story, *UP_AND_DOWN, *options, "--out", "until").code == 0
    assert root("run") == root("until")
    assert f"Best on unseen text: {best['val_loss']:.3f} nats a token" in result.err
    assert f"at step {best['step']}, kept." in result.err
    assert gptcli("train", story, *UP_AND_DOWN, "--final", "last", "--out", "last").code == 0
    assert root("last") == (newest("run") / "model.safetensors").read_bytes() != root("run")
    assert checkpoint.load(Path("last")).training["weights"] == "last"
    greedy = ("generate", "the", "-t", 0, "-n", 9, "-c")
    assert gptcli(*greedy, "run", "--last").out == gptcli(*greedy, "last").out
    assert api.load("run", last=True).path == newest("run")
    assert api.load("run").path == Path("run")


@pytest.mark.parametrize("every", [1, 5, 1000])
def test_when_snapshots_are_written_does_not_matter(gptcli: Any, story: Path, every: int) -> None:
    for name, options in (("a", ("--save-every", every)), ("b", ())):
        assert gptcli("train", story, *UP_AND_DOWN, *options, "--keep", 1, "--out", name).code == 0
    assert root("a") == root("b")
    assert (newest("a") / "best.safetensors").read_bytes() == root("a")
    assert Path("a/model.safetensors").stat().st_ino == (newest("a") / "best.safetensors").stat().st_ino


def test_killed_between_the_best_evaluation_and_the_next_save(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *UP_AND_DOWN, "--save-every", 1, "--keep", 30, "--out", "whole").code == 0
    evaluated = best_row("whole")["step"] + 1
    for saved in (evaluated - 1, evaluated + 1):  # the last save is before or after that evaluation
        killed_after(saved, "whole", "run")
        result = gptcli("train", "--resume", "run")
        assert result.code == 0, result.err
        for name in ("model.safetensors", "optimizer.safetensors", "best.safetensors"):
            assert (newest("run") / name).read_bytes() == (newest("whole") / name).read_bytes()
        assert root("run") == root("whole")
        shutil.rmtree("run")


def test_a_run_that_ended_early_delivers_its_best_and_is_repeated_by_its_config(gptcli: Any, story: Path) -> None:
    for schedule in ("constant", "cosine", "linear"):
        options = (*UP_AND_DOWN, "--schedule", schedule, "--warmup-steps", 2, "--early-stop", 2, "--max-steps", 60)
        result = gptcli("train", story, *options, "--out", f"{schedule}-a")
        assert result.code == 0, result.err
        rows = checkpoint.read_metrics(Path(f"{schedule}-a"))
        assert rows[-1]["step"] < 59
        assert checkpoint.load(Path(f"{schedule}-a")).training["best"]["step"] == rows[-3]["step"]
        settings = tomllib.loads(Path(f"{schedule}-a/config.toml").read_text(encoding="utf-8"))
        assert settings.get("schedule_steps") == (None if schedule == "constant" else 60)
        assert gptcli("train", "--config", f"{schedule}-a/config.toml", "--out", f"{schedule}-b").code == 0
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (newest(f"{schedule}-a") / name).read_bytes() == (newest(f"{schedule}-b") / name).read_bytes()
        assert root(f"{schedule}-a") == root(f"{schedule}-b")


def test_without_a_validation_text_the_last_are_kept_and_that_is_said(gptcli: Any, story: Path) -> None:
    result = gptcli("train", story, *UP_AND_DOWN, "--max-steps", 4, "--train-share", 1, "--out", "run")
    assert result.code == 0, result.err
    assert "The last weights are kept: no text is held out" in result.err
    assert root("run") == (newest("run") / "model.safetensors").read_bytes()
    assert not (newest("run") / "best.safetensors").exists()


def test_an_older_run_keeps_the_best_of_its_snapshots(gptcli: Any, story: Path) -> None:
    """Older versions kept the best snapshot beside the newest, and named it in state.json."""
    assert gptcli("train", story, *UP_AND_DOWN, "--save-every", 1, "--keep", 30, "--out", "run").code == 0
    best = best_row("run")
    for path in sorted(Path("run/training").iterdir()):
        if path.name not in (f"step-{best['step'] + 1:08d}", "step-00000024"):
            shutil.rmtree(path)
    for path in Path("run/training").iterdir():
        (path / "best.safetensors").unlink(missing_ok=True)
        said = json.loads((path / "state.json").read_text(encoding="utf-8"))
        said["progress"] |= {"best_snapshot": best["step"] + 1, "best_snapshot_loss": best["val_loss"]}
        del said["progress"]["best"]
        said["sums"].pop("best.safetensors", None)
        (path / "state.json").write_text(json.dumps(said), encoding="utf-8")
    before = (Path("run/training") / f"step-{best['step'] + 1:08d}" / "model.safetensors").read_bytes()
    result = gptcli("train", "--resume", "run", "--max-steps", 25, "--keep", 1)
    assert result.code == 0, result.err
    assert root("run") == before
    assert [path.name for path in Path("run/training").iterdir()] == ["step-00000025"]


def test_the_best_is_the_first_lowest_and_finite_evaluation() -> None:
    progress = Progress(step=1)
    assert not progress.rank(9.0, float("nan"))
    assert progress.best is None
    assert progress.rank(5.0, 4.0)
    progress.step = 2
    assert not progress.rank(4.0, 4.0)
    assert progress.best == Best(0, 5.0, 4.0)
    assert progress.waited == 1
    assert progress.rank(3.0, 3.0)
    assert (progress.best, progress.waited) == (Best(1, 3.0, 3.0), 0)


def test_a_limit_that_is_reached_is_doubled() -> None:
    plan = Plan(16, 4, 32, 0, 64, steps_per_epoch=8, total_steps=8, schedule_steps=8, notes=())
    reached = Progress(step=12, waited=3, seconds=2.5)
    limits = RecipeConfig(epochs=1, early_stop=3, max_time=2.0)
    assert reached.to_go_on(limits, plan) == {"epochs": 4, "early_stop": 6, "max_time": "6s"}
    assert reached.to_go_on(RecipeConfig(max_steps=8, early_stop=4, max_time=3.0), plan) == {"max_steps": 24}


def test_a_copy_is_handed_out_once() -> None:
    model = GPTModel(GPTConfig(30, 8, 8, 2, 1, 0.0))
    best = BestWeights(model)
    assert best.unwritten() == {}
    best.keep()
    kept = checkpoint.to_file(model)["wte.weight"].clone()
    with torch.no_grad():
        model.wte.weight.add_(1)
    assert torch.equal(best.unwritten()["wte.weight"], kept)
    assert best.unwritten() == {}
    best.keep()
    assert torch.equal(best.unwritten()["wte.weight"], kept + 1)


def test_weights_that_come_back_from_a_file_are_handed_out_again() -> None:
    """After a rollback no snapshot is known to have them."""
    model = GPTModel(GPTConfig(30, 8, 8, 2, 1, 0.0))
    best = BestWeights(model)
    best.keep()
    written = {name: tensor.clone() for name, tensor in best.unwritten().items()}
    with torch.no_grad():
        model.wte.weight.add_(1)
    best.keep()
    best.unwritten()
    best.take(written)
    assert torch.equal(best.unwritten()["wte.weight"], written["wte.weight"])
    assert best.unwritten() == {}


@pytest.mark.parametrize(("free", "place"), [(3000, "meta"), (1500, "cpu")])
def test_the_copy_is_beside_the_model_where_there_is_twice_the_room(
    free: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's meta device takes the part of a GPU."""
    monkeypatch.setattr(best_weights, "available_memory", lambda device: {"meta": free}[device.type])
    model = GPTModel(GPTConfig(30, 8, 8, 2, 1, 0.0)).to("meta")
    assert BestWeights(model)._place(1000).type == place


# What goes wrong is said while it runs, once


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, 11.0, 11.0), (25, 350.0, 340.0), (30, 360.0, 340.0)], ["above that of guessing, 10.82"]),
        ([(0, 9.0, 9.0), (5, 4.0, 5.0), (10, 4.5, 5.1), (15, 5.0, 5.2)], ["has risen from 4.000 at step 5 to 4.500"]),
        ([(0, 9.0, 9.0), *((5 * n, 9.0 - n, 7.0 + n) for n in range(1, 7))], ["The run memorises", "lowest at step 5"]),
        ([(0, 9.0, 9.0), (5, 8.0, 8.5), (10, 8.2, 8.6), (15, 7.0, 8.0)], []),
        ([(0, 11.0, 11.0), (25, 10.95, 11.0), (30, 10.9, 11.0)], []),
    ],
)
def test_trouble(rows: list[tuple[int, float, float]], said: list[str]) -> None:
    from gptcli.training.events import Evaluated

    lines: list[str] = []
    trouble = Trouble(GPTConfig(), RecipeConfig(), lines.append)
    trouble.start()
    for step, train, val in rows:
        trouble.on(Evaluated(step, 1, 1, train, val, 1e-3, 1.0, 1.0, 1.0, 1, 0, None))
    assert len(lines) == min(1, len(said)), lines
    assert all(word in lines[0] for word in said)


def test_a_rate_that_is_too_high_is_named() -> None:
    lines: list[str] = []
    Trouble(GPTConfig(), RecipeConfig(learning_rate=0.5), lines.append).start()
    assert lines == ["A learning rate of 0.5 is high: 0.0005 suits this size."]
    assert [suited_rate(GPTConfig.preset(name)) for name in ("tiny", "small", "xl")] == [2e-3, 5e-4, 2e-4]


@pytest.mark.parametrize(
    ("rate", "last", "told"), [(1e-5, 3.87, "too low, try {learning_rate} 0.0001"), (1e-5, 4.2, "too high")]
)
def test_a_loss_above_guessing_that_falls_needs_a_higher_rate(rate: float, last: float, told: str) -> None:
    from gptcli.training.events import Evaluated

    lines: list[str] = []
    trouble = Trouble(GPTConfig(vocab_size=43), RecipeConfig(learning_rate=rate, optimizer="sgd"), lines.append)
    trouble.start()
    for step, loss in ((0, 3.878), (20, last)):
        trouble.on(Evaluated(step, 1, 1, loss, loss, rate, 1.0, 1.0, 1.0, 1, 0, None))
    assert len(lines) == 1
    assert told in lines[0]


@pytest.mark.parametrize("for_time", [None, 60.0])
def test_early_stop_is_advised_only_where_it_may_be_given(for_time: float | None) -> None:
    from gptcli.training.events import Evaluated

    lines: list[str] = []
    trouble = Trouble(GPTConfig(), RecipeConfig(for_time=for_time), lines.append)
    trouble.start()
    for step in range(6):
        trouble.on(Evaluated(5 * step, 1, 1, 9.0 - step, 7.0 + step, 1e-3, 1.0, 1.0, 1.0, 1, 0, None))
    assert len(lines) == 1
    assert ("{early_stop}" in lines[0]) is (for_time is None)


def test_an_optimizer_with_rates_of_its_own_is_told_a_tenth() -> None:
    assert lower_rate(GPTConfig(), RecipeConfig(learning_rate=3.0, optimizer="sgd")) == 0.3
    assert lower_rate(GPTConfig(), RecipeConfig(learning_rate=3.0)) == suited_rate(GPTConfig())


def test_the_evaluation_of_a_stop_is_what_the_checkpoint_shows(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is forgotten by the run that goes on, which ends as if it had not been stopped."""
    from gptcli.cli.stopping import Stop

    options = (*UP_AND_DOWN, "--eval-every", 20, "--learning-rate", 0.003, "--max-steps", 40)
    assert gptcli("train", story, *options, "--out", "whole").code == 0
    asked: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Stop, "asked", lambda self: asked.append(1) or len(asked) > 12)
        result = gptcli("train", story, *options, "--out", "run")
    row, training = checkpoint.read_metrics(Path("run"))[-1], checkpoint.load(Path("run")).training
    assert 0 < row["step"] < 20
    assert training["best"] == {name: row[name] for name in ("step", "train_loss", "val_loss")}
    assert (training["val_loss"], training["weights"]) == (row["val_loss"], "best")
    assert f"at step {row['step']}" in result.err
    assert root("run") == (newest("run") / "model.safetensors").read_bytes()
    shutil.copytree("run", "pruned")
    assert gptcli("checkpoints", "pruned", "--prune").code == 0
    assert root("pruned") == root("run")
    assert not any(Path("pruned").rglob("best.safetensors"))  # of an older evaluation
    assert gptcli("train", "--resume", "run").code == 0
    assert root("run") == root("whole")
    assert checkpoint.load(Path("run")).training == checkpoint.load(Path("whole")).training


@pytest.mark.parametrize("is_urgent", [False, True])
def test_a_run_that_is_stopped_in_its_last_step_has_ended(
    gptcli: Any, story: Path, monkeypatch: pytest.MonkeyPatch, is_urgent: bool
) -> None:
    from gptcli.cli.stopping import Stop

    options = (*UP_AND_DOWN, "--eval-every", 100, "--save-every", 100)
    assert gptcli("train", story, *options, "--out", "whole").code == 0
    asked: list[int] = []

    def is_asked(self: Stop) -> bool:
        asked.append(1)
        if len(asked) > 24:  # once before the first step, and after every step
            self.number = signal.SIGTERM if is_urgent else signal.SIGINT
        return self.number is not None

    monkeypatch.setattr(Stop, "asked", is_asked)
    result = gptcli("train", story, *options, "--out", "run")
    assert result.code == 0, result.err
    assert len(asked) == 25
    assert "Stopped by" not in result.err
    assert root("run") == root("whole")
    assert checkpoint.load(Path("run")).training == checkpoint.load(Path("whole")).training
    told = [json.loads((newest(run) / "state.json").read_text(encoding="utf-8")) for run in ("run", "whole")]
    for each in told:
        each["progress"].pop("seconds")
    assert told[0]["progress"] == told[1]["progress"]


def test_prune_gives_the_room_back_and_keeps_best_and_last(gptcli: Any, story: Path) -> None:
    assert gptcli("train", story, *UP_AND_DOWN, "--out", "run").code == 0
    best, last = root("run"), (newest("run") / "model.safetensors").read_bytes()
    assert "are free again" in gptcli("checkpoints", "run", "--prune").err
    assert root("run") == best
    assert (newest("run") / "model.safetensors").read_bytes() == last
    assert not any(Path("run").rglob("optimizer.safetensors"))
    assert gptcli("generate", "the", "-c", "run", "--last", "-n", 2).code == 0
    assert "nothing that only resuming needs" in gptcli("checkpoints", "run", "--prune").err
    gptcli("train", "--resume", "run").assert_user_error("no snapshot of a training run", "--init-from run")
    assert snapshots._steps(Path("run"))
    assert gptcli("train", story, *UP_AND_DOWN, "--final", "last", "--out", "last").code == 0
    assert root("last") == last
    for _ in range(2):  # the second removes nothing more
        assert gptcli("checkpoints", "last", "--prune").code == 0
        assert (newest("last") / "best.safetensors").read_bytes() == best
        assert root("last") == last
    assert not any(Path("last").rglob("optimizer.safetensors"))
    gptcli("checkpoints", "--prune").assert_user_error("takes the name of one run")


def test_prune_refuses_a_run_that_is_in_use_and_files_of_others(gptcli: Any, story: Path) -> None:
    from gptcli.checkpoints import run_lock

    assert gptcli("train", story, *UP_AND_DOWN, "--max-steps", 3, "--out", "run").code == 0
    (newest("run") / "notes.txt").write_text("mine", encoding="utf-8")
    gptcli("checkpoints", "run", "--prune").assert_user_error("notes.txt", "Move it elsewhere")
    (newest("run") / "notes.txt").unlink()
    with run_lock.held(Path("run")):
        gptcli("checkpoints", "run", "--prune").assert_user_error("run is in use")
    assert any(Path("run").rglob("optimizer.safetensors"))
    gptcli("checkpoints", "nothing", "--prune").assert_user_error("nothing")
