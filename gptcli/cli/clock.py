"""When the time of this command began, on the clock of `time.perf_counter`."""

import time


class Clock:
    """The start of this process, or of this command where a process runs several."""

    def __init__(self) -> None:
        self._begun, self._of_process = 0.0, False

    def begin(self, of_process: bool) -> None:
        """Count from now; ``of_process``: from the start of the process, which has been loading modules since."""
        self._begun, self._of_process = time.perf_counter(), of_process

    @property
    def started(self) -> float:
        """The start; psutil, which takes some milliseconds to import, is asked for that of the process."""
        if not self._of_process:
            return self._begun
        import psutil

        age = time.time() - float(psutil.Process().create_time())
        return min(self._begun, time.perf_counter() - age)


command_clock = Clock()
