"""The speed of a run and the time it still takes, held against runs whose every duration is made up."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.config.recipe import RecipeConfig
from gptcli.training.pace import RECENT, RECENT_STEPS, WARM_UP, Ahead, Forecast, Pace


def test_the_first_steps_are_not_in_the_rate_once_there_are_others() -> None:
    pace = Pace()
    assert pace.tokens_per_second == 0
    for seconds in (20.0, 5.0, 4.0, 3.0)[:WARM_UP]:
        pace.stepped(100, seconds)
        assert pace.tokens_per_second == 100 / seconds
    pace.stepped(100, 0.5)
    assert pace.tokens_per_second == 200
    pace.stepped(100, 1.5)
    assert pace.tokens_per_second == 100


def test_the_rate_follows_recent_steps() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.stepped(10, 1.0)
    assert pace.tokens_per_second == 10
    for _ in range(int(RECENT)):
        pace.stepped(10, 2.0)
    assert pace.tokens_per_second == 5


def test_slow_steps_are_recent_by_their_number() -> None:
    pace = Pace()
    for seconds in [1000.0] * 10 + [500.0] * RECENT_STEPS:
        pace.stepped(1000, seconds)
    assert pace.tokens_per_second == 2


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.none() | st.integers(1, 12), st.data())
def test_what_is_ahead_is_what_a_run_does(
    total: int, per_epoch: int, eval_every: int, save_every: int | None, data: st.DataObject
) -> None:
    """Counted by going through the run as the training loop does."""
    at = data.draw(st.integers(1, total))
    evaluations = epochs = saves = 0
    for step in range(at - 1, total):  # the step has been taken; this is what follows upon it
        evaluations += step % eval_every == 0
        epochs += (step + 1) % per_epoch == 0
        saves += save_every is not None and step + 1 < total and (step + 1) % save_every == 0
    evaluations += (total - 1) % eval_every != 0
    ahead = Ahead.after(at, total, per_epoch, 7, eval_every, save_every)
    assert (ahead.steps, ahead.tokens_per_step) == (total - at, 7)
    assert (ahead.evaluations, ahead.epochs, ahead.saves) == (evaluations, epochs, saves + 1)
    assert (ahead.share_of_saves > 0) == (save_every is None)


@dataclass
class Run:
    """A made-up run: how long its step ``number`` (from 0) takes, and what everything else does."""

    step: Callable[[int], float]
    total: int = 400
    eval_every: int = 5
    save_every: int = 100
    per_epoch: int = 40
    evaluation: float = 0.1
    first_evaluation: float = 0.1
    sample: float = 0.0
    save: float = 0.0

    def forecasts(self) -> list[tuple[float, float | None]]:
        """(the time after each step, what is left by the forecast), and at last the whole time."""
        pace, now, found = Pace(), 0.0, []
        evaluation_tokens = 2 * RecipeConfig.eval_batches * 1024
        for step in range(self.total):
            now += self.step(step)
            pace.stepped(1024, self.step(step))
            ahead = Ahead.after(step + 1, self.total, self.per_epoch, 1024, self.eval_every, self.save_every)
            found.append((now, pace.seconds_left(ahead)))
            if step % self.eval_every == 0 or step + 1 == self.total:
                took = self.evaluation if step else self.first_evaluation
                now += took
                pace.evaluated(evaluation_tokens, took)
            if (step + 1) % self.per_epoch == 0:
                now += self.sample
                pace.epoch_ended(self.sample)
            if step + 1 == self.total or (step + 1) % self.save_every == 0:
                now += self.save
                pace.saved(self.save)
        return [*found, (now, 0.0)]


RUNS = {
    "a GPU that compiles first": Run(
        lambda n: (18.0, 1.0)[n] if n < 2 else 0.05, first_evaluation=9.0, evaluation=0.15
    ),
    "a CPU": Run(lambda n: 5.0 if n else 7.0, evaluation=16.0, first_evaluation=17.0, sample=4.0, save=3.0),
    "steps that wander": Run(lambda n: 0.2 + 0.1 * (n * 7 % 5), evaluation=0.5),
    "many short epochs with samples": Run(lambda n: 0.01, per_epoch=4, sample=0.2, evaluation=0.02),
    "a run of one step an epoch": Run(lambda n: 1.0, per_epoch=1, sample=0.5, evaluation=2.0, first_evaluation=2.5),
    "few steps": Run(lambda n: 6.0, total=40, evaluation=20.0, first_evaluation=21.0),
    "saves that take as long as steps": Run(lambda n: 0.5, eval_every=50, save_every=10, save=5.0),
}


@pytest.mark.parametrize("name", RUNS)
def test_after_the_first_tenth_forecasts_are_within_a_fifth(name: str) -> None:
    *steps, (end, _) = RUNS[name].forecasts()
    for now, left in steps[len(steps) // 10 : -1]:
        assert left is not None
        assert left == pytest.approx(end - now, rel=0.2, abs=2.0)


def test_a_machine_that_slows_down_is_noticed_within_the_recent_steps() -> None:
    *steps, (end, _) = Run(lambda n: 1.0 if n < 100 else 3.0, eval_every=1000).forecasts()
    now, left = steps[100 + RECENT_STEPS + int(RECENT / 3)]
    assert left == pytest.approx(end - now, rel=0.2)


def test_there_is_no_forecast_from_warm_up_steps_or_a_moment() -> None:
    def left(steps: int, seconds: float, total: int) -> float | None:
        pace = Pace()
        for _ in range(steps):
            pace.stepped(10, seconds)
        return pace.seconds_left(Ahead.after(steps, total, total, 10, 10**6, None))

    assert left(WARM_UP, 9.0, 1000) is None
    assert left(WARM_UP + 1, 9.0, 1000) == pytest.approx(9.0 * (999 - WARM_UP), rel=0.05)
    assert left(10, 0.01, 1000) is None
    assert left(100, 0.01, 1000) is not None  # a tenth of the run
    assert left(200, 0.01, 10**6) is not None  # a second
    assert left(1, 5.0, 1) == 0


def test_a_forecast_is_said_once_and_again_when_it_was_wrong() -> None:
    now = 0.0
    forecast = Forecast(lambda: now)
    assert forecast.is_news(1000.0)
    now = 100.0
    assert not forecast.is_news(900.0)
    assert not forecast.is_news(1050.0)  # off by less than a fifth
    assert forecast.is_news(1200.0)
    now = 200.0
    assert not forecast.is_news(1100.0)
    now = 1290.0
    assert not forecast.is_news(35.0)  # off by half a minute at most
    assert forecast.is_news(60.0)
    now = 2000.0
    assert forecast.is_news(40.0)  # the end was forecast for long ago
