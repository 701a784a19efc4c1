"""A run without the command line: the same bytes, the same events, and not a word on a stream."""

from pathlib import Path
from typing import Any

import pytest

from gptcli.checkpoints import checkpoint
from gptcli.config.model import GPTConfig
from gptcli.config.runtime import split
from gptcli.data.open import Callbacks, TextOptions
from gptcli.errors import GptcliError
from gptcli.training import resume
from gptcli.training.distributed import ALONE
from gptcli.training.events import EpochEnded, Evaluated, Saved, Stepped
from gptcli.training.new_run import new_run
from gptcli.training.run import Run

HERE = {"device": "cpu", "threads": 1}
SHAPE = {"emb_dim": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}
OPTIONS = ("--emb-dim", 16, "--n-heads", 2, "--n-layers", 2, "--context-length", 16, "--tokenizer", "char")


def open_run(path: Path, story: Path, callbacks: Callbacks, **settings: Any) -> Run:
    base = GPTConfig.preset("small", drop_rate=0.1, qkv_bias=False, tie_weights=False, **SHAPE)
    recipe, runtime = split(HERE | {"context_length": 16} | settings)
    return new_run(
        path, TextOptions([str(story)], 0.9, None, "strict", False), recipe, runtime, base,
        shape=SHAPE, named=(), tokenizer="char", init_from=None, force=False, world=ALONE, callbacks=callbacks,
    )  # fmt: skip


class Listener:
    """Keeps every event."""

    name = "The listener"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[Any] = []

    def start(self) -> None:
        self.calls.append("start")

    def on(self, event: Any) -> None:
        self.events.append(event)

    def end(self) -> None:
        self.calls.append("end")


def train(run: Run, *subscribers: Any) -> list[Any]:
    listener = Listener()
    with run.prepared():
        run.begin()
        run.train([*subscribers, listener])
    assert listener.calls == ["start", "end"]
    return listener.events


def test_a_run_and_its_resuming_say_nothing_and_give_the_command_s_bytes(
    gptcli: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path, story: Path
) -> None:
    options = (*OPTIONS, "--eval-every", 5, "--save-every", 4, "--sample-every", 0, "--threads", 1, "--device", "cpu")
    assert gptcli("train", story, *options, "--max-steps", 12, "--out", "command").code == 0
    lines: list[str] = []
    callbacks = Callbacks(lines.append, lines.append)
    run = open_run(tmp_path / "ours", story, callbacks, eval_every=5, save_every=4, sample_every=0, max_steps=8)
    events = train(run)
    with resume.resumed(tmp_path / "ours", HERE | {"max_steps": 12}, world=ALONE, callbacks=callbacks) as resumed:
        assert resumed.first_step == 8
        events += train(resumed)
    assert capfd.readouterr() == ("", "")
    assert lines[-1] == f"Going on with {tmp_path / 'ours'} after step 8."
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(12))
    assert {4, 8, 12} <= {event.step for event in events if isinstance(event, Saved)}
    assert [row["step"] for row in checkpoint.read_metrics(tmp_path / "ours")] == [0, 5, 7, 10, 11]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 5, 7, 10, 11]
    assert (tmp_path / "ours/loss.png").exists()
    assert (tmp_path / "ours/model.safetensors").read_bytes() == Path("command/model.safetensors").read_bytes()


def test_a_sample_leaves_the_run_as_it_is(tmp_path: Path, story: Path) -> None:
    losses = []
    for name in ("with", "without"):
        run = open_run(tmp_path / name, story, Callbacks(), epochs=2, eval_every=100)
        texts: list[str] = []
        listener = Listener()
        with run.prepared():
            run.begin()
            sampler = run.sampler(texts.append)
            assert sampler is not None
            run.train([listener, sampler] if name == "with" else [listener])
        assert len(texts) == (2 if name == "with" else 0)
        losses.append([event.loss for event in listener.events if isinstance(event, Stepped)])
    assert losses[0] == losses[1]


class Raising(Listener):
    """Raises at its first event of one kind, or at its start or end."""

    def __init__(self, at: Any) -> None:
        super().__init__()
        self.at = at

    def start(self) -> None:
        if self.at == "start":
            raise RuntimeError("no room")

    def on(self, event: Any) -> None:
        if isinstance(self.at, type) and isinstance(event, self.at):
            raise RuntimeError("no room")

    def end(self) -> None:
        if self.at == "end":
            raise RuntimeError("no room")


def test_a_subscriber_that_raises_costs_the_run_nothing(tmp_path: Path, story: Path) -> None:
    written = set()
    for at in (None, "start", Stepped, Evaluated, EpochEnded, Saved, "end"):
        path, lines = tmp_path / getattr(at, "__name__", str(at)), []
        run = open_run(path, story, Callbacks(warn=lines.append), epochs=1, eval_every=20, save_every=20)
        events = train(run, Raising(at))
        assert lines == ([] if at is None else ["The listener: removed, and the run continues. RuntimeError: no room"])
        assert isinstance(events[-1], Saved)
        assert (path / "loss.png").exists()
        rows = [row["step"] for row in checkpoint.read_metrics(path)]
        written.add(((path / "model.safetensors").read_bytes(), tuple(rows)))
    assert len(written) == 1


def test_metrics_and_picture_that_cannot_be_written_cost_the_run_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story: Path
) -> None:
    lines: list[str] = []

    def full(path: Path, row: Any) -> None:
        raise checkpoint.cannot_write(path / "metrics.jsonl", OSError(28, "No space left on device"))

    monkeypatch.setattr(checkpoint, "append_metrics", full)
    run = open_run(tmp_path / "run", story, Callbacks(warn=lines.append), max_steps=3, sample_every=0)
    with run.prepared():
        run.begin()
        (tmp_path / "run/metrics.jsonl").write_text("{}\n", encoding="utf-8")
        (tmp_path / "run/loss.png").mkdir()
        run.train()
    assert [line.split(":")[0] for line in lines] == ["metrics.jsonl", "The loss picture"]
    assert "No space left on device" in lines[0]
    assert checkpoint.load(tmp_path / "run").tokenizer.kind == "char"


def test_whoever_leaves_early_can_go_on(tmp_path: Path, story: Path) -> None:
    run = open_run(tmp_path / "run", story, Callbacks(), eval_every=100, save_every=2, sample_every=0)
    with run.prepared():
        run.begin()
        listener = Listener()
        run.train([listener], is_urgent=lambda: run.step >= 2)
    saved = listener.events[-1]
    assert isinstance(saved, Saved)
    assert saved.step == run.step
    with resume.resumed(tmp_path / "run", HERE, world=ALONE, callbacks=Callbacks()) as resumed:
        assert resumed.first_step == saved.step


def test_what_resuming_may_not_change(tmp_path: Path, story: Path) -> None:
    train(open_run(tmp_path / "run", story, Callbacks(), max_steps=2, sample_every=0))
    for given, words in (
        ({"out": tmp_path}, "out cannot be combined with resume"),
        ({"n_layers": 3}, "n_layers is 3, but"),
        ({"learning_rate": 1.0}, "learning_rate is 1.0, but"),
        ({"tokenizer": "byte"}, "tokenizer is byte, but .* began with char"),
        ({"encoding": "latin-1"}, "encoding is latin-1"),
        ({}, "has ended: all 2 steps are done"),
    ):
        with (
            pytest.raises(GptcliError, match=words),
            resume.resumed(tmp_path / "run", given, world=ALONE, callbacks=Callbacks()),
        ):
            pass
