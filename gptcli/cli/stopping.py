"""Ctrl-C and SIGTERM, answered between two steps."""

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


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM ends the run after the step under way; a second Ctrl-C ends it at once."""
    stop = Stop()

    def handle(signum: int, frame: Any) -> None:
        if stop.asked() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not stop.asked():
            stop.number = signum
            render.warn("Finishing this step and writing a checkpoint; Ctrl-C again stops at once.")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
