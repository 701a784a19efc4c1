"""The speed of a run and its remaining time, from the durations of its steps, evaluations, samples and saves.

Only `Forecast` reads a clock, which is an argument of its constructor. All durations are in seconds.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP = 4  # first steps of a session, slower than later ones: they compile, allocate and capture graphs
RECENT, RECENT_STEPS = 60.0, 16  # seconds, and least number, of the latest steps that give the speed
GROUND, GROUND_SHARE = 1.0, 0.1  # a forecast needs 1 s of recent steps, or a tenth of the session's steps
WRONG, WRONG_SECONDS = 0.2, 30.0  # a forecast is reported anew when its error exceeds both (share, seconds)
SAVING_SHARE = 0.02  # most share of the time spent on saving without --save-every


@dataclass(frozen=True)
class Ahead:
    """The rest of a run.

    Attributes:
        steps: steps left, of ``tokens_per_step`` tokens each.
        evaluations, epochs, saves: evaluations, ends of epochs, and saves at known steps that are left.
        share_of_saves: share of the remaining time that saves at unknown steps take.
    """

    steps: int
    tokens_per_step: int
    evaluations: int = 0
    epochs: int = 0
    saves: int = 0
    share_of_saves: float = 0.0

    @classmethod
    def after(
        cls,
        step: int,
        total_steps: int,
        steps_per_epoch: int,
        tokens_per_step: int,
        eval_every: int,
        save_every: int | None,
    ) -> "Ahead":
        """The rest after ``step`` (at least 1) of ``total_steps`` steps, before the evaluation or save that follows it.

        The first step and every ``eval_every``-th after it are followed by an evaluation, every ``save_every``-th by a
        save (None: saves are at unknown steps); the run ends with an
        evaluation and a save.
        """
        last = total_steps - 1
        evaluations = last // eval_every - (step - 2) // eval_every + (last % eval_every > 0)
        saves = 0 if save_every is None else last // save_every - (step - 1) // save_every
        return cls(
            total_steps - step,
            tokens_per_step,
            evaluations,
            total_steps // steps_per_epoch - (step - 1) // steps_per_epoch,
            saves + 1,
            SAVING_SHARE if save_every is None else 0.0,
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

    The seconds of a step last until its loss is known, and must not overlap those of an evaluation or a save.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._recent: deque[tuple[int, float]] = deque()
        self._tokens, self._seconds = 0, 0.0  # sums over self._recent
        self._evaluations, self._epochs, self._saves = _Mean(), _Mean(), _Mean()
        self._first_evaluation: tuple[int, float] | None = None

    def stepped(self, tokens: int, seconds: float) -> None:
        """Record a step on ``tokens`` tokens. Up to step WARM_UP + 1 only the latest step counts."""
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
        """Record an evaluation on ``tokens`` tokens."""
        if self._first_evaluation is None:
            self._first_evaluation = tokens, seconds
        else:
            self._evaluations.add(seconds)

    def epoch_ended(self, seconds: float) -> None:
        """Record how long the consumer of the events took for an `EpochEnded`, for instance to print a sample."""
        self._epochs.add(seconds)

    def saved(self, seconds: float) -> None:
        """Record the writing of a snapshot."""
        self._saves.add(seconds)

    @property
    def tokens_per_second(self) -> float:
        """The speed of the recent steps; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def seconds_left(self, ahead: Ahead) -> float | None:
        """The forecast of the time that ``ahead`` takes; None while too little has been measured."""
        rate, share = self.tokens_per_second, self._steps / max(self._steps + ahead.steps, 1)
        if rate == 0 or (
            ahead.steps > 0 and (self._steps <= WARM_UP or (self._seconds < GROUND and share < GROUND_SHARE))
        ):
            return None
        left = ahead.steps * ahead.tokens_per_step / rate + ahead.evaluations * self._evaluation(rate)
        left += ahead.epochs * self._epochs.value + ahead.saves * self._saves.value
        return left / (1 - ahead.share_of_saves)

    def _evaluation(self, rate: float) -> float:
        """Seconds of an evaluation. The first may include compiling, so it counts as no slower than training on as
        many tokens."""
        if self._evaluations.count or self._first_evaluation is None:
            return self._evaluations.value
        tokens, seconds = self._first_evaluation
        return min(seconds, tokens / rate)


class Forecast:
    """The last reported forecast of the time left, and whether to report a new one.

    Args:
        clock: returns seconds; only differences are used.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end: float | None = None

    def is_news(self, seconds_left: float) -> bool:
        """Whether to report ``seconds_left``: no forecast was reported yet, or the last one is off by more than
        `WRONG` and `WRONG_SECONDS`. If True, ``seconds_left`` counts as reported."""
        now = self._clock()
        if self._end is not None:
            expected = max(self._end - now, 0.0)
            off = abs(seconds_left - expected)
            if off < WRONG_SECONDS or off < WRONG * max(seconds_left, expected):
                return False
        self._end = now + seconds_left
        return True
