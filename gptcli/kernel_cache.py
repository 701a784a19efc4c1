"""The compiled kernels, kept in the user's cache directory: compiling happens once a machine."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gptcli import attention, cells, counters, integers, kernels, lanes, packing, products, tiles

DECODING = (kernels, attention, products, integers, tiles, counters, packing, cells, lanes)


def cache_directory(name: str, rooms: tuple[ModuleType, ...]) -> Path:
    """Where compiled kernels are kept: one folder for each version of their source, under the user's cache."""
    if "NUMBA_CACHE_DIR" in os.environ:
        base = Path(os.environ["NUMBA_CACHE_DIR"])
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    source = b"".join(Path(inspect.getfile(room)).read_bytes() for room in rooms)
    return base / "gptcli" / f"{name}-{hashlib.sha256(source).hexdigest()[:12]}"


@contextmanager
def _kept_in(directory: Path) -> Iterator[bool]:
    """Let what numba compiles be kept in ``directory``; whether that is possible."""
    import numba

    cached, before = _can_write(directory), numba.config.CACHE_DIR
    try:
        if cached:
            numba.config.CACHE_DIR = str(directory)
        yield cached
    finally:
        numba.config.CACHE_DIR = before


def _announce(kind: str, marker: Path | None, tell: Callable[[str], None]) -> None:
    if marker is None:
        tell(f"Compiling the CPU kernels for {kind} (10 to 30 s, each time: the cache directory cannot be written) …")
    elif not marker.exists():
        tell(f"Compiling the CPU kernels for {kind} on this machine, once (10 to 30 s) …")


def are_kept() -> bool:
    """Whether kernels that are compiled for decoding can be kept for the next time."""
    return _can_write(cache_directory("kernels", DECODING))


def training_passes(tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The passes of training_kernels.py by name, as C functions of one pointer."""
    import numba
    from numba import types

    from gptcli import dropout_bits, training_attention, training_kernels  # not needed where a model only speaks

    rooms = (training_kernels, training_attention, dropout_bits, products, integers, tiles, counters, cells, lanes)
    directory = cache_directory("training", rooms)
    with _kept_in(directory) as cached:
        marker = directory / "training.compiled" if cached else None
        _announce("training", marker, tell)
        compile_ = numba.cfunc(types.void(types.int64), cache=cached, error_model="numpy")
        functions = {name: compile_(getattr(training_kernels, name)) for name in training_kernels.PASSES}
    if marker is not None:
        marker.touch()
    return functions


# Bits of a weight -> the dtypes that kernels.py tells its kinds apart by; int16 is two int8, for products in integers.
DATA_TYPES: dict[int, Any] = {32: np.float32, 8: np.int16 if integers.AVAILABLE else np.int8, 4: np.uint8}
SCALE_TYPES: dict[int, Any] = {32: np.float32, 8: np.float32, 4: np.uint16}


class Kernels:
    """The compiled functions, from the user's cache where it has them.

    Args:
        tell: called with a line that says what takes a while.
    """

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        import numba

        directory = cache_directory("kernels", DECODING)
        with _kept_in(directory) as cached:
            self.run = numba.njit(kernels.run, nogil=True, cache=cached, error_model="numpy")
            self.pack = numba.njit(packing.pack, nogil=True, cache=cached)
            self.pack_pairs = numba.njit(packing.pack_pairs, nogil=True, cache=cached)
            self.quantize = numba.njit(packing.quantize, nogil=True, cache=cached, error_model="numpy")
        self.directory = directory if cached else None
        self._tell = tell

    def prepare(self, bits: int) -> None:
        """Compile `run` for weights of ``bits`` bits (32, 8 or 4), or fetch it from the cache."""
        data, scale = np.zeros(1, DATA_TYPES[bits]), np.zeros(1, SCALE_TYPES[bits])
        marker = None if self.directory is None else self.directory / f"{data.dtype}.compiled"
        _announce("float32" if bits == 32 else f"int{bits}", marker, self._tell)
        floats, work = np.zeros(1, np.float32), np.zeros(1, np.float32)
        table, control = np.zeros(cells.PROGRAM, np.int64), np.zeros(cells.COUNTERS, np.int64)  # a program of no steps
        self.run(data, scale, floats, work, table, control, 0)
        if marker is not None:
            marker.touch()


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
