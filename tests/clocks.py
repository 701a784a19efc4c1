"""A clock for runs that a clock decides: it goes on by so many seconds with every look at it."""

import pytest

from gptcli.cli import clock
from gptcli.training import budget, trainer


class Ticking:
    """Stands for the module `time` where a run for a fixed time looks at it."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0

    def perf_counter(self) -> float:
        self.now += self.seconds
        return self.now

    @classmethod
    def replacing(cls, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> "Ticking":
        """A clock in place of the real one until the test ends."""
        made = cls(seconds)
        for module in (budget, trainer, clock):
            monkeypatch.setattr(module, "time", made)
        return made
