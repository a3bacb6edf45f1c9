"""Errors that a user can act on. Everything else is a bug and may show a traceback."""

from pathlib import Path


class WranganError(Exception):
    """One clear line about what is wrong; the command ends with exit code 1."""


class UsageError(WranganError):
    """The command line itself is wrong (unknown name, bad value): exit code 2."""


class FileError(WranganError):
    """A file cannot be used: `<path>: <cause>`."""

    def __init__(self, path: Path | str, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = Path(path)
        self.cause = cause
