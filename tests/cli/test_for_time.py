"""gptcli train --for TIME: a run by a clock, its config.toml, its resuming, and what is refused."""

import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocks import Ticking

from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.training import budget

SMALL = ("--emb-dim", 16, "--n-heads", 2, "--n-layers", 1, "--batch-size", 2, "--threads", 1)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    return Ticking.replacing(monkeypatch)


def weights(run: str) -> bytes:
    return (Path(run) / "model.safetensors").read_bytes()


def test_a_run_by_the_clock_and_the_file_that_repeats_it(gptcli: Any, story: Path, ticking: Ticking) -> None:
    result = gptcli("train", story, "--for", "30s", *SMALL, "--out", "timed")
    assert result.code == 0, result.err
    assert ticking.now == pytest.approx(30, abs=3)
    for said in (
        "Vocabulary:",
        "Model:",
        "dropout",
        "steps of 2 windows",
        "are averaged",
        "The learning rate falls from step",
    ):
        assert said in result.err
    settings = tomllib.loads(Path("timed/config.toml").read_text(encoding="utf-8"))
    assert "for" not in settings
    assert settings["average_share"] == 0.1
    assert settings["max_steps"] == settings["cooldown_start"] + math.ceil(0.4 * settings["cooldown_start"])
    assert checkpoint.load(Path("timed")).training["step"] == settings["max_steps"]
    ticking.seconds = 3.0  # of no effect
    assert gptcli("train", "--config", "timed/config.toml", "--out", "again").code == 0
    assert weights("timed") == weights("again")
    rows = [[{k: v for k, v in row.items() if "loss" in k} for row in checkpoint.read_metrics(Path(run))]
            for run in ("timed", "again")]  # fmt: skip
    assert rows[0] == rows[1]
    over = gptcli("train", story, "--for", "30s", *SMALL, "--out", "timed")
    over.assert_user_error("timed exists already", "Choose another folder, or replace it with --force")
    assert "--resume" not in over.err  # it has had its time


def test_a_machine_that_gets_faster_trains_on_at_the_full_rate(
    gptcli: Any, story: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured while other programs run, a step may seem to take many times as long as it then takes."""
    measure = budget.Budget._measure

    def measured_slower(*args: Any) -> budget.MeasuredShape:
        found = measure(*args)
        return budget.MeasuredShape(found.config, found.speed / 20)

    monkeypatch.setattr(budget.Budget, "_measure", measured_slower)
    assert gptcli("train", story, "--for", "30s", *SMALL, "--out", "timed").code == 0
    start = tomllib.loads(Path("timed/config.toml").read_text(encoding="utf-8"))["cooldown_start"]
    rates = {row["learning_rate"] for row in checkpoint.read_metrics(Path("timed")) if 20 < row["step"] < start}
    assert len(rates) == 1
    assert min(rates) > 0
    assert gptcli("train", "--config", "timed/config.toml", "--out", "again").code == 0
    assert weights("timed") == weights("again")


def test_a_width_alone_gets_heads_that_divide_it(gptcli: Any, story: Path, ticking: Ticking) -> None:
    shape = (
        "--emb-dim",
        80,
        "--n-layers",
        1,
        "--batch-size",
        2,
        "--threads",
        1,
    )  # 80 is no multiple of the preset's 12
    assert gptcli("train", story, "--for", "30s", *shape, "--out", "timed").code == 0
    config = checkpoint.load(Path("timed")).config
    assert (config.emb_dim, config.n_layers, config.n_heads) == (80, 1, 2)


def test_a_run_that_was_stopped_keeps_its_remaining_time(
    gptcli: Any, story: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.cli.stopping import Stop

    monkeypatch.setattr(Stop, "asked", lambda self: ticking.now > 15)
    assert gptcli("train", story, "--for", "30s", *SMALL, "--out", "timed").code == 0
    settings = tomllib.loads(Path("timed/config.toml").read_text(encoding="utf-8"))
    assert settings["for"] == "30s"
    assert "max_steps" not in settings
    before, ticking.now = ticking.now, 100.0
    monkeypatch.setattr(Stop, "asked", lambda self: False)
    assert gptcli("train", "--resume", "timed").code == 0
    assert before + ticking.now - 100 == pytest.approx(30, abs=4)
    settings = tomllib.loads(Path("timed/config.toml").read_text(encoding="utf-8"))
    assert settings["max_steps"] == checkpoint.load(Path("timed")).training["step"]
    gptcli("train", "--resume", "timed").assert_user_error("has ended", "--max-steps")


def test_a_run_that_goes_on_for_other_than_its_time(
    gptcli: Any, story: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.cli.stopping import Stop

    monkeypatch.setattr(Stop, "asked", lambda self: ticking.now > 15)
    assert gptcli("train", story, "--for", "30s", *SMALL, "--out", "timed").code == 0
    monkeypatch.setattr(Stop, "asked", lambda self: False)
    resume = ("train", "--resume", "timed")
    gptcli(*resume, "--early-stop", 2).assert_user_error("begun with --for", "--early-stop", "Leave it out")
    gptcli(*resume, "--max-time", "2h").assert_user_error("--max-time alone", "Give --max-steps or --epochs")
    result = gptcli(*resume, "--epochs", 1)
    assert result.code == 0, result.err
    epoch = re.search(r"(\d+) steps an epoch, (\d+) in all", result.err)
    assert epoch is not None
    assert int(epoch[1]) == int(epoch[2]) == checkpoint.load(Path("timed")).training["step"]
    further = int(epoch[1]) + 3
    assert gptcli(*resume, "--max-steps", further).code == 0
    assert checkpoint.load(Path("timed")).training["step"] == further


def test_a_named_size_keeps_its_heads(gptcli: Any, story: Path, ticking: Ticking) -> None:
    options = ("--size", "tiny", "--batch-size", 2, "--threads", 1)
    assert gptcli("train", story, "--for", "30s", *options, "--out", "timed").code == 0
    config, preset = checkpoint.load(Path("timed")).config, GPTConfig.preset("tiny")
    assert (config.n_layers, config.n_heads, config.emb_dim) == (preset.n_layers, preset.n_heads, preset.emb_dim)


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_cooldown_is_announced_where_there_is_one(gptcli: Any, story: Path, ticking: Ticking, schedule: str) -> None:
    result = gptcli("train", story, "--for", "30s", *SMALL, "--schedule", schedule, "--out", "timed")
    assert result.code == 0, result.err
    assert result.err.count("learning rate falls") == (2 if schedule == "wsd" else 0)
    assert "run ends after" in result.err


def test_the_rate_suits_the_optimizer(gptcli: Any, story: Path, ticking: Ticking) -> None:
    result = gptcli("train", story, "--for", "30s", *SMALL, "--optimizer", "adamw", "--out", "timed")
    assert result.code == 0, result.err
    assert "is high" not in result.err
    assert "lower learning rate" not in result.err


def test_a_run_that_diverges_decides_anew_and_its_file_says_what_was_done(
    gptcli: Any, story: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bad steps after the cooldown's beginning: back to a snapshot that does not know of the cooldown."""
    from gptcli.training import step, trainer

    is_due, bad, decisions = trainer.Deadline.is_due, [0], []

    def decide(self: Any, done: int, elapsed: float) -> bool:
        found = is_due(self, done, elapsed)
        decisions.extend([done] if found else [])
        bad[0] = 3 if len(decisions) == 1 and found else bad[0]
        return found

    outcome = step.Done.outcome

    def failing(self: Any) -> Any:
        found = outcome(self)
        if bad[0] > 0:
            bad[0] -= 1
            return replace(found, updated=False, excused=False)
        return found

    monkeypatch.setattr(trainer.Deadline, "is_due", decide)
    monkeypatch.setattr(step.Done, "outcome", failing)
    result = gptcli("train", story, "--for", "30s", *SMALL, "--save-every", 7, "--out", "timed")
    assert result.code == 0, result.err
    assert "Training has diverged" in result.err
    assert len(decisions) == 2
    settings = tomllib.loads(Path("timed/config.toml").read_text(encoding="utf-8"))
    assert settings["cooldown_start"] == decisions[1]
    assert settings["max_steps"] == checkpoint.load(Path("timed")).training["step"]


def test_a_large_text_has_a_vocabulary_of_its_own(
    gptcli: Any, story: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that the same text has in memory, of its training part alone."""
    share = ("--train-share", 0.5)
    assert gptcli("train", story, "--for", "30s", *SMALL, *share, "--out", "small").code == 0
    monkeypatch.setattr("gptcli.data.open.LARGE", 500)
    gptcli("train", story, "--for", "30s", "--encoding", "utf-9", "--out", "timed").assert_user_error("utf-9")
    ticking.now = 0.0
    result = gptcli("train", story, "--for", "30s", *SMALL, *share, "--out", "timed")
    assert result.code == 0, result.err
    assert "The text is large" in result.err
    assert "byte-level BPE from the text itself" in result.err
    tokenizer = checkpoint.load(Path("timed")).tokenizer
    assert tokenizer.kind == "bpe"
    assert tokenizer.fingerprint == checkpoint.load(Path("small")).tokenizer.fingerprint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--for", "30s", "--early-stop", 2), ("--for cannot be combined with --early-stop", "Leave one")),
        (("--for", "29s"), ("--for is 29.0, but it must be at least 30.", "30s")),
        (("--for", "60"), ("--for is '60', which has no unit.", "90s, 10m or 2h")),
        (("--for", "soon"), ("--for is 'soon', which is no duration.", "90s, 10m or 2h")),
        (("--for", "30s", "--max-steps", 5), ("--for cannot be combined with --max-steps", "Leave one")),
        (("--for", "30s", "--max-time", "40s"), ("--for cannot be combined with --max-time", "Leave one")),
        (("--for", "30s", "--epochs", 3), ("--for cannot be combined with --epochs", "Leave one")),
        (("--for", "30s", "--schedule", "cosine"), ("--schedule cosine, whose rates depend on", "it is then wsd")),
        (("--for", "30s", "--schedule", "linear"), ("--schedule linear, whose rates depend on", "--max-steps")),
        (("--for", "30s", "--resume", "run"), ("--for cannot be combined with --resume", "Leave one")),
        (("--for", "30s", "--init-from", "run"), ("--for cannot be combined with --init-from", "--max-time")),
        (("--for", "30s", "--tokenizer", "bpe:4096"), ("The text has pairs", "Ask for at most")),
    ],
)
def test_what_is_refused(gptcli: Any, story: Path, options: tuple[Any, ...], words: tuple[str, ...]) -> None:
    if "--init-from" in options:
        assert gptcli("train", story, "--max-steps", 1, "--out", "run", "--tokenizer", "char", *SMALL).code == 0
    if "bpe:4096" in options:
        pytest.importorskip("tokenizers")
    rest = () if "--resume" in options else (story, "--out", "new")
    gptcli("train", *options, *rest).assert_user_error(*words)
    assert not Path("new").exists()


def test_a_text_of_two_tokens_is_too_short(gptcli: Any, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("ab", encoding="utf-8")
    gptcli("train", "two.txt", "--for", "30s").assert_user_error("has 1 bytes", "--for", "Give a longer text")
    (tmp_path / "fifty.txt").write_text("ab" * 25, encoding="utf-8")
    result = gptcli("train", "fifty.txt", "--for", "30s", "--tokenizer", "byte")
    result.assert_user_error("has 45 tokens", "--for", "Give a longer text")
    assert not Path("checkpoints").exists()


def test_the_file_of_print_config_names_it(gptcli: Any) -> None:
    printed = tomllib.loads(gptcli("train", "a.txt", "--for", "2m", "--print-config").out)
    assert printed["for"] == "120s"
    Path("file.toml").write_text('for = "2m"\n', encoding="utf-8")
    assert tomllib.loads(gptcli("train", "a.txt", "--config", "file.toml", "--print-config").out)["for"] == "120s"
