"""A sum that is taken while a file is written, against the whole file's words."""

from pathlib import Path

import numpy as np
import pytest

from gptcli.checkpoints import checksum


@pytest.mark.parametrize("sizes", [[0], [3], [8], [1, 2, 3, 4, 5, 6], [13, 0, 40, 7], [16, 16]])
def test_pieces_of_any_size_give_the_sum_of_the_file(
    sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).integers(0, 256, sum(sizes), dtype=np.uint8).tobytes()
    words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    expected = [len(data), sum(int(word) for word in words) % 2**64]
    found, start = checksum.Sum(), 0
    for size in sizes:
        found.add(data[start : start + size])
        start += size
    assert found.result() == expected
    monkeypatch.setattr(checksum, "SUM_PIECE", 11)
    (tmp_path / "file").write_bytes(data)
    assert checksum.file_sum(tmp_path / "file") == expected
