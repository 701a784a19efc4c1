"""Settings of glibc's malloc: whether freed memory returns to the system, and huge pages for the heap."""

import ctypes
import mmap
import sys

HUGE_PAGE = 2**21  # bytes


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
