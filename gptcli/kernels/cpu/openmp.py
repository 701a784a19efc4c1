"""Runs a compiled function on the threads of torch's OpenMP library.

An idle OpenMP thread spins before it sleeps: threads of a second library would share their cores with it and lose up to
half of their time.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_ENTRY = "GOMP_parallel"  # GCC's entry, which LLVM's library has as well: function, argument, threads, flags


@cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*")):
        try:
            entry = getattr(ctypes.CDLL(str(path)), _ENTRY)
        except (OSError, AttributeError):
            continue
        entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        found: Callable[[int, int, int, int], None] = entry
        return found
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def run(function: int, argument: int) -> None:
    """Call the C function at an address (of one pointer) on as many threads as torch has; return when all have.

    The function divides the work among the threads that call it, and may get fewer than it could use.
    """
    threads, openmp = torch.get_num_threads(), _openmp()
    if openmp is not None:
        openmp(function, argument, threads, 0)
        return
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    helpers = [_pool(threads - 1).submit(call, argument) for _ in range(threads - 1)] if threads > 1 else []
    call(argument)
    for helper in helpers:
        helper.result()
