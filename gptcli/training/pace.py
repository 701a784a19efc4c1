"""How fast a run trains and how long it still takes, from what its steps, evaluations, samples and saves took.

Nothing here reads a clock but `Forecast`, which is given one. All durations are in seconds.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gptcli.config.training import TrainConfig

WARM_UP = 4  # steps of a session: they compile, allocate, choose algorithms and capture graphs
RECENT, RECENT_STEPS = 60.0, 16  # the rate is that of the last minute, and of so many steps at least
GROUND, GROUND_SHARE = 1.0, 0.1  # no forecast before so long has been measured, or so much of the session is done
WRONG, WRONG_SECONDS = 0.2, 30.0  # a forecast is corrected when it is off by both
SAVING_SHARE = 0.02  # of the time, where the run chooses itself when to save


@dataclass(frozen=True)
class Ahead:
    """What a run has still to do.

    Attributes:
        steps: of ``tokens_per_step`` tokens each.
        evaluations, epochs, saves: evaluations, ends of epochs and saves at known steps.
        share_of_saves: of all the time that is left, for further saves.
    """

    steps: int
    tokens_per_step: int
    evaluations: int = 0
    epochs: int = 0
    saves: int = 0
    share_of_saves: float = 0.0

    @classmethod
    def after(
        cls, step: int, total_steps: int, steps_per_epoch: int, tokens_per_step: int, config: TrainConfig
    ) -> "Ahead":
        """Once ``step`` of ``total_steps`` steps are done, at least one, and what follows upon the last of them is not.

        An evaluation follows upon the first step and every ``eval_every`` later; an evaluation and a save end the run.
        """
        last = total_steps - 1
        evaluations = last // config.eval_every - (step - 2) // config.eval_every + (last % config.eval_every > 0)
        saves = 0 if config.save_every is None else last // config.save_every - (step - 1) // config.save_every
        return cls(
            total_steps - step,
            tokens_per_step,
            evaluations,
            total_steps // steps_per_epoch - (step - 1) // steps_per_epoch,
            saves + 1,
            SAVING_SHARE if config.save_every is None else 0.0,
        )


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


class Pace:
    """The speed of one session of a run.

    A step's seconds are those until its loss is known; none of them may be counted in an evaluation or a save as well.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._recent: deque[tuple[int, float]] = deque()
        self._tokens, self._seconds = 0, 0.0  # of the recent steps
        self._evaluations, self._epochs, self._saves = _Mean(), _Mean(), _Mean()
        self._first_evaluation: tuple[int, float] | None = None

    def stepped(self, tokens: int, seconds: float) -> None:
        """A step on ``tokens`` tokens is done. The first ones count only until there are others."""
        self._steps += 1
        if self._steps <= WARM_UP + 1:
            self._recent.clear()
            self._tokens, self._seconds = 0, 0.0
        self._recent.append((tokens, seconds))
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        while len(self._recent) > RECENT_STEPS and self._seconds - self._recent[0][1] >= RECENT:
            old_tokens, old_seconds = self._recent.popleft()
            self._tokens, self._seconds = self._tokens - old_tokens, self._seconds - old_seconds

    def evaluated(self, tokens: int, seconds: float) -> None:
        """An evaluation on ``tokens`` tokens is done."""
        if self._first_evaluation is None:
            self._first_evaluation = tokens, seconds
        else:
            self._evaluations.add(seconds)

    def epoch_ended(self, seconds: float) -> None:
        """Whoever follows the run took so long for the end of an epoch, as for a sample text."""
        self._epochs.add(seconds)

    def saved(self, seconds: float) -> None:
        """A snapshot is written."""
        self._saves.add(seconds)

    @property
    def tokens_per_second(self) -> float:
        """The speed of the recent steps alone; 0 before the first."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def seconds_left(self, ahead: Ahead) -> float | None:
        """How long what is ahead will take; None while too little has been measured to say."""
        rate, share = self.tokens_per_second, self._steps / max(self._steps + ahead.steps, 1)
        if rate == 0 or (
            ahead.steps > 0 and (self._steps <= WARM_UP or (self._seconds < GROUND and share < GROUND_SHARE))
        ):
            return None
        left = ahead.steps * ahead.tokens_per_step / rate + ahead.evaluations * self._evaluation(rate)
        left += ahead.epochs * self._epochs.value + ahead.saves * self._saves.value
        return left / (1 - ahead.share_of_saves)

    def _evaluation(self, rate: float) -> float:
        """Seconds of an evaluation. The first may compile, but without that none is slower than training."""
        if self._evaluations.count or self._first_evaluation is None:
            return self._evaluations.value
        tokens, seconds = self._first_evaluation
        return min(seconds, tokens / rate)


class Forecast:
    """What a user has been told of the time left, and whether it has to be corrected.

    Args:
        clock: seconds that only differences of are used.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end: float | None = None

    def is_news(self, seconds_left: float) -> bool:
        """Whether to say ``seconds_left``: it is the first to be known, or far from what was said last; then it is
        taken for said."""
        now = self._clock()
        if self._end is not None:
            expected = max(self._end - now, 0.0)
            off = abs(seconds_left - expected)
            if off < WRONG_SECONDS or off < WRONG * max(seconds_left, expected):
                return False
        self._end = now + seconds_left
        return True
