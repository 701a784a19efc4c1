"""What the C library does with freed memory."""

import ctypes
import mmap
import sys

HUGE_PAGE = 2**21  # bytes


def reuse_freed_memory(expected: int = 0) -> bool:
    """Have the C library keep freed memory for the next tensor of its kind, for the rest of the process.

    By default glibc hands every large buffer back to the system, and the next step pays a page fault for each 4 KiB
    of it: a third of a small model's training step.

    Args:
        expected: bytes that will be needed. So much room is asked for on huge pages, where the system gives them to
            those who ask: a twentieth of a step goes into translating the addresses of small ones. Nothing of it is
            used before it is needed.

    Returns:
        True if freed memory will be kept.
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
    """Let the heap grow by ``size`` bytes, ask for huge pages there, and free it: it stays the heap's."""
    start = libc.malloc(size)
    if start and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        whole = (start + size - first) // HUGE_PAGE * HUGE_PAGE
        if whole > 0:
            libc.madvise(first, whole, mmap.MADV_HUGEPAGE)
    libc.free(start)
