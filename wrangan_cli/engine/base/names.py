"""When two file names denote the same file."""

import unicodedata
from pathlib import Path


def same_name(name: str) -> str:
    """The normal form of a name: `é` as one character (NFC) and as two (NFD, as on macOS) are the same."""
    return unicodedata.normalize("NFC", name)


def same_file_key(path: Path) -> Path:
    """A key that is equal for paths that may be the same file on some systems, whatever the Unicode form and
    the case of the name."""
    return path.with_name(same_name(same_name(path.name).casefold()))


def existing_form(path: Path) -> Path:
    """`path`, or an existing file whose name differs only in Unicode form."""
    if path.name.isascii() or path.exists():
        return path
    for form in ("NFC", "NFD"):
        other = path.with_name(unicodedata.normalize(form, path.name))
        if other.exists():
            return other
    return path
