"""The checksum of a file in a run's records: its size and its CRC-32, as zlib, gzip and PNG compute it.

CRC-32 depends on the order of the bytes. Threads compute it for parts of the file; `_joined` combines the parts.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_PART = 2**24  # bytes that one task reads
_PIECE = 2**20  # bytes in memory per thread; small enough for the processor's cache
_POLYNOMIAL = 0xEDB88320  # CRC-32's, bits reversed


def file_sum(path: Path) -> dict[str, Any]:
    """{"bytes": size, "crc32": 8 hexadecimal digits} of the file ``path``. Raises OSError."""
    size = path.stat().st_size
    parts = range(0, size, _PART)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        crcs = list(pool.map(lambda start: _crc_of_part(path, start), parts))
    crc = 0
    for start, part in zip(parts, crcs, strict=True):
        crc = _joined(crc, part, min(_PART, size - start))
    return {"bytes": size, "crc32": f"{crc:08x}"}


def matches(path: Path, expected: Any) -> bool:
    """Whether a file has the checksum ``expected``: `file_sum`'s, or the [size, sum of words] of older versions."""
    return bool(expected == (_sum_of_words(path) if isinstance(expected, list) else file_sum(path)))


def _crc_of_part(path: Path, start: int) -> int:
    crc = 0
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        for _ in range(_PART // _PIECE):
            crc = zlib.crc32(file.read(_PIECE), crc)
    return crc


def _joined(first: int, second: int, length: int) -> int:
    """The CRC-32 of two pieces in a row from those of each; ``length`` is the second's in bytes.

    A CRC is a remainder of polynomials over GF(2), so crc(a + b) = crc(a) · x^(8 · length) + crc(b).
    """
    power, square = 1 << 31, 1 << 23  # x⁰ and x⁸
    while length:
        if length & 1:
            power = _product(power, square)
        square = _product(square, square)
        length >>= 1
    return _product(first, power) ^ second


def _product(one: int, other: int) -> int:
    """The product of two polynomials over GF(2) modulo CRC-32's."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


def _sum_of_words(path: Path) -> list[int]:
    """[size, sum of the little-endian 64-bit words modulo 2⁶⁴], the last word padded with zero bytes."""
    import numpy as np

    total = 0
    with path.open("rb") as file:
        while piece := file.read(_PART):
            words = np.frombuffer(piece + bytes(-len(piece) % 8), "<u8")
            total = (total + int(words.sum(dtype=np.uint64))) % 2**64
        return [file.tell(), total]
