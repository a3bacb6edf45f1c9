"""Files that are written completely or not at all."""

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

    On an exception the temporary file is removed and the file at `path` is unchanged.
    """
    with replaced_together([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replaced_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """`replaced_atomically` for files that belong together: one temporary path for each.

    They are renamed one right after the other, in the given order, when all are on the
    disk. A crash before that leaves all old files; a crash between two renames (no system renames
    several files at once) leaves some new and some old ones. So the last file should record
    what the others must be.
    """
    temporaries: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only the start of the name, which must not become too long.
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:20]}-", suffix=path.suffix)
            os.close(handle)
            temporaries.append(Path(name))
        yield temporaries
        # mkstemp makes files private; set the permissions of the user's umask.
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


def try_lock(path: Path) -> FileLock | None:
    """Lock the file `path` until the lock is released or the process ends.

    None: another process holds the lock. On file systems without locks it is always granted.
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
    """Whether the path is a pipe, a socket or a device, which may block forever when opened."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_regular(path: Path) -> None:
    """FileError for what `is_special`."""
    if is_special(path):
        raise FileError(path, "not a regular file (a pipe, a socket or a device)")


def check_can_be_made(folder: Path) -> None:
    """FileError if files cannot be written to `folder`; does not create it."""
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
