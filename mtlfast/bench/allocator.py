"""Whether memory that is freed stays with the process."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed for what is asked for next.

    By default it gives large blocks back to the system, which clears every page of theirs when
    they are asked for again. On a CPU that was a fifth of a plain training step, and scattered
    more than the rest of it. Caching allocators, and torch's own on a GPU, keep them.

    Returns:
        Whether there was such a malloc to tell.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    return bool(tell(M_MMAP_MAX, 0) and tell(M_TRIM_THRESHOLD, -1))
