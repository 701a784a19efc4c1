"""A checksum of a large file, computed while the file is written or by reading it again."""

from pathlib import Path

SUM_PIECE = 16 * 2**20


class Sum:
    """The size of a file and the sum of its little-endian 64-bit words modulo 2⁶⁴, which any one wrong bit changes."""

    def __init__(self) -> None:
        self.size, self.total, self._rest = 0, 0, b""

    def add(self, data: bytes | memoryview) -> None:
        """Add the next bytes of the file."""
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
        """[size in bytes, sum]; an incomplete last word is padded with zero bytes."""
        return [self.size, (self.total + int.from_bytes(self._rest, "little")) % 2**64]


def file_sum(path: Path) -> list[int]:
    """`Sum.result` of the file ``path``."""
    found = Sum()
    with path.open("rb") as file:  # in pieces: the whole optimizer file in memory would double a run's peak
        while piece := file.read(SUM_PIECE):
            found.add(piece)
    return found.result()
