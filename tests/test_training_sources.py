"""Training images from LMDB, by several filters, in several threads and processes."""

import io
import os
import re
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data import image_sets as data
from wrangan_cli.engine.data.image_sets import ImageSet, load_image_set
from wrangan_cli.engine.data.sources import find_source, is_lmdb

lmdb = pytest.importorskip("lmdb")


def noise(side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_lmdb(path: Path, sides: tuple[int, ...] = (32, 64), count: int = 3, subdir: bool = True) -> Path:
    """As rosinality's prepare_data.py: `{side}-{index:05d}`, `length`; image i of side s is noise(s, i)."""
    values = {f"{s}-{str(i).zfill(5)}".encode(): encoded(noise(s, i)) for s in sides for i in range(count)}
    with (
        lmdb.open(str(path), subdir=subdir, map_size=2**24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in {**values, b"length": str(count).encode()}.items():
            transaction.put(key, value)
    return path


def change(path: Path, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def mean_of_blocks(pixels: np.ndarray, side: int) -> np.ndarray:
    factor = pixels.shape[0] // side
    return pixels.astype(np.float64).reshape(side, factor, side, factor, 3).mean(axis=(1, 3))


def load(path: Path, resolution: int, **options: object) -> ImageSet:
    return load_image_set([path], resolution, path.parent / "cache", **options)  # type: ignore[arg-type]


def test_the_wanted_resolution_is_taken_as_it_is(tmp_path: Path) -> None:
    images = load(write_lmdb(tmp_path / "db", (32, 64), count=12), 32)
    assert images.names == [f"32-{i:05d}" for i in range(12)]
    for index in range(12):
        np.testing.assert_array_equal(images.pixels[index], noise(32, index))
    assert images.summary() == "12 images of 32 px (box filter)"


def test_else_the_next_larger_one_is_reduced(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db", (8, 32, 64))
    images = load(path, 16)
    assert images.names[0] == "32-00000"
    assert np.abs(images.pixels[0] - mean_of_blocks(noise(32, 0), 16)).max() <= 1
    assert images.enlarged == 0


def test_enlarging_is_said(tmp_path: Path) -> None:
    images = load(write_lmdb(tmp_path / "db", (32, 64)), 128)
    assert images.names[0] == "64-00000"
    assert images.summary() == "3 images of 128 px (box filter), 3 smaller ones enlarged"
    # The cache knows it too.
    assert load(tmp_path / "db", 128).enlarged == 3


def test_one_file_without_a_folder_and_nothing_is_written(tmp_path: Path) -> None:
    file = write_lmdb(tmp_path / "one.lmdb", subdir=False)
    folder = write_lmdb(tmp_path / "db")
    for path in tmp_path.rglob("lock.mdb*"):
        path.unlink()
    (tmp_path / "one.lmdb-lock").unlink()
    before = sorted(tmp_path.rglob("*"))
    assert is_lmdb(file)
    assert is_lmdb(folder)
    np.testing.assert_array_equal(
        load_image_set([file, folder, folder], 32, tmp_path / "cache").pixels[::3],
        np.stack([noise(32, 0)] * 3),
    )
    assert [p for p in sorted(tmp_path.rglob("*")) if "cache" not in str(p)] == before


def test_broken_and_missing_images_are_named_and_counted(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db", count=4)
    change(path, b"32-00001", None)
    change(path, b"32-00002", b"no image")
    images = load(path, 32)
    assert images.names == ["32-00000", "32-00003"]
    assert images.broken == ["32-00001", "32-00002"]
    np.testing.assert_array_equal(images.pixels[1], noise(32, 3))
    assert images.summary() == "2 images of 32 px (box filter), 2 broken ones left out (listed above)"


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        (b"length", None, "no key length: not an LMDB in rosinality's format"),
        (b"length", b"many", "its key length says b'many'"),
        (b"length", b"-3", "its key length says"),
        (b"length", b"99999999999", "and there are 7 entries"),
        (b"length", b"0", "no images in"),
    ],
)
def test_databases_of_another_format(tmp_path: Path, key: bytes, value: bytes | None, cause: str) -> None:
    path = write_lmdb(tmp_path / "db")
    change(path, key, value)
    with pytest.raises(WranganError) as caught:
        load(path, 32)
    assert cause in str(caught.value)
    assert str(path) in str(caught.value)


def test_keys_of_another_kind(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db")) as environment, environment.begin(write=True) as transaction:
        for key in (b"0a1f", b"32-x", b"-00000", b"length"):
            transaction.put(key, b"1")
    with pytest.raises(FileError, match="no keys such as 256-00000"):
        load(tmp_path / "db", 32)


def test_damaged_databases(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db", count=8)
    file = path / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="a truncated LMDB"):
        load(path, 32)
    for content in (b"", b"x" * 10000, whole[:100]):
        file.write_bytes(content)
        with pytest.raises(FileError, match=r"not readable as LMDB|truncated LMDB"):
            load(path, 32)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lmdb(tmp_path / "db")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(
        WranganError, match=re.escape(f"package lmdb is not installed; {install_line('train')}")
    ):
        load(path, 32)


def test_a_changed_database_makes_the_cache_stale(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "db")
    load(path, 32)
    change(path, b"32-00000", encoded(noise(32, 77)))
    os.utime(path / "data.mdb", ns=(1, 1))
    np.testing.assert_array_equal(load(path, 32).pixels[0], noise(32, 77))


@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos"])
def test_the_filter_is_stated_and_part_of_the_cache(tmp_path: Path, name: str) -> None:
    (tmp_path / "p").mkdir()
    Image.fromarray(noise(48, 5)).save(tmp_path / "p" / "a.png")
    box = load(tmp_path / "p", 16)
    images = load(tmp_path / "p", 16, resize_filter=name)
    how = getattr(Image.Resampling, name.upper())
    np.testing.assert_array_equal(images.pixels[0], Image.fromarray(noise(48, 5)).resize((16, 16), how))
    assert images.summary() == f"1 image of 16 px ({name} filter)"
    assert (name == "box") == np.array_equal(images.pixels, box.pixels)


def test_an_unknown_filter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nearest': expected one of box, bilinear, bicubic, lanczos"):
        load(tmp_path, 16, resize_filter="nearest")


def test_order_and_result_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    for seed in range(30):
        write_photo(tmp_path / "p" / f"{seed:02d}.{'png' if seed % 3 else 'jpg'}", side=16 + seed, seed=seed)
    (tmp_path / "p" / "07x.png").write_bytes(b"")
    source = find_source(tmp_path / "p", 32)
    for workers in (1, 5):
        files = tmp_path / f"{workers}.npy", tmp_path / f"{workers}.json"
        data._decode([source], 32, "box", *files, None, workers)
    one, five = (np.load(tmp_path / f"{workers}.npy")[:30] for workers in (1, 5))
    np.testing.assert_array_equal(one, five)
    assert (tmp_path / "1.json").read_text() == (tmp_path / "5.json").read_text()
    assert load(tmp_path / "p", 32).enlarged == 16


def test_a_zip_whose_directory_swallows_entries_is_refused(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(photos.iterdir()):
            archive.write(path, path.name)
        archive.comment = b"a remark"
    assert len(find_source(tmp_path / "a.zip", 16).names) == 3
    whole = (tmp_path / "a.zip").read_bytes()
    first = whole.index(b"PK\1\2")
    second = whole.index(b"PK\1\2", first + 1)
    # The first entry's comment (its length at byte 32) reaches to the end of the second.
    third = whole.index(b"PK\1\2", second + 1)
    length = (third - second).to_bytes(2, "little")
    (tmp_path / "a.zip").write_bytes(whole[: first + 32] + length + whole[first + 34 :])
    with pytest.raises(FileError, match=r"a damaged zip \(its directory lists 2 entries, its end says 3\)"):
        find_source(tmp_path / "a.zip", 16)


def test_of_many_that_start_at_once_one_decodes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, calls, together = data._decode, [], threading.Barrier(3)

    def counted(*arguments: object) -> None:
        calls.append(1)
        decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "_decode", counted)
    found: list[ImageSet] = []

    def start() -> None:
        together.wait()
        found.append(load_image_set([photos], 16, tmp_path / "cache"))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 3
    assert all(np.array_equal(images.pixels, found[0].pixels) for images in found)
