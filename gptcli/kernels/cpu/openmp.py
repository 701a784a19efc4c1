"""Runs a compiled function on the threads of torch's OpenMP library.

An idle OpenMP thread spins before it sleeps. Threads of a second pool would share the cores with spinning threads and
lose up to half of their time.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_ENTRY = "GOMP_parallel"  # of GCC's libgomp and LLVM's libomp: function, argument, threads, flags


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
    """Call the C function at address ``function`` with the pointer ``argument`` on each of torch's threads, and wait.

    The function divides the work among the threads that call it; OpenMP may start fewer than asked for.
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
