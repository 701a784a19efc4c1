"""Ctrl-C, SIGTERM and on Windows Ctrl-Break, answered between two steps."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptcli.cli import render


@dataclass
class Stop:
    """The signal that asked the run to stop, if one did."""

    number: int | None = None

    def asked(self) -> bool:
        return self.number is not None

    @property
    def is_urgent(self) -> bool:
        """Whether whoever sent it does not wait for an evaluation."""
        return self.number is not None and self.number != signal.SIGINT

    @property
    def name(self) -> str:
        """What the signal is called."""
        return signals().get(self.number or 0, "")


def signals() -> dict[int, str]:
    """The signals that stop a run on this system, and what they are called."""
    known = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGBREAK": "Ctrl-Break"}
    return {getattr(signal, name): told for name, told in known.items() if hasattr(signal, name)}


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """The first of `signals` ends the run after the step under way; a second Ctrl-C ends it at once."""
    stop = Stop()

    def handle(signum: int, frame: Any) -> None:
        if stop.asked() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.asked():
            stop.number = signum
            render.warn("Finishing this step and writing a checkpoint; Ctrl-C again stops at once.")

    previous = {number: signal.signal(number, handle) for number in signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
