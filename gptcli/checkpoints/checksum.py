"""A sum that shows whether a large file is whole, taken while it is written or read again later."""

from pathlib import Path

SUM_PIECE = 16 * 2**20


class Sum:
    """The size of a file and the sum of its 64-bit words modulo 2⁶⁴: as fast as memory, and any lost bit shows."""

    def __init__(self) -> None:
        self.size, self.total, self._rest = 0, 0, b""

    def add(self, data: bytes | memoryview) -> None:
        """Go on with the next bytes of the file."""
        import numpy as np

        view = memoryview(data).cast("B")
        self.size += len(view)
        missing = -len(self._rest) % 8
        self._rest += bytes(view[:missing])
        if len(self._rest) == 8:
            self.total += int.from_bytes(self._rest, "little")
            self._rest = b""
        view = view[missing:]
        whole = len(view) // 8 * 8
        if whole:
            self.total = (self.total + int(np.frombuffer(view[:whole], "<u8").sum(dtype=np.uint64))) % 2**64
        self._rest += bytes(view[whole:])

    def result(self) -> list[int]:
        """Size and sum; the last word is filled up with zeros."""
        return [self.size, (self.total + int.from_bytes(self._rest, "little")) % 2**64]


def file_sum(path: Path) -> list[int]:
    """What `Sum` finds of a whole file."""
    found = Sum()
    with path.open("rb") as file:  # a piece at a time: a whole optimizer in memory would double a run's peak
        while piece := file.read(SUM_PIECE):
            found.add(piece)
    return found.result()
