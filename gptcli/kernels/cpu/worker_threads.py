"""Threads that help the caller with each step of an engine, and sleep between steps that are far apart."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from gptcli.kernels.cpu import memory_layout as c


class Helpers:
    """Threads for one kernel and its arrays.

    Args:
        run: the kernel (`decode_step.run`): called with the arrays and a number from 1 on, it helps with steps until
            there have been none for a while, then sets its cell of control to asleep, and returns.
        arrays: what the kernel works on, control last.
        count: how many threads.
    """

    def __init__(self, run: Callable[..., None], arrays: tuple[NDArray[Any], ...], count: int) -> None:
        self._control = arrays[-1]
        self._ended = threading.Event()
        self._locks = [threading.Lock() for _ in range(count)]
        for number, lock in enumerate(self._locks, start=1):
            lock.acquire()
            self._control[c.ASLEEP + c.LINE * number] = 1
            threading.Thread(target=_help, args=(run, arrays, number, lock, self._ended), daemon=True).start()

    def wake(self) -> None:
        """Have all of them look for work."""
        for number, lock in enumerate(self._locks, start=1):
            if self._control[c.ASLEEP + c.LINE * number]:
                self._control[c.ASLEEP + c.LINE * number] = 0
                lock.release()

    def end(self) -> None:
        """Let the threads return: those asleep now, the others once they have been idle."""
        self._ended.set()
        for lock in self._locks:
            with contextlib.suppress(RuntimeError):  # it is awake already
                lock.release()


def _help(
    run: Callable[..., None],
    arrays: tuple[NDArray[Any], ...],
    number: int,
    wake: threading.Lock,
    ended: threading.Event,
) -> None:
    while True:
        wake.acquire()
        if ended.is_set():
            return
        run(*arrays, number)
