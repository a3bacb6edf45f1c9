"""Freed memory stays with the process: page faults of a process that asks for the same blocks again."""

import os
import platform
import subprocess
import sys

import pytest

PAGES = 6 * (20 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
"""Of the blocks of one round."""
ROUNDS = 5
PROGRAM = f"""
import resource, sys, threading
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
keep_freed_memory()
count, megabytes, alone = map(int, sys.argv[1:])
def work():
    return [b"x" * (megabytes << 20) for _ in range(count)]
def rounds():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if alone:
    thread = threading.Thread(target=rounds)
    thread.start()
    thread.join()
else:
    rounds()
"""


def faults(count: int = 6, megabytes: int = 20, alone: bool = False, **settings: str) -> int:
    """Of some blocks of so many MiB; alone: asked for by another thread than the first."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, str(count), str(megabytes), str(int(alone))]
    told = subprocess.run(command, env=plain | settings, capture_output=True, text=True, check=True)
    return int(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which has no such setting")
def test_blocks_are_not_fetched_again() -> None:
    # Huge pages would be one fault each 2 MiB: none of them at all.
    assert faults() < PAGES / 100
    # Maps of 512 px have 64 MiB; images of a batch are computed by threads.
    assert faults(2, 64) < PAGES / 100
    assert faults(2, 64, alone=True) < PAGES / 100
    # Who sets the C library otherwise is left alone.
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > ROUNDS * PAGES / 600
