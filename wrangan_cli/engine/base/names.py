"""Names of files: when two are one."""

import unicodedata
from pathlib import Path


def same_name(name: str) -> str:
    """One form of a name: `é` as one character (NFC) and as two (NFD, as macOS wrote it) are the same."""
    return unicodedata.normalize("NFC", name)


def one_file(path: Path) -> Path:
    """A key under which paths meet that are one file on some system: without Unicode form and case."""
    return path.with_name(same_name(same_name(path.name).casefold()))


def existing_form(path: Path) -> Path:
    """`path`, or the file beside it whose name differs in its Unicode form only."""
    if path.name.isascii() or path.exists():
        return path
    for form in ("NFC", "NFD"):
        other = path.with_name(unicodedata.normalize(form, path.name))
        if other.exists():
            return other
    return path
