"""What is found in folders and zips: one walk and one idea of an image for all commands."""

import io
import logging
import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data import image_kinds, image_reading
from wrangan_cli.engine.data.image_kinds import kind_of
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_sets import load_image_set
from wrangan_cli.engine.data.photo_files import find_images, images_in

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
AVIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(100)


def picture(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, kind, **options)
    return stream.getvalue()


def test_find_images(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("not an image")
    write_photo(photos / ".hidden.png")
    write_photo(photos / "below" / "d.png")
    odd = tmp_path / "photo.odd"
    odd.write_bytes((photos / "a.png").read_bytes())
    assert find_images([odd, photos, photos / "b.jpg"]) == [
        odd,
        photos / "a.png",
        photos / "b.jpg",
        photos / "c.webp",
    ]


def test_find_images_refuses_missing_paths_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty: no images in it"):
        find_images([tmp_path / "empty"])
    with pytest.raises(FileError, match="nowhere: no such file"):
        find_images([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO"]
)
def test_kinds_by_content(kind: str, tmp_path: Path) -> None:
    try:
        data = picture(kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert kind_of(data[: image_kinds.HEAD])
    (tmp_path / "photo.txt").write_bytes(data)
    assert find_images([tmp_path]) == [tmp_path / "photo.txt"]
    assert load_image(tmp_path / "photo.txt").shape == (3, 32, 32)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"P1 is a plan", b"BM is no bitmap header", b"%PDF-1.4", b"\x1f\x8b\x08", MP4]
)
def test_what_is_no_image(data: bytes, tmp_path: Path) -> None:
    assert kind_of(data) is None
    (tmp_path / "thing").write_bytes(data)
    assert images_in(tmp_path) == []


@pytest.mark.parametrize(("data", "kind"), [(HEIC, "HEIC"), (AVIF, "AVIF"), (JXL, "JPEG XL")])
def test_images_in_boxes(data: bytes, kind: str) -> None:
    assert kind_of(data[: image_kinds.HEAD]) == kind


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".mpo"])
def test_photographs_of_every_suffix(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(picture("JPEG"))
    assert find_images([tmp_path]) == [tmp_path / f"a{suffix}"]


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("a.heic", HEIC, r"\[heif\]"),
        ("a.jpg", HEIC, r"\[heif\]"),
        ("a", HEIC, r"\[heif\]"),
        ("a.jxl", JXL, "JPEG XL"),
        ("a.dng", b"II*\0" + bytes(60), "raw camera file"),
        ("a.jpg", b"<html>", "not an image of a known format"),
        ("a.heic", b"", "empty file"),
    ],
)
def test_images_that_cannot_be_read_are_named(
    name: str, data: bytes, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reading, "reads_heif", lambda: False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(data)
    write_photo(tmp_path / "data" / "b.png")
    assert set(find_images([tmp_path / "data"])) == {tmp_path / "data" / name, tmp_path / "data" / "b.png"}
    with pytest.raises(FileError, match=line):
        load_image(tmp_path / "data" / name)
    read = load_image_set([tmp_path / "data"], 16, tmp_path / "cache")
    assert (read.names, read.broken) == (["b.png"], [name])


def test_heic_by_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pillow-heif's function is called once, before the file is opened again."""
    calls: list[int] = []

    class Heic(ImageFile.ImageFile):
        format = "TESTHEIC"

        def _open(self) -> None:
            self._size, self._mode = (20, 20), "RGB"

        def load(self) -> None:
            self.im = Image.new("RGB", (20, 20), (255, 0, 0)).im

    def register() -> None:
        calls.append(1)
        Image.register_open("TESTHEIC", Heic, lambda head: kind_of(head + bytes(64)) == "HEIC")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    image_kinds.reads_heif.cache_clear()
    (tmp_path / "a.heic").write_bytes(HEIC)
    try:
        for _ in range(2):
            assert load_image(tmp_path / "a.heic")[:, 3, 3].tolist() == [1, -1, -1]
    finally:
        Image.OPEN.pop("TESTHEIC", None)
        if "TESTHEIC" in Image.ID:
            Image.ID.remove("TESTHEIC")
        image_kinds.reads_heif.cache_clear()
    assert calls == [1]


def test_of_two_of_a_name_the_readable_one_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    (tmp_path / "a.jpg").write_bytes(picture("JPEG"))
    assert find_images([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "a.heic"]


def hostile(folder: Path) -> Path:
    """One picture, and what stands beside such in the folders of other systems and of careless people."""
    write_photo(folder / "good.png")
    for hidden in ("._good.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/x.png", ".git/y.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"junk")
    (folder / "album.png").mkdir()
    (folder / "notes.txt").write_text("no image")
    (folder / "a.align.json").write_text("{}")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    for name in ("pipe.png", "control"):
        os.mkfifo(folder / name)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are POSIX's")
@pytest.mark.parametrize("deep", [False, True])
def test_a_hostile_folder(deep: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = hostile(tmp_path / "photos")
    with caplog.at_level(logging.WARNING, "wrangan"):
        found = images_in(folder, deep)
    assert [path.name for path in found] == ["good.png", "dead.png", "pipe.png", "round.png"]
    assert caplog.messages == [f"{folder}: 2 files that are not images skipped"]
    with pytest.raises(FileError, match="a broken symbolic link"):
        load_image(found[1])
    with pytest.raises(FileError, match="not a regular file"):
        load_image(found[2])
    with pytest.raises(FileError, match="symbolic links"):
        load_image(found[3])


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are POSIX's")
def test_a_hostile_folder_as_data(tmp_path: Path) -> None:
    read = load_image_set([hostile(tmp_path / "photos")], 16, tmp_path / "cache")
    assert (read.names, read.broken) == (["good.png"], ["dead.png", "pipe.png", "round.png"])
    assert len(read.causes) == 3
    assert "not a regular file" in read.causes[1]


@pytest.mark.skipif(os.name == "nt", reason="links are POSIX's")
def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    write_photo(tmp_path / "elsewhere" / "b.png")
    write_photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "back").symlink_to(tmp_path / "photos")
    assert images_in(tmp_path / "photos") == [tmp_path / "photos" / "a.png"]
    deep = images_in(tmp_path / "photos", deep=True)
    assert [path.name for path in deep] == ["a.png", "b.png"]
    # A folder that is itself given as a link is entered.
    (tmp_path / "given").symlink_to(tmp_path / "photos")
    assert [path.name for path in images_in(tmp_path / "given")] == ["a.png"]


def test_entries_of_a_zip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("set/a.png", picture("PNG"))
        archive.writestr("set/b", picture("JPEG"))
        archive.writestr("set/notes.txt", "no image")
        archive.writestr("set/album.png/", "")
        archive.writestr("__MACOSX/set/._a.png", b"junk")
        archive.writestr("set/.DS_Store", b"junk")
        archive.writestr("set/c.heic", HEIC)
    with caplog.at_level(logging.WARNING, "wrangan"):
        read = load_image_set([tmp_path / "data.zip"], 16, tmp_path / "cache")
    assert (read.names, read.broken) == (["set/a.png", "set/b"], ["set/c.heic"])
    assert any("1 file that is not an image skipped" in line for line in caplog.messages)
