"""Training images: folders, zips, broken files, cache, order and resumption."""

import os
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.data import image_sets as data
from wrangan_cli.engine.data.image_sets import (
    ImageSet,
    batches,
    default_cache_dir,
    epoch_order,
    load_image_set,
)


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"inside/{file.name}")
    return path


def numbered(count: int) -> ImageSet:
    """Images that are recognised by their left pixel; the right one is 255, so that a flip shows."""
    pixels = np.zeros((count, 2, 2, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.arange(count, dtype=np.uint8)[:, None, None]
    pixels[:, :, 1] = 255
    return ImageSet(pixels, [f"{i}.png" for i in range(count)], [])


def identities(batch: torch.Tensor) -> list[int]:
    return [round((image.min().item() + 1) * 127.5) for image in batch]


def test_folder_and_zip_give_the_same_images(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = load_image_set([photos], 16, cache)
    archive = load_image_set([zip_of(photos, tmp_path / "p.zip")], 16, cache)
    assert len(folder) == len(archive) == 3
    assert folder.names == ["a.png", "b.jpg", "c.webp"]
    assert archive.names == ["inside/a.png", "inside/b.jpg", "inside/c.webp"]
    np.testing.assert_array_equal(folder.pixels, archive.pixels)
    both = load_image_set([photos, tmp_path / "p.zip"], 16, cache)
    assert len(both) == 6
    block = folder.batch([2, 0])
    assert block.shape == (2, 3, 16, 16)
    expected = folder.pixels[[2, 0]].astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    np.testing.assert_allclose(block.numpy(), expected, atol=1e-6)


def test_box_filter_is_the_mean_of_blocks(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    Image.fromarray(noise).save(tmp_path / "p" / "a.png")
    images = load_image_set([tmp_path / "p"], 16, tmp_path / "cache")
    square = noise[:, 8:56].astype(np.float64)
    means = square.reshape(16, 3, 16, 3, 3).mean(axis=(1, 3))
    # Pillow rounds twice, after the rows and after the columns.
    error = np.abs(images.pixels[0] - means)
    assert error.max() <= 1.0
    assert error.mean() < 0.3


def test_a_broken_image_is_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    (photos / "d.png").write_bytes((photos / "a.png").read_bytes()[:100])
    (photos / "e.jpg").write_text("not a picture")
    (photos / "f.txt").write_text("ignored")
    (photos / "g.png").write_bytes(b"")
    images = load_image_set([photos], 16, tmp_path / "cache")
    assert images.names == ["a.png", "b.jpg", "c.webp"]
    assert images.broken == ["d.png", "e.jpg", "g.png"]
    assert images.pixels.shape == (3, 16, 16, 3)
    # The names come from the cache too.
    assert load_image_set([photos], 16, tmp_path / "cache").broken == images.broken


def test_the_second_reading_comes_from_the_cache(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    first = load_image_set([photos], 16, cache, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def fail(*_args: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", fail)
        again = load_image_set([photos], 16, cache)
        np.testing.assert_array_equal(first.pixels, again.pixels)
        with pytest.raises(AssertionError, match="decoded again"):
            load_image_set([photos], 8, cache)
    # A picture changed in place makes the cache stale.
    write_photo(photos / "a.png", seed=9)
    os.utime(photos / "a.png", ns=(1, 1))
    assert (load_image_set([photos], 16, cache).pixels != first.pixels).any()


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WranganError, match=r"no images in .*empty"):
        load_image_set([tmp_path / "empty"], 16, tmp_path / "cache")
    with pytest.raises(FileError, match="no such file"):
        load_image_set([tmp_path / "nosuch"], 16, tmp_path / "cache")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(FileError, match="neither a folder nor a zip"):
        load_image_set([tmp_path / "a.txt"], 16, tmp_path / "cache")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("text")
    with pytest.raises(WranganError, match="every image"):
        load_image_set([tmp_path / "broken"], 16, tmp_path / "cache")


def test_an_epoch_is_a_permutation_of_seed_and_number() -> None:
    order = epoch_order(50, 3, 7)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, 3, 7))
    assert (order != epoch_order(50, 3, 8)).any()
    assert (order != epoch_order(50, 4, 7)).any()


def test_every_epoch_covers_every_image() -> None:
    stream = batches(numbered(10), batch=4, seed=1)
    seen = [i for batch in islice(stream, 15) for i in identities(batch)]
    for epoch in range(6):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))


@pytest.mark.parametrize("start", [0, 4, 8, 12, 36, 40, 400])
def test_a_stream_resumed_anywhere_goes_on_the_same(start: int) -> None:
    whole = list(islice(batches(numbered(10), 4, seed=2), start // 4 + 5))[start // 4 :]
    resumed = islice(batches(numbered(10), 4, seed=2, start=start), 5)
    for one, two in zip(whole, resumed, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_resumption_in_mid_batch_and_with_another_batch_size() -> None:
    whole = torch.cat(list(islice(batches(numbered(10), 4, seed=2), 10)))
    other = torch.cat(list(islice(batches(numbered(10), 3, seed=2, start=7), 11)))
    torch.testing.assert_close(whole[7:], other, rtol=0, atol=0)


def test_flips_are_about_half_and_can_be_off() -> None:
    batch = next(batches(numbered(200), 2000, seed=0))
    flipped = (batch[:, 0, 0, 0] > batch[:, 0, 0, 1]).float().mean()
    assert flipped == pytest.approx(0.5, abs=0.05)
    plain = next(batches(numbered(200), 400, seed=0, flip=False))
    assert not (plain[:, 0, 0, 0] > plain[:, 0, 0, 1]).any()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("WRANGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "wrangan"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "wrangan"


def test_a_damaged_zip_is_named(photos: Path, tmp_path: Path) -> None:
    archive = zip_of(photos, tmp_path / "p.zip")
    data = bytearray(archive.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry : entry + 4] = b"XXXX"
    archive.write_bytes(data)
    with pytest.raises(FileError, match=r"p\.zip: a damaged zip"):
        load_image_set([archive], 16, tmp_path / "cache")


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)])
def test_encrypted_and_oddly_compressed_members_are_left_out(
    photos: Path, tmp_path: Path, offset: int, value: int
) -> None:
    archive = zip_of(photos, tmp_path / "p.zip")
    data = bytearray(archive.read_bytes())
    data[data.rfind(b"PK\x01\x02") + offset] = value
    archive.write_bytes(data)
    images = load_image_set([archive], 16, tmp_path / "cache")
    assert (len(images.names), len(images.broken)) == (2, 1)
