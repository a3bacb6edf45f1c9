"""What the C library does with memory that is freed."""

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Names of glibc's malloc.h."""
_LARGE = 256 << 20
"""Bytes of a block from which it goes back to the system nevertheless: peaks are made of these."""


def keep_freed_memory() -> None:
    """Keep it for the next block of that size, in this process, where that can be said (glibc).

    Every step asks for the same blocks again. If they go back to the system in between, writing to them costs
    a page fault each 4 KiB (docs/benchmarks.md). The environment's own settings (MALLOC_…, GLIBC_TUNABLES)
    are left alone.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    # Another C library has no such function.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        # Another thread's own arena cannot hold blocks of 64 MiB, and asks the system each time.
        mallopt(_ARENA_MAX, 1)
