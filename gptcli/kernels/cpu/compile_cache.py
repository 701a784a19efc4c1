"""The compiled kernels, kept in the user's cache directory: each machine compiles them once."""

import hashlib
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.kernels.cpu import block_packing, decode_step, int16_matmul, memory_layout
from gptcli.kernels.cpu.cache_folders import cache_directory, can_write, prune
from gptcli.kernels.cpu.numba_support import target_features

_CONFIG = threading.Lock()  # numba's cache directory is a setting of the process, and threads may open models at once


@cache
def _machine() -> str:
    """8 hexadecimal digits: of the processor, the versions of Python, numba and llvmlite, and the sources' places.

    numba compiles again when one of them changes.
    """
    import llvmlite
    import numba
    from llvmlite import binding

    about = (
        numba.config.CPU_NAME or binding.get_host_cpu_name(),
        sorted(target_features()),
        platform.python_version(),
        numba.__version__,
        llvmlite.__version__,
        [(str(source), source.stat().st_mtime_ns) for source in sorted(Path(__file__).parent.glob("*.py"))],
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:8]


def _marker(directory: Path, what: str) -> Path:
    """The empty file whose presence means that ``what`` is compiled for this machine; its mtime is the last use."""
    return directory / f"{what}-{_machine()}.compiled"


@contextmanager
def _kept_in(directory: Path) -> Iterator[bool]:
    """Set numba's cache directory to ``directory``; yield whether it is writable."""
    import numba

    with _CONFIG:
        cached, before = can_write(directory), numba.config.CACHE_DIR
        try:
            if cached:
                numba.config.CACHE_DIR = str(directory)
            yield cached
        finally:
            numba.config.CACHE_DIR = before


def _announce(what: str, marker: Path | None, report: Callable[[str], None]) -> None:
    if marker is None:
        report(f"Compiling the CPU kernels for {what} (10 to 30 s, each time: the cache directory cannot be written) …")
    elif not marker.exists():
        announce(what, report)


def announce(what: str, report: Callable[[str], None]) -> None:
    """Report that the kernels ``what`` are compiled now, to be kept."""
    report(f"Compiling the CPU kernels for {what} on this machine, once (10 to 30 s) …")


def are_kept() -> bool:
    """Whether the cache directory is writable, so that later processes need not compile."""
    return can_write(cache_directory())


def is_kept(what: str) -> bool:
    """Whether the kernels ``what`` ("training", or a key of `BITS`) are in the cache."""
    return _marker(cache_directory(), _kind(what)).exists()


def compile_into_cache(what: str) -> None:
    """Compile the kernels ``what`` ("training", or a key of `BITS`) in this process, and keep them."""
    if what == "training":
        training_passes()
    else:
        kernels = Kernels()
        kernels.prepare_quantizing(BITS[what])
        kernels.prepare(BITS[what])  # at last, because its marker stands for all of them


def _kind(what: str) -> str:
    return what if what == "training" else np.dtype(DATA_TYPES[BITS[what]]).name


def training_passes(report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The kernels of train_passes.py by name, as C functions of one address."""
    import numba
    from numba import types

    from gptcli.kernels.cpu import train_passes  # not needed for generation

    directory = cache_directory()
    with _kept_in(directory) as cached:
        marker = _marker(directory, "training") if cached else None
        _announce("training", marker, report)
        compile_ = numba.cfunc(types.void(types.int64), cache=cached, error_model="numpy")
        functions = {name: compile_(getattr(train_passes, name)) for name in train_passes.PASSES}
    _mark(marker)
    return functions


def _mark(marker: Path | None) -> None:
    """Create the marker or set its mtime to now; prune the folders of other versions when it is new."""
    if marker is not None:
        is_new = not marker.exists()
        marker.touch()
        if is_new:
            prune(marker.parent)


BITS = {"float32": 32, "int8": 8, "int4": 4}
# Bits of a weight -> dtype of data, by which decode_step.py selects its functions. An int16 holds two int8 weights, a
# uint8 two and a uint32 eight int4 weights.
_IN_INTEGERS = int16_matmul.AVAILABLE
DATA_TYPES: dict[int, Any] = {
    32: np.float32, 8: np.int16 if _IN_INTEGERS else np.int8, 4: np.uint32 if _IN_INTEGERS else np.uint8,
}  # fmt: skip
SCALE_TYPES: dict[int, Any] = {32: np.float32, 8: np.float32, 4: np.uint16}


class Kernels:
    """The compiled functions of decoding, loaded from the user's cache where it has them.

    Args:
        report: called with a line before a compilation.
    """

    def __init__(self, report: Callable[[str], None] = lambda line: None) -> None:
        import numba

        directory = cache_directory()
        with _kept_in(directory) as cached:
            self.run = numba.njit(decode_step.run, nogil=True, cache=cached, error_model="numpy")
            self.pack = numba.njit(block_packing.pack, nogil=True, cache=cached)
            self.pack_pairs = numba.njit(block_packing.pack_pairs, nogil=True, cache=cached)
            self.pack_nibbles = numba.njit(block_packing.pack_nibbles, nogil=True, cache=cached)
            self.quantize = numba.njit(block_packing.quantize, nogil=True, cache=cached, error_model="numpy")
        self.directory = directory if cached else None
        self._report = report

    def prepare_quantizing(self, bits: int) -> None:
        """Compile `quantize` for weights of ``bits`` bits, or load it from the cache; float32 weights need none."""
        if bits < 32:
            floats, data, scale = np.zeros(1, np.float32), np.zeros(1, DATA_TYPES[bits]), np.zeros(1, SCALE_TYPES[bits])
            self.quantize(floats, 0, data, 0, scale, 0, 1, 0)  # no blocks

    def prepare(self, bits: int) -> None:
        """Compile `run` for weights of ``bits`` bits (32, 8 or 4), or load it from the cache."""
        data, scale = np.zeros(1, DATA_TYPES[bits]), np.zeros(1, SCALE_TYPES[bits])
        marker = None if self.directory is None else _marker(self.directory, f"{data.dtype}")
        _announce(next(what for what in BITS if BITS[what] == bits), marker, self._report)
        floats, work = np.zeros(1, np.float32), np.zeros(1, np.float32)
        table, control = (
            np.zeros(memory_layout.PROGRAM, np.int64),
            np.zeros(memory_layout.COUNTERS, np.int64),
        )  # a program of no steps
        self.run(data, scale, floats, work, table, control, 0)
        _mark(marker)
