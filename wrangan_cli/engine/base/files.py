"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from wrangan_kernels.caching import without_locks

from wrangan_cli.engine.base.errors import FileError


@contextlib.contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` if the block succeeds.

    On an exception the temporary file is removed and what stood at `path` stays.
    """
    with replaced_together([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replaced_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """`replaced_atomically` for files that belong together: one temporary path for each.

    They are renamed one right after the other, in the given order, when all are on the
    disk: a crash before leaves all the old ones, and only one in between (no system renames
    several files at once) the first ones new. The last one is the place to say what the
    others must be.
    """
    temporaries: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only the start of the name: it must not become too long where `path` itself is not.
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:20]}-", suffix=path.suffix)
            os.close(handle)
            temporaries.append(Path(name))
        yield temporaries
        # mkstemp makes files private; give them what the user's umask would.
        umask = os.umask(0)
        os.umask(umask)
        for temporary in temporaries:
            temporary.chmod(0o666 & ~umask)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def claim(path: Path) -> FileLock | None:
    """Take the lock on the file `path`, until it is released or the process ends.

    None: another process has it. Where the file system has no locks everybody gets it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        with without_locks():
            lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def is_special(path: Path) -> bool:
    """Whether a pipe, a socket or a device stands there: opening it may wait for its other end for ever."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_regular(path: Path) -> None:
    """FileError for what `is_special`."""
    if is_special(path):
        raise FileError(path, "no regular file (a pipe, a socket or a device)")


def check_can_be_made(folder: Path) -> None:
    """FileError if files cannot be written to `folder`, which is not made for it."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise FileError(folder, f"{os.strerror(errno.ENOTDIR)}: {there}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(folder, f"{os.strerror(errno.EACCES)}: {there}")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
