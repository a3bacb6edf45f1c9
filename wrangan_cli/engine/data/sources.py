"""Sources of training images: folders, zips, and LMDB in rosinality's format.

A source lists its images by name and hands out the bytes of each file, undecoded.
"""

import contextlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from wrangan_cli.engine.base.errors import FileError, WranganError, cause_of
from wrangan_cli.engine.base.files import check_regular
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.image_kinds import HEAD
from wrangan_cli.engine.data.photo_files import images_in, zipped_images

LMDB_FILE = "data.mdb"
_LMDB_MAGIC = b"\xde\xc0\xef\xbe"
"""At byte 16 of an LMDB file (0xBEEFC0DE; LMDB's MDB_meta behind its page header)."""

UNREADABLE = (WranganError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of reading a broken image (RuntimeError: encrypted, or unknown compression)."""

Read = Callable[[int], bytes]
"""Index of an image → its file's bytes; may be called from several threads."""


class Source(Protocol):
    """The images of one folder, archive or database."""

    path: Path
    names: list[str]
    """Names of the images in the source, in order."""

    def opened(self) -> contextlib.AbstractContextManager[Read]:
        """Open for reading. Reading a broken image raises one of UNREADABLE."""

    def stamps(self) -> Iterator[str]:
        """Values that change when the contents do: paths, sizes, times."""


def find_source(path: Path, resolution: int) -> Source:
    """The source at `path`, for images of `resolution` px.

    Raises FileError for a path that is missing, is none of the three kinds, or is damaged.
    """
    if is_lmdb(path):
        return LmdbSource(path, resolution)
    if path.is_dir():
        return FolderSource(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipSource(path)
    if not path.exists():
        raise FileError(path, "no such file or folder")
    raise FileError(path, "neither a folder nor a zip of images, nor an LMDB")


def is_lmdb(path: Path) -> bool:
    """Whether `path` is an LMDB: a folder with data.mdb, or such a file."""
    if path.is_dir():
        return (path / LMDB_FILE).is_file()
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return stream.read(20)[16:] == _LMDB_MAGIC


class FolderSource:
    """Every image file below a folder (`images_in`, deep), sorted by path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = images_in(path, deep=True)
        self.names = [file.name for file in self._files]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Read]:
        """Read from the files."""

        def read(index: int) -> bytes:
            check_regular(self._files[index])
            return self._files[index].read_bytes()

        yield read

    def stamps(self) -> Iterator[str]:
        """The stamp of every file, since the folder's time does not reflect pictures changed in place."""
        return map(_stamp, self._files)


class ZipSource:
    """Every image of a zip (`zipped_images`), sorted by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                _check_count(path, len(archive.infolist()))
                self.names = zipped_images(path, archive.namelist(), lambda name: _head(archive, name))
        except (zipfile.BadZipFile, OSError) as error:
            raise FileError(path, f"a damaged zip ({cause_of(error)})") from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[Read]:
        """Read from the archive."""
        with zipfile.ZipFile(self.path) as archive:
            yield lambda index: archive.read(self.names[index])

    def stamps(self) -> Iterator[str]:
        """Of the archive."""
        yield _stamp(self.path)


def _check_count(path: Path, listed: int) -> None:
    """FileError if a zip's directory lists fewer or more entries than its end record says.

    zipfile does not check this: a damaged length in the directory hides the entries after it.
    """
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        # The end record is 22 bytes and a comment of 65,535 at most.
        stream.seek(max(0, size - 22 - 0xFFFF))
        tail = stream.read()
    at = tail.rfind(b"PK\5\6")
    said = int.from_bytes(tail[at + 10 : at + 12], "little")
    # All ones: the number is in a zip64 record. Some writers store it modulo 2¹⁶.
    if at >= 0 and said not in (0xFFFF, listed & 0xFFFF):
        raise FileError(path, f"a damaged zip (its directory lists {listed} entries, its end says {said})")


def _head(archive: zipfile.ZipFile, name: str) -> bytes:
    """The first bytes of an entry; empty if it cannot be read."""
    with contextlib.suppress(*UNREADABLE), archive.open(name) as stream:
        return stream.read(HEAD)
    return b""


class LmdbSource:
    """An LMDB as rosinality/stylegan2-pytorch writes it (`prepare_data.py`).

    Keys `{resolution}-{index:05d}` hold one encoded image each, the key `length` their number
    as decimal digits. Of several resolutions the requested one is used, else the next larger
    one, else the largest. Opened read-only and without LMDB's lock file.

    Raises FileError for a damaged file and one in another format, WranganError without
    package lmdb.
    """

    def __init__(self, path: Path, resolution: int) -> None:
        self.path = path
        with self._environment() as environment, environment.begin() as transaction:
            length = transaction.get(b"length")
            sides = _stored_sides(transaction)
            entries = environment.stat()["entries"]
        if length is None or not sides:
            missing = "no key length" if length is None else "no keys such as 256-00000"
            raise FileError(path, f"{missing}: not an LMDB in rosinality's format, or not finished")
        digits = bytes(length)
        count = int(digits) if digits.isdigit() else -1
        if not 0 <= count <= entries:
            raise FileError(path, f"its key length says {digits!r}, and there are {entries} entries")
        self.side = min((side for side in sides if side >= resolution), default=max(sides))
        """The stored resolution that is read, in px."""
        self.names = [f"{self.side}-{index:05d}" for index in range(count)]

    @contextlib.contextmanager
    def opened(self) -> Iterator[Read]:
        """Read from the database."""
        with self._environment() as environment:

            def read(index: int) -> bytes:
                with environment.begin() as transaction:
                    value = transaction.get(self.names[index].encode())
                if value is None:
                    raise FileError(self.path, f"no key {self.names[index]}")
                return bytes(value)

            yield read

    def stamps(self) -> Iterator[str]:
        """Of the data file, and which resolution is read."""
        yield f"{_stamp(self._file())}:{self.side}"

    def _file(self) -> Path:
        return self.path / LMDB_FILE if self.path.is_dir() else self.path

    @contextlib.contextmanager
    def _environment(self) -> Iterator[Any]:
        try:
            import lmdb
        except ImportError as error:
            raise WranganError(
                f"{self.path}: package lmdb is not installed; {install_line('train')}"
            ) from error
        try:
            environment = lmdb.open(
                str(self.path),
                subdir=self.path.is_dir(),
                readonly=True,
                lock=False,
                readahead=False,
                create=False,
            )
        except lmdb.Error as error:
            raise FileError(self.path, f"not readable as LMDB ({cause_of(error)})") from error
        with environment:
            # LMDB maps the file without checks: a page beyond its end would kill the process.
            pages, size = environment.info()["last_pgno"] + 1, self._file().stat().st_size
            if pages * environment.stat()["psize"] > size:
                raise FileError(self.path, "a truncated LMDB")
            try:
                yield environment
            except lmdb.Error as error:
                raise FileError(self.path, f"a damaged LMDB ({cause_of(error)})") from error


def _stored_sides(transaction: Any) -> list[int]:
    """The resolutions among the keys, found by jumping from one to the next without reading images."""
    sides: list[int] = []
    cursor = transaction.cursor()
    there = cursor.first()
    while there:
        key = bytes(cursor.key())
        side, dash, index = key.partition(b"-")
        if dash and side.isdigit() and index.isdigit():
            sides.append(int(side))
            there = cursor.set_range(side + b".")  # after every `side-…`, since "." follows "-"
        else:
            there = cursor.next()
    return sides


def _stamp(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:  # a broken symbolic link
        return f"{file.absolute()}:dead"
    return f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
