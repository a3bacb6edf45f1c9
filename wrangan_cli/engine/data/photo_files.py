"""The image files in folders and zips: one walk, and one definition of an image, for all commands."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from wrangan_cli.engine.base.distributed import is_main
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import is_special
from wrangan_cli.engine.base.names import same_name
from wrangan_cli.engine.data.image_kinds import HEAD, RAW_SUFFIXES, kind_of

logger = logging.getLogger("wrangan")

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".tif", ".tiff"}
    | {".gif", ".ppm", ".pgm", ".avif", ".jp2", ".j2k"}
)
"""Suffixes of files that count as images unseen; other files are images by their content."""

UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".jxl", *RAW_SUFFIXES})
"""Suffixes of images that are reported if they cannot be read."""

_NO_IMAGES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_OWN_ENDS = (".align.json",)
"""Endings of files that this suite writes beside images: not counted among skipped files."""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The image files named by `paths`, each once: files as they are, folders as their images.

    Folders: `images_in`, not recursive. Raises FileError for a path that does not exist and a
    folder without images.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = images_in(path)
            if not inside:
                raise FileError(path, "no images in it")
            found.update(dict.fromkeys(inside))
        elif path.exists() or path.is_symlink():
            found[path] = None
        else:
            raise FileError(path, "no such file or folder")
    return list(found)


def images_by_stem(path: Path) -> dict[str, list[Path]]:
    """The images in a folder, or a single file, by the stem of their names in one Unicode form (`same_name`).

    Raises FileError as `find_images` does.
    """
    found: dict[str, list[Path]] = {}
    for image in find_images([path]):
        found.setdefault(same_name(image.stem), []).append(image)
    return found


def images_in(folder: Path, deep: bool = False) -> list[Path]:
    """The images in a folder, sorted by path; `deep`: also in all folders below.

    Hidden files (`.x`, `__MACOSX`, `Thumbs.db`) are ignored. A file is an image by its
    suffix (IMAGE_SUFFIXES) or else by its first bytes. Links are followed, and each
    folder is entered once. Files that look like images but cannot be read (a broken or circular link,
    a pipe, HEIC without the extra `heif`, a folder that may not be entered) are included, so that opening
    them reports the error; they come last, so that a readable file of the same name takes precedence.
    Other files are skipped; the log `wrangan` says how many.
    """
    images: list[Path] = []
    unread: list[Path] = []
    passed = 0
    for path in _entries(folder, deep):
        if path.is_file():
            kind = _kind(path)
            (images if kind == "image" else unread if kind else []).append(path)
            passed += kind is None and not path.name.endswith(_OWN_ENDS)
        elif is_special(path) and path.suffix.lower() not in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
            passed += 1
        else:
            unread.append(path)
    _say_passed(folder, passed)
    return sorted(images) + sorted(unread)


def zipped_images(path: Path, names: Iterable[str], head: Callable[[str], bytes]) -> list[str]:
    """`images_in` of a zip at `path` with the entries `names`. head: the first bytes of an entry."""
    images: list[str] = []
    passed = 0
    for name in names:
        if name.endswith("/") or any(map(_is_hidden, PurePath(name).parts)):
            continue
        suffix = PurePath(name).suffix.lower()
        if suffix in IMAGE_SUFFIXES | UNREAD_SUFFIXES or kind_of(head(name)):
            images.append(name)
        else:
            passed += not name.endswith(_OWN_ENDS)
    _say_passed(path, passed)
    return sorted(images)


def _entries(folder: Path, deep: bool) -> Iterator[Path]:
    """Files, and entries that cannot be inspected or entered; with `deep` also in the folders below."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            about = here.stat()
            # A link may lead back here, and old Windows file systems have no file numbers.
            if about.st_ino and (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            inside = sorted(here.iterdir())
        except OSError:
            if here == folder:
                raise
            yield here
            continue
        for path in inside:
            if _is_hidden(path.name):
                continue
            try:
                below = path.is_dir()
            except OSError:  # a circular or inaccessible link
                below = False
            if below:
                waiting += [path] if deep else []
            else:
                yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _NO_IMAGES


def _kind(path: Path) -> str | None:
    """`image`, `unread` for formats known to be unreadable, or None."""
    suffix = path.suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        return "unread"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    try:
        with open(path, "rb") as stream:
            kind = kind_of(stream.read(HEAD))
    except OSError:
        return "unread"
    return None if kind is None else "unread" if kind in ("HEIC", "JPEG XL", "RAW") else "image"


def _say_passed(path: Path, count: int) -> None:
    if count and is_main():
        files = "1 file that is not an image" if count == 1 else f"{count} files that are not images"
        logger.warning("%s: %s skipped", path, files)
