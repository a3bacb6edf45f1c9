"""Make the C library keep freed memory."""

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX of glibc's malloc.h."""
_LARGE = 256 << 20
"""Size in bytes from which blocks are returned to the system nevertheless, since these make the peaks."""


def keep_freed_memory() -> None:
    """Keep freed memory for later blocks of this process, if the C library allows it (glibc).

    Every step allocates the same blocks again. If they are returned to the system in between, writing to them
    costs a page fault per 4 KiB (docs/benchmarks.md). Settings in the environment (MALLOC_…, GLIBC_TUNABLES)
    take precedence.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    # Other C libraries have no such function.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        # The arenas of other threads cannot hold blocks of 64 MiB, and would use the system each time.
        mallopt(_ARENA_MAX, 1)
