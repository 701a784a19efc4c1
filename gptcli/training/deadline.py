"""When the cooldown of a run for a fixed time begins: the one number of a run that a clock decides.

All durations are in seconds. Nothing here reads a clock.
"""

from collections import deque
from dataclasses import replace

from gptcli.config.recipe import RecipeConfig
from gptcli.training.optimizers import cooldown_length
from gptcli.training.pace import SAVING_SHARE

RECENT = 1 / 30  # share of the time whose steps give the speed: it may change while a run goes on
CLOSING = 0.7  # what follows the last save: the picture of losses, the closing lines, the end of the process


def is_undecided(recipe: RecipeConfig) -> bool:
    """Whether a clock is yet to decide how many steps a run has."""
    return recipe.for_time is not None and recipe.cooldown_start is None


def decided(recipe: RecipeConfig, cooldown_start: int | None) -> RecipeConfig:
    """The recipe of a run for a fixed time whose cooldown begins at that step; None: as it is."""
    if cooldown_start is None or not is_undecided(recipe):
        return recipe
    steps = cooldown_start + cooldown_length(recipe, cooldown_start)
    return replace(recipe, cooldown_start=cooldown_start, max_steps=steps)


class Deadline:
    """The durations of a session's steps (with all that is done between them), evaluations and saves.

    Args:
        recipe: with a ``for_time``.
        save_every: steps from one save to the next; None for saves that take `SAVING_SHARE` of the time.
    """

    def __init__(self, recipe: RecipeConfig, save_every: int | None) -> None:
        assert recipe.for_time is not None
        self.recipe, self.time, self.save_every = recipe, recipe.for_time, save_every
        self._recent: deque[float] = deque()
        self._sum, self._count = 0.0, 0
        self._evaluation, self._save = 0.0, 0.0  # of the latest ones
        self._before: float | None = None  # when a step was to begin last
        self._beside = 0.0  # evaluations and saves since then

    def reached(self, elapsed: float) -> None:
        """Record that a step is to begin. The first, which allocates, counts only while there is no other."""
        before, self._before = self._before, elapsed
        if before is None:
            return
        duration, self._beside = max(elapsed - before - self._beside, 0.0), 0.0
        self._count += 1
        if self._count == 2:
            self._recent.clear()
            self._sum = 0.0
        self._recent.append(duration)
        self._sum += duration
        while len(self._recent) > 2 and self._sum - self._recent[0] >= RECENT * self.time:
            self._sum -= self._recent.popleft()

    def evaluated(self, duration: float) -> None:
        """Record an evaluation."""
        self._evaluation = duration
        self._beside += duration

    def saved(self, duration: float) -> None:
        """Record the writing of a snapshot."""
        self._save = duration
        self._beside += duration

    def is_due(self, step: int, elapsed: float) -> bool:
        """Whether a cooldown that begins after ``step`` steps, at ``elapsed``, would end the run at its time or later.

        False before the first step.
        """
        if not self._recent or step == 0:
            return False
        return elapsed + self._rest(step, step + cooldown_length(self.recipe, step)) >= self.time

    def _rest(self, step: int, total: int) -> float:
        """The duration of the steps from ``step`` to ``total``, and of what comes with and after them."""
        last, every = total - 1, self.recipe.eval_every
        evaluations = last // every - (step - 1) // every + (last % every > 0)
        saves = 1 if self.save_every is None else last // self.save_every - (step - 1) // self.save_every + 1
        steps = (total - step) * self._sum / len(self._recent)
        between = steps + evaluations * self._evaluation
        if self.save_every is None and self._save > 0:  # once there is a first one, others follow
            between /= 1 - SAVING_SHARE
        return between + saves * self._save + CLOSING
