"""Whether an error means that memory has run out; and settings of glibc's malloc: freed memory, huge pages."""

import ctypes
import mmap
import sys

HUGE_PAGE = 2**21  # bytes
# What CUDA's, ROCm's, Apple's and the CPU's allocators say.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "OutOfMemoryError", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> str | None:
    """The line that says so if ``error``, or an error that it came from, means that memory has run out; else None.

    torch's compiler wraps what the allocator raises in errors of its own, often as text alone. Does not import torch.
    """
    seen: list[BaseException] = []
    next_one: BaseException | None = error
    while next_one is not None and next_one not in seen:
        seen.append(next_one)
        lines = str(next_one).splitlines()
        told = next((line.strip() for line in lines if any(mark in line for mark in _OUT_OF_MEMORY)), None)
        if told is not None or isinstance(next_one, MemoryError) or type(next_one).__name__ == "OutOfMemoryError":
            return told or (lines[0] if lines else "out of memory")
        next_one = getattr(next_one, "inner_exception", None) or next_one.__cause__ or next_one.__context__
    return None


def reuse_freed_memory(expected: int = 0) -> bool:
    """Have glibc keep freed memory in its heap for later tensors, for the rest of the process.

    By default glibc returns every large freed buffer to the system, and the next step has a page fault for each 4 KiB
    of it: a third of a small model's training step. M_MMAP_MAX = 0 and M_TRIM_THRESHOLD = -1 turn this off.

    Args:
        expected: bytes that the process will need. The heap grows by this size on 2 MiB pages, if madvise can get them:
            address translation of 4 KiB pages takes a twentieth of a step. A page takes memory on first access only.

    Returns:
        True if glibc will keep freed memory.
    """
    libc = _glibc()
    if libc is None:
        return False
    m_trim_threshold, m_mmap_max = -1, -4
    kept = bool(libc.mallopt(m_mmap_max, 0)) and bool(libc.mallopt(m_trim_threshold, -1))
    if kept and expected:
        _ask_for_huge_pages(libc, expected)
    return kept


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return libc if hasattr(libc, "mallopt") else None
    except (OSError, AttributeError):  # another C library, such as musl
        return None


def _ask_for_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Allocate ``size`` bytes, madvise huge pages for them, and free them: they stay in the heap."""
    start = libc.malloc(size)
    if start and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        whole = (start + size - first) // HUGE_PAGE * HUGE_PAGE
        if whole > 0:
            libc.madvise(first, whole, mmap.MADV_HUGEPAGE)
    libc.free(start)
