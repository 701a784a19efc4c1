"""Compiled functions that are written to a file and loaded from it, in this process and in one without numba."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_checkpoint

pytest.importorskip("numba", exc_type=ImportError)

from gptcli.kernels.cpu import object_code, target

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A function of x (two cells), a factor, y (two cells) and an offset: y[i] = factor * x[i] + offset."""
    from numba import carray, cfunc, types

    from gptcli.kernels.cpu import simd

    def entry(address: Any) -> None:
        cells = carray(simd.at_address(address), (6,), np.int64)
        x = carray(simd.at_address(cells[0]), (cells[1],), np.float32)
        y = carray(simd.at_address(cells[3]), (cells[4],), np.float32)
        for i in range(cells[1]):
            y[i] = cells[2] * x[i] + cells[5]

    return cfunc(types.void(types.int64), error_model="numpy")(entry)


def test_a_loaded_function_is_the_compiled_one(compiled: Any, tmp_path: Path) -> None:
    file = tmp_path / "entry.kernel"
    object_code.save(file, compiled)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # nothing partial
    x = np.arange(100, dtype=np.float32)
    for kernel in (object_code.of_compiled(compiled), object_code.load(file)):
        y = np.zeros_like(x)
        kernel(x, 3, y, 7)
        np.testing.assert_array_equal(y, 3 * x + 7)
        kernel.bound(x, 2, y)(5)
        np.testing.assert_array_equal(y, 2 * x + 5)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:-9] + bytes(9), lambda raw: raw[3:]])
def test_a_damaged_file_is_not_loaded(compiled: Any, tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "entry.kernel"
    object_code.save(file, compiled)
    file.write_bytes(damage(file.read_bytes().replace(b"\x00" * 9, b"\x01" * 9)))
    with pytest.raises(ValueError):  # noqa: PT011, of two kinds
        object_code.load(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        object_code.load(file)


@pytest.mark.skipif(target.has_settings(), reason="numba is imported where its variables may name another processor")
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_generating_with_kept_kernels_imports_no_numba(tmp_path: Path, quantize: str | None) -> None:
    tiny_checkpoint(tmp_path / "model")
    packing = [] if quantize is None else ["--quantize", quantize]
    words = ["generate", "a", "-c", str(tmp_path / "model"), "-n", "3", "--engine", "cpu", *packing]
    code = f"import sys; from gptcli.cli import main; assert main({words!r}) == 0; assert 'numba' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
