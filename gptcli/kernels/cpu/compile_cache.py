"""The compiled kernels, kept in the user's cache directory: each machine compiles them once."""

import contextlib
import hashlib
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptcli.kernels.cpu import object_code
from gptcli.kernels.cpu.cache_folders import cache_directory, can_write, prune
from gptcli.kernels.cpu.object_code import Kernel
from gptcli.kernels.cpu.target import INTEGER_PRODUCTS, target

_CONFIG = threading.Lock()  # numba's cache directory is a setting of the process, and threads may open models at once


@cache
def _machine() -> str:
    """8 hexadecimal digits: of the processor, the versions of Python, numba and llvmlite, and the sources' places.

    Kernels are compiled again when one of them changes. numba is not imported to find out.
    """
    name, features = target()
    about = (
        name,
        sorted(features),
        platform.python_version(),
        *map(_version, ("numba", "llvmlite")),
        [(str(source), source.stat().st_mtime_ns) for source in sorted(Path(__file__).parent.glob("*.py"))],
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:8]


def _version(package: str) -> str:
    """The version of an installed package, without importing it; of one that is only in a folder, with."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(import_module(package).__version__)


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
        decoding_kernels(BITS[what])


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
DATA_TYPES: dict[int, Any] = {
    32: np.float32, 8: np.int16 if INTEGER_PRODUCTS else np.int8, 4: np.uint32 if INTEGER_PRODUCTS else np.uint8,
}  # fmt: skip
SCALE_TYPES: dict[int, Any] = {32: np.float32, 8: np.float32, 4: np.uint16}


# The functions of entry_points.py for each dtype of data, `run` last: its marker stands for all of them.
_FUNCTIONS = {
    "float32": ("run",), "int8": ("quantize", "run"), "uint8": ("quantize", "run"),
    "int16": ("pack", "quantize", "run"), "uint32": ("pack", "quantize", "run"),
}  # fmt: skip


class DecodingKernels(NamedTuple):
    """The functions of entry_points.py for one kind of weights; None where such weights need none."""

    run: Kernel
    quantize: Kernel | None = None
    pack: Kernel | None = None


def decoding_kernels(bits: int, report: Callable[[str], None] = lambda line: None) -> DecodingKernels:
    """The kernels for weights of ``bits`` bits (32, 8 or 4), from the cache or compiled.

    Args:
        bits: of a weight.
        report: called with a line before a compilation.
    """
    return _decoding_kernels(np.dtype(DATA_TYPES[bits]), np.dtype(SCALE_TYPES[bits]), cache_directory(), report)


def _decoding_kernels(
    data: "np.dtype[Any]", scale: "np.dtype[Any]", directory: Path, report: Callable[[str], None]
) -> DecodingKernels:
    key = directory, data.name
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(directory, data.name) or _compile(directory, data, scale, report)
        return _LOADED[key]


_LOADING = threading.Lock()
_LOADED: dict[tuple[Path, str], DecodingKernels] = {}


def _file(directory: Path, kind: str, function: str) -> Path:
    return directory / f"{kind}-{function}-{_machine()}.kernel"


def _load(directory: Path, kind: str) -> DecodingKernels | None:
    """The kernels for a dtype of data from the cache; None if they are not there, or cannot be loaded."""
    marker = _marker(directory, kind)
    if not marker.exists():
        return None
    try:
        found = {name: object_code.load(_file(directory, kind, name)) for name in _FUNCTIONS[kind]}
    except (OSError, RuntimeError, ValueError):  # a file is gone or damaged
        return None
    with contextlib.suppress(OSError):
        _mark(marker)
    return DecodingKernels(**found)


def _compile(
    directory: Path, data: "np.dtype[Any]", scale: "np.dtype[Any]", report: Callable[[str], None]
) -> DecodingKernels:
    """Compile the kernels for a dtype of data, and keep them where the cache can be written."""
    import numba
    from numba import types

    from gptcli.kernels.cpu import entry_points

    marker = _marker(directory, data.name) if can_write(directory) else None
    what = next(what for what in BITS if np.dtype(DATA_TYPES[BITS[what]]) == data)
    _announce(what, marker, report)
    compile_ = numba.cfunc(types.void(types.int64), error_model="numpy")
    made: dict[str, Kernel] = {}
    for name in _FUNCTIONS[data.name]:
        compiled = compile_(getattr(entry_points, name)(data.type, scale.type))
        made[name] = object_code.of_compiled(compiled)
        if marker is not None:
            object_code.save(_file(directory, data.name, name), compiled)
    _mark(marker)
    return DecodingKernels(**made)
