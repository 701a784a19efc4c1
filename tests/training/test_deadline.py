"""The one number that a clock decides: when the cooldown of a run for a fixed time begins."""

from dataclasses import replace

import pytest

from gptcli.config.recipe import RecipeConfig
from gptcli.training.deadline import CLOSING, Deadline, decided, is_undecided
from gptcli.training.optimizers import cooldown, learning_rate
from gptcli.training.pace import SAVING_SHARE
from gptcli.training.snapshots import FIRST_SAVE

RECIPE = RecipeConfig(for_time=60, schedule="wsd", eval_every=10, min_learning_rate=0.0, learning_rate=1.0)


def run(
    recipe: RecipeConfig,
    seconds: list[float],
    evaluation: float = 0.0,
    save: float = 0.0,
    save_every: int | None = None,
) -> tuple[int, float]:
    """The steps of a run whose n-th step takes ``seconds[n]``, and its end by the clock; it saves as `Store` does."""
    deadline, elapsed, step, saved_at, cost = Deadline(recipe, save_every), 2.0, 0, 0.0, FIRST_SAVE * SAVING_SHARE
    while True:
        deadline.reached(elapsed)
        if is_undecided(recipe) and deadline.is_due(step, elapsed):
            recipe = decided(recipe, step)
        if not is_undecided(recipe) and step == recipe.max_steps:
            break
        took = seconds[min(step, len(seconds) - 1)]
        elapsed += took
        if step % recipe.eval_every == 0:
            elapsed += evaluation
            deadline.evaluated(evaluation)
        step += 1
        due = elapsed - saved_at > cost / SAVING_SHARE if save_every is None else step % save_every == 0
        if save and due and step != recipe.max_steps:
            elapsed += save
            deadline.saved(save)
            saved_at, cost = elapsed, save
    return step, elapsed + (evaluation if (step - 1) % recipe.eval_every else 0) + save + CLOSING


@pytest.mark.parametrize("save_every", [None, 50, 1])
@pytest.mark.parametrize("seconds", [300, 3600])
def test_a_run_that_saves_ends_at_its_time(seconds: float, save_every: int | None) -> None:
    recipe = replace(RECIPE, for_time=seconds)
    _, end = run(recipe, [0.5], save=1.0, save_every=save_every)
    assert end == pytest.approx(seconds, abs=3.0)


@pytest.mark.parametrize("step", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("evaluation", [0.0, 0.5])
def test_a_run_ends_at_its_time(step: float, evaluation: float) -> None:
    _, end = run(RECIPE, [step], evaluation)
    granule = 2 * step + 1e-9  # one step more before the cooldown makes the run one or two steps longer
    assert 60 - granule <= end <= 60 + granule + evaluation


def test_a_slow_first_step_is_no_measure() -> None:
    _, end = run(RECIPE, [5.0, 0.1])
    assert end == pytest.approx(60, abs=0.5)


def test_the_first_step_counts_only_while_there_is_no_other() -> None:
    deadline = Deadline(RECIPE, None)
    for elapsed in (0.0, 28.0, 42.0):
        deadline.reached(elapsed)
    assert not deadline.is_due(2, 45.0)  # one step of 14 s is to follow
    assert deadline.is_due(2, 46.0)


def test_a_few_long_steps_among_short_ones_do_not_end_a_run_early() -> None:
    _, end = run(RECIPE, [0.1, 0.1, 0.1, 0.4] * 100)
    assert end == pytest.approx(60, abs=1)


def test_a_machine_that_becomes_slower_before_the_cooldown_ends_in_time() -> None:
    _, end = run(RECIPE, [0.1] * 250 + [0.2])  # from 27 s on
    assert end == pytest.approx(60, abs=1.8)


def test_a_machine_that_is_half_as_fast_from_the_middle_on_ends_within_a_tenth() -> None:
    _, end = run(RECIPE, [0.1] * 300 + [0.2])
    assert 60 <= end <= 66


def test_steps_that_are_longer_than_the_time() -> None:
    steps, _ = run(RECIPE, [100.0])
    assert steps == 2


def test_the_cooldown_is_a_share_of_the_steps_before_it() -> None:
    recipe = decided(RECIPE, 100)
    assert (recipe.cooldown_start, recipe.max_steps) == (100, 150)
    assert cooldown(recipe, 150) == (100, 50)
    assert [learning_rate(recipe, step, 150) for step in (0, 99, 124, 149)] == [1.0, 1.0, 0.5, 0.0]
    assert decided(recipe, 120) is recipe  # it is decided once
    assert decided(RECIPE, None) is RECIPE


def test_by_hand_the_cooldown_ends_with_the_schedule() -> None:
    recipe = RecipeConfig(schedule="wsd", max_steps=90, cooldown_share=0.5)
    assert cooldown(recipe, 90) == (60, 30)
    assert not is_undecided(recipe)


@pytest.mark.parametrize("step", [5, 6, 50, 5_000])
def test_until_the_clock_decides_the_rate_is_constant_however_few_steps_were_expected(step: int) -> None:
    assert learning_rate(RECIPE, step, schedule_steps=6) == 1.0
    assert learning_rate(decided(RECIPE, 6_000), step, schedule_steps=9_000) == 1.0
