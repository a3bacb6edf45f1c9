"""Errors that a user can act on. Everything else is a bug and may show a traceback."""

import re
from collections.abc import Collection
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class WranganError(Exception):
    """One clear line about what is wrong; the command ends with exit code 1."""


class UsageError(WranganError):
    """The command line itself is wrong (unknown name, bad value): exit code 2."""


class FileError(WranganError):
    """A file cannot be used: `<path>: <cause>`."""

    def __init__(self, path: Path | str, cause: str) -> None:
        super().__init__(f"{shown(path)}: {cause}")
        self.path = Path(path)
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[Path | str, str]]:
        # An exception is otherwise made again from its one line, which is not how this one is made.
        return type(self), (self.path, self.cause)


_LONGEST = 200
"""Characters of what a library says that are passed on."""


def shown(text: object) -> str:
    """A path, or what holds one, in one line: line ends and terminal commands in it are escaped (`\\n`)."""
    return "".join(c.encode("unicode_escape").decode() if _CONTROL.match(c) else c for c in str(text))


def cause_of(error: BaseException) -> str:
    """What an error says, in one line and without the name of the file where it has one apart.

    What a library says may hold bytes of a broken file, or advice to programmers: of its first line the
    first 200 characters are kept, and what cannot be printed is escaped.
    """
    if isinstance(error, FileError):
        return error.cause
    said = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    line = shown((said or type(error).__name__).splitlines()[0])
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


_NO_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|not enough memory|_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, torch's CPU allocator or a GPU ran out of memory."""
    # By name: this module does not need torch for the rest.
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return (
        named
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
    )


_LESS = {
    "--batch": "a smaller --batch",
    "--accumulate": "a higher --accumulate",
    "--loss-side": "a smaller --loss-side",
    "--size": "a smaller --size",
    "--seeds": "fewer --seeds",
    "--steps": "fewer --steps",
}
"""What asks for less memory, by option; the last two where nothing before them is there."""


def out_of_memory_line(error: BaseException, options: Collection[str]) -> str:
    """What to say of it, and which of the command's `options` help."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ [A-Za-z]+)", str(error))
    amount = f" (tried to get another {wanted[1]})" if wanted else ""
    less = [advice for option, advice in _LESS.items() if option in options]
    if len(less) > 1:
        less = [advice for advice in less if not advice.startswith("fewer")] or less
    return f"out of memory{amount}" + (f": give {' or '.join(less)}" if less else "")
