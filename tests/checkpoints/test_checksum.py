"""The checksum of a file: CRC-32 as zlib computes it, whatever the parts; and that of older versions."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from gptcli.checkpoints import checksum


def some_bytes(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 64, 65, 1000])
def test_the_parts_of_a_file_give_the_crc_of_the_whole(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "_PART", 32)
    monkeypatch.setattr(checksum, "_PIECE", 8)
    data = some_bytes(size)
    (tmp_path / "file").write_bytes(data)
    found = checksum.file_sum(tmp_path / "file")
    assert found == {"bytes": size, "crc32": f"{zlib.crc32(data):08x}"}
    assert checksum.matches(tmp_path / "file", found)


def test_a_file_of_several_parts_as_they_are(tmp_path: Path) -> None:
    data = some_bytes(2 * checksum._PART + 12345)
    (tmp_path / "file").write_bytes(data)
    assert checksum.file_sum(tmp_path / "file")["crc32"] == f"{zlib.crc32(data):08x}"


@pytest.mark.parametrize("size", [0, 3, 8, 40, 1001])
def test_the_sum_of_older_versions_is_still_compared(size: int, tmp_path: Path) -> None:
    data = some_bytes(size)
    words = np.frombuffer(data + bytes(-size % 8), "<u8")
    expected = [size, sum(int(word) for word in words) % 2**64]
    (tmp_path / "file").write_bytes(data)
    assert checksum.matches(tmp_path / "file", expected)
    assert not checksum.matches(tmp_path / "file", [size, expected[1] + 1])


def test_two_pages_exchanged_one_bit_and_one_byte_less_are_found(tmp_path: Path) -> None:
    data = some_bytes(5 * 4096)
    file = tmp_path / "file"
    file.write_bytes(data)
    whole = checksum.file_sum(file)
    pages = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    exchanged = b"".join([pages[0], pages[3], pages[2], pages[1], pages[4]])
    for other in (exchanged, bytes([data[0] ^ 16]) + data[1:], data[:-1], data + b"\0"):
        file.write_bytes(other)
        assert not checksum.matches(file, whole)


@pytest.mark.parametrize("expected", [None, 3, "crc32", {}, {"bytes": 3}, {"xxh3": "00"}, [], [3], [3, "a"], {"a": []}])
def test_a_checksum_of_another_kind_matches_nothing(expected: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert not checksum.matches(tmp_path / "file", expected)
