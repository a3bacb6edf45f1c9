"""The loop over codes that commands share: failures are reported, and the loop continues."""

from collections.abc import Callable, Iterable
from pathlib import Path

from wrangan_cli.commands.requested_edits import BadDirections
from wrangan_cli.commands.shell import Results
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError


class Targets:
    """The files written so far, so that no code replaces another code's file."""

    def __init__(self) -> None:
        self._written: dict[Path, Path] = {}

    def check(self, target: Path, code: Path) -> None:
        """FileError if the file already holds the edit of another code."""
        if target in self._written:
            raise FileError(code, f"not edited: {target} is already the edit of {self._written[target]}")

    def wrote(self, target: Path, code: Path) -> None:
        """Record that the file belongs to that code."""
        self._written[target] = code


def for_each_code(files: Iterable[Path | FileError], results: Results, work: Callable[[Path], None]) -> None:
    """Call `work` with each file; failures are reported, and the loop continues.

    Wrong usage, and a file of directions that fits no code, end the loop.
    """
    for path in files:
        if isinstance(path, FileError):
            results.failed(path)
            continue
        try:
            work(path)
        except (UsageError, BadDirections):
            raise
        except (WranganError, OSError) as error:
            results.failed(error, path)
