"""The folders of compiled kernels, which need no numba to be found and removed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptcli.kernels.cpu import cache_folders


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return cache_folders.cache_directory().parent


def test_what_was_not_used_for_a_month_is_removed_with_its_version(cache: Path) -> None:
    unused = time.time() - cache_folders.UNUSED - 60
    for name in ("kernels-0123456789ab", "kernels-fedcba987654", "training-0123456789ab", "kernels-of-mine"):
        (cache / name).mkdir(parents=True)
        marker = cache / name / "float32-01234567.compiled"
        marker.touch()
        if name != "kernels-fedcba987654":
            os.utime(marker, (unused, unused))
    current = cache_folders.cache_directory()
    assert cache_folders.can_write(current)
    cache_folders.prune(current)
    assert {path.name for path in cache.iterdir()} == {"kernels-fedcba987654", "kernels-of-mine", current.name}


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not cache_folders.can_write(tmp_path / "file" / "folder")


def test_neither_numba_nor_numpy_is_needed(cache: Path) -> None:
    (cache / "kernels-0123456789ab").mkdir(parents=True)
    code = (
        "import sys; sys.modules |= dict.fromkeys(('numba', 'numpy')); "
        "from gptcli.kernels.cpu import cache_folders; print(*(path.name for path in cache_folders.folders()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.strip() == "kernels-0123456789ab", done.stderr
