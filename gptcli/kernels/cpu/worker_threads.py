"""Threads that compute parts of each decode step beside the calling thread, and sleep when no step comes."""

import contextlib
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gptcli.kernels.cpu import memory_layout as c


class Helpers:
    """Threads for one kernel and its arrays.

    Args:
        run: the kernel with its arrays (`decode_step.run`): called with a thread number from 1 on, it joins steps until
            `IDLE` loads in a row find none, then sets control[ASLEEP + LINE * number] to 1 and returns.
        control: the last of the arrays.
        count: number of threads.
    """

    def __init__(self, run: Callable[[int], None], control: NDArray[np.int64], count: int) -> None:
        self._control = control
        self._ended = threading.Event()
        self._locks = [threading.Lock() for _ in range(count)]
        for number, lock in enumerate(self._locks, start=1):
            lock.acquire()
            self._control[c.ASLEEP + c.LINE * number] = 1
            threading.Thread(target=_help, args=(run, number, lock, self._ended), daemon=True).start()

    def wake(self) -> None:
        """Wake all threads that are asleep."""
        for number, lock in enumerate(self._locks, start=1):
            if self._control[c.ASLEEP + c.LINE * number]:
                self._control[c.ASLEEP + c.LINE * number] = 0
                lock.release()

    def end(self) -> None:
        """End the threads: those asleep now, the others when the kernel returns."""
        self._ended.set()
        for lock in self._locks:
            with contextlib.suppress(RuntimeError):  # released already: the thread is waking up
                lock.release()


def _help(
    run: Callable[[int], None],
    number: int,
    wake: threading.Lock,
    ended: threading.Event,
) -> None:
    while True:
        wake.acquire()
        if ended.is_set():
            return
        run(number)
