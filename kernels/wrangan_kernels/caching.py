"""Where the whole suite keeps what it can make or get again; it goes on without where that cannot be."""

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
"""Environment variable: a folder in place of the user's cache."""

NOWHERE = Path(os.devnull) / "wrangan"
"""In place of a cache that cannot be reached: nothing is found in it, and nothing can be made."""


def user_cache() -> Path:
    """$WRANGAN_CACHE, else `wrangan` where the system keeps caches: on Linux in $XDG_CACHE_HOME or
    ~/.cache. Nothing is made. NOWHERE where there is no home directory (a user without a line in
    /etc/passwd, and no HOME), or no way into it."""
    folder = _named()
    return folder if folder is not None and _reachable(folder) else NOWHERE


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be kept in `folder`, and what to do; None where it can. Nothing is made."""
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
    """`folder`, a part of the cache, or in its place one of this process alone, which goes with it.

    The log `wrangan` says so, once.
    """
    cause = why_not_writable(folder)
    return folder if cause is None else _own_folder(cause)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Only one process (or thread) at a time is in this block; the others wait.

    The lock is the operating system's, on the file `path`, which stays, and goes with the process that holds
    it. Where the file system has no locks nobody waits: what is done in the block must then be harmless when
    done twice. OSError where `path` cannot be made.
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
    """In this block it is no error that the file system has no locks."""
    try:
        yield
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise


@cache
def remark_without_cache(cause: str) -> None:
    """Said once in a process: nothing is kept."""
    logging.getLogger("wrangan").warning("no cache (%s): nothing is kept for the next time", cause)


_held: list[tempfile.TemporaryDirectory[str]] = []


def _own_folder(cause: str) -> Path:
    remark_without_cache(cause)
    if not _held:
        _held.append(tempfile.TemporaryDirectory(prefix="wrangan-", ignore_cleanup_errors=True))
    return Path(_held[0].name)


def _named() -> Path | None:
    if own := os.environ.get(ENVIRONMENT):
        with contextlib.suppress(RuntimeError):  # `~name` of nobody
            return Path(own).expanduser().absolute()
        return Path(own).absolute()
    # Without a home directory platformdirs raises, or (older) leaves the tilde, which would become a folder.
    with contextlib.suppress(RuntimeError):
        folder = user_cache_path("wrangan", appauthor=False)
        return folder if folder.is_absolute() else None
    return None


def _reachable(folder: Path) -> bool:
    """Whether what is in it can be seen, or it is not there and one can see that."""
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
    """The first of `folder` and its parents that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
