"""Errors that a user can act on. Everything else is a bug and may show a traceback."""

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class WranganError(Exception):
    """One clear line about what is wrong; the command ends with exit code 1."""


class UsageError(WranganError):
    """The command line itself is wrong (unknown name, bad value): exit code 2."""


class FileError(WranganError):
    """A file cannot be used: `<path>: <cause>`."""

    def __init__(self, path: Path | str, cause: str) -> None:
        super().__init__(f"{escaped(path)}: {cause}")
        self.path = Path(path)
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[Path | str, str]]:
        # Unpickling would otherwise call the class with the message, which is not its argument.
        return type(self), (self.path, self.cause)


_LONGEST = 200
"""Maximum number of characters kept of a library's message."""


def escaped(text: object) -> str:
    """A path, or text with one, in one line, with line ends and control characters escaped (`\\n`)."""
    return "".join(c.encode("unicode_escape").decode() if _CONTROL.match(c) else c for c in str(text))


def cause_of(error: BaseException) -> str:
    """The message of an error, in one line, without a file name that the error stores separately.

    A library's message may contain bytes of a broken file, or advice to programmers: only the first 200
    characters of its first line are kept, and unprintable ones are escaped.
    """
    if isinstance(error, FileError):
        return error.cause
    said = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    line = escaped((said or type(error).__name__).splitlines()[0])
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def expected_one_of(name: str, known: Iterable[str]) -> str:
    """`did you mean steps?` for a name close to a known one, otherwise all known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"


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
"""Advice for less memory, by option; the last two only for commands without any of the others."""


def out_of_memory_line(error: BaseException, options: Collection[str]) -> str:
    """The message about an out-of-memory error, with those of the command's `options` that help."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ [A-Za-z]+)", str(error))
    amount = f" (tried to allocate another {wanted[1]})" if wanted else ""
    less = [advice for option, advice in _LESS.items() if option in options]
    if len(less) > 1:
        less = [advice for advice in less if not advice.startswith("fewer")] or less
    return f"out of memory{amount}" + (f": give {' or '.join(less)}" if less else "")
