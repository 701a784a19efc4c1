"""When the time of this command began, on the clock of `time.perf_counter`."""

import time
from dataclasses import dataclass


@dataclass
class Clock:
    """The start of this process, or of this command where a process runs several."""

    started: float = 0.0

    def begin(self, of_process: bool) -> None:
        """Count from now; ``of_process``: from the start of the process, which has been loading modules since."""
        age = 0.0
        if of_process:
            import psutil

            age = max(0.0, time.time() - psutil.Process().create_time())
        self.started = time.perf_counter() - age


command_clock = Clock()
