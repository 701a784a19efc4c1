"""Threads for a compiled function: torch's own, so that no two teams fight over the cores.

An idle thread of OpenMP spins for a while in the hope of more work; beside another library's threads it would take half
of their time. torch's OpenMP library runs any function on its threads.
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

    It must share out its work by itself, and be content with fewer threads.
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
