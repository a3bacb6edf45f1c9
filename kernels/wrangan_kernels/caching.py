"""The cache of the whole suite, for data that can be made or fetched again; it is optional."""

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

ENVIRONMENT = "WRANGAN_CACHE"
"""Environment variable: a folder to use in place of the user's cache."""

NOWHERE = Path(os.devnull) / "wrangan"
"""Stands for a cache that is not accessible: nothing is found in it, and nothing can be created."""


def user_cache() -> Path:
    """$WRANGAN_CACHE, else `wrangan` in the system's place for caches: on Linux $XDG_CACHE_HOME or
    ~/.cache. Nothing is created. NOWHERE if there is no home directory (a user without an entry in
    /etc/passwd, and no HOME), or if it is not accessible."""
    folder = _named()
    return folder if folder is not None and _reachable(folder) else NOWHERE


def why_not_writable(folder: Path) -> str | None:
    """Why `folder` is not writable, and what to do; None if it is. Nothing is created."""
    cause = None
    if folder.is_relative_to(NOWHERE):
        named = _named()
        cause = "there is no home directory" if named is None else f"{named}: Permission denied"
    else:
        there = _nearest(folder)
        if not there.is_dir():
            cause = f"{folder} cannot be written: {there} is no folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            cause = f"{there} cannot be written"
    return cause and f"{cause}; {ENVIRONMENT} names another folder"


def folder_to_write(folder: Path) -> Path:
    """`folder`, a part of the cache; or if it is not writable, a temporary folder of this process, with a
    warning in the log `wrangan`, once.
    """
    cause = why_not_writable(folder)
    return folder if cause is None else _own_folder(cause)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """A block that only one process (or thread) at a time enters; the others wait.

    It uses a lock of the operating system on the file `path`, which is not removed; the lock ends with the
    process that holds it. On file systems without locks nobody waits, so the block must be harmless when run
    twice. OSError if `path` cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with without_locks():
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def without_locks() -> Iterator[None]:
    """Within this block a file system without locks is not an error."""
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise


@cache
def remark_without_cache(cause: str) -> None:
    """Warn once per process that nothing is cached."""
    logging.getLogger("wrangan").warning("no cache (%s): nothing is kept for the next time", cause)


_held: list[tempfile.TemporaryDirectory[str]] = []


def _own_folder(cause: str) -> Path:
    remark_without_cache(cause)
    if not _held:
        _held.append(tempfile.TemporaryDirectory(prefix="wrangan-", ignore_cleanup_errors=True))
    return Path(_held[0].name)


def _named() -> Path | None:
    if own := os.environ.get(ENVIRONMENT):
        with contextlib.suppress(RuntimeError):  # `~name` of an unknown user
            return Path(own).expanduser().absolute()
        return Path(own).absolute()
    # Without a home directory platformdirs raises, or (older versions) keeps the tilde, as a folder name.
    with contextlib.suppress(RuntimeError):
        folder = user_cache_path("wrangan", appauthor=False)
        return folder if folder.is_absolute() else None
    return None


def _reachable(folder: Path) -> bool:
    """Whether its content can be listed, or it can be seen not to exist."""
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return True
    except OSError:
        return False
    return not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK)


def _nearest(folder: Path) -> Path:
    """The first of `folder` and its parents that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
