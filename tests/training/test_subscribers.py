"""The life cycle of subscribers, and that one which fails takes nothing else with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from gptcli.checkpoints import checkpoint
from gptcli.errors import GptcliError
from gptcli.training import events
from gptcli.training.subscribers import LossPicture, Metrics, Subscribers

EVENTS: tuple[Any, ...] = (
    events.Stepped(0, 1, 4.0, 100.0, 1.0, 1e-3, None),
    events.Skipped(1, float("nan"), 1.0),
    events.RolledBack(0, 0.25),
    events.CooldownBegan(1, 2),
    events.Evaluated(0, 1, 64, 4.0, 4.5, 1e-3, 100.0, 1.0, 1.0, 1000, 0, None),
    events.CooldownBegan(1, 8),
    events.EpochEnded(1, 1),
    events.Saved(1, Path("run")),
    events.Noted("a line"),
)


class Failing:
    """Writes down its calls, and raises at one of them: "start", "end" or the name of an event."""

    name = "The failing one"

    def __init__(self, at: str, error: BaseException | None = None) -> None:
        self.at, self.error = at, error or ValueError("no\nroom")
        self.calls: list[str] = []

    def start(self) -> None:
        self._called("start")

    def on(self, event: Any) -> None:
        self._called(type(event).__name__)

    def end(self) -> None:
        self._called("end")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise self.error


ALL = ["start", *(type(event).__name__ for event in EVENTS), "end"]


def follow(*subscribers: Any, warn: Callable[[str], None]) -> None:
    following = Subscribers(subscribers, warn)
    with following.started():
        for event in EVENTS:
            following.publish(event)


def test_the_events_here_are_all_there_are() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(events.Event))


@pytest.mark.parametrize("at", ALL)
def test_one_that_raises_is_reported_once_and_dropped(at: str) -> None:
    first, failing, last = Failing("never"), Failing(at), Failing("never")
    lines: list[str] = []
    follow(first, failing, last, warn=lines.append)
    assert first.calls == last.calls == ALL
    assert failing.calls == ALL[: ALL.index(at) + 1]
    assert lines == ["The failing one: removed, and the run continues. ValueError: no room"]


def test_the_cause_is_that_of_our_own_errors() -> None:
    lines: list[str] = []
    follow(Failing("Saved", GptcliError("Cannot write it.", "Make room.")), warn=lines.append)
    assert lines == ["The failing one: removed, and the run continues. Cannot write it."]


def test_a_report_that_fails_ends_nothing() -> None:
    def warn(line: str) -> None:
        raise OSError("stderr has gone")

    last = Failing("never")
    follow(Failing("start"), Failing("Saved"), last, warn=warn)
    assert last.calls == ALL


def test_an_interrupt_passes_and_the_others_end() -> None:
    interrupted, other = Failing("Saved", KeyboardInterrupt()), Failing("never")
    with pytest.raises(KeyboardInterrupt):
        follow(other, interrupted, warn=print)
    assert other.calls[-1] == interrupted.calls[-1] == "end"


def test_an_error_of_the_run_ends_all_and_is_raised() -> None:
    other, failing = Failing("never"), Failing("end")
    following = Subscribers([failing, other], pytest.fail)
    with pytest.raises(GptcliError, match="diverged"), following.started():
        raise GptcliError("It has diverged.", "Lower the rate.")
    assert other.calls == failing.calls == ["start", "end"]


def test_the_metrics_are_those_of_the_evaluations_and_the_picture_is_drawn_of_them(tmp_path: Path) -> None:
    follow(Metrics(tmp_path), LossPicture(tmp_path, 64), warn=pytest.fail)
    (row,) = checkpoint.read_metrics(tmp_path)
    assert (row["step"], row["train_loss"], row["val_loss"]) == (0, 4.0, 4.5)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
