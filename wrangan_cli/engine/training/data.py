"""Training images: folders and zips, decoded once, box-filtered to one size, cached."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.errors import FileError, WranganError
from wrangan_cli.engine.files import replaced_atomically
from wrangan_cli.engine.images import IMAGE_SUFFIXES, open_image


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size.

    pixels: uint8 (N, R, R, 3), possibly a memory map. names: file name of each
    inside its folder or zip. broken: names that could not be read.
    """

    pixels: np.ndarray
    names: list[str]
    broken: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The images at `indices`: float32 (B, 3, R, R) in [-1, 1]."""
        block = torch.from_numpy(np.ascontiguousarray(self.pixels[np.asarray(indices)]))
        return block.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def load_image_set(
    paths: Sequence[Path],
    resolution: int,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """Read every image of the folders and zips in `paths`, centre-cropped to a square
    and reduced to `resolution` px by a box filter.

    The result is cached in `cache_dir` under a key of paths, sizes and times. A broken
    image is left out and named in `broken`. Raises FileError for a path that is neither folder nor
    zip, WranganError when no image is left.
    """
    entries = [entry for path in paths for entry in _entries(path)]
    if not entries:
        raise WranganError(f"no images in {', '.join(map(str, paths))}")
    key = _cache_key(entries, resolution)
    pixel_file, name_file = cache_dir / f"{key}.npy", cache_dir / f"{key}.json"
    if not (pixel_file.exists() and name_file.exists()):
        cache_dir.mkdir(parents=True, exist_ok=True)
        _decode(entries, resolution, pixel_file, name_file, progress)
    listing = json.loads(name_file.read_text())
    pixels = np.load(pixel_file, mmap_mode="r")[: len(listing["names"])]
    if not listing["names"]:
        raise WranganError(f"every image in {', '.join(map(str, paths))} is broken")
    return ImageSet(pixels, listing["names"], listing["broken"])


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count), a function of seed and epoch alone: resuming needs no state."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_indices(count: int, batch: int, seed: int, start: int) -> np.ndarray:
    """Which of `count` images come next after `start` of them were seen: (batch,) of range(count)."""
    offsets = range(start, start + batch)
    return np.array([_cached_order(count, seed, offset // count)[offset % count] for offset in offsets])


def batches(images: ImageSet, batch: int, seed: int, start: int = 0, flip: bool = True) -> Iterator[Tensor]:
    """Endless batches (B, 3, R, R) in [-1, 1], starting after `start` images.

    Each epoch is shuffled anew; a batch may span two epochs, so none is dropped.
    Flips are drawn per image and epoch from `seed`.
    """
    position = start
    while True:
        block = images.batch(batch_indices(len(images), batch, seed, position))
        mirrored = [flip and _coin(seed, offset) for offset in range(position, position + batch)]
        mask = torch.tensor(mirrored)[:, None, None, None]
        yield torch.where(mask, block.flip(3), block)
        position += batch


_orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}


def _cached_order(count: int, seed: int, epoch: int) -> np.ndarray:
    held = _orders.get((count, seed))
    if held is None or held[0] != epoch:
        held = (epoch, epoch_order(count, seed, epoch))
        _orders[count, seed] = held
    return held[1]


def _coin(seed: int, offset: int) -> bool:
    return bool(hashlib.blake2b(f"{seed}:{offset}".encode(), digest_size=1).digest()[0] & 1)


def _entries(path: Path) -> list[tuple[Path, str | None]]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        return [(file, None) for file in files]
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in IMAGE_SUFFIXES)
        except (zipfile.BadZipFile, OSError) as error:
            raise FileError(path, f"a damaged zip ({error})") from error
        return [(path, name) for name in names]
    if not path.exists():
        raise FileError(path, "no such file or folder")
    raise FileError(path, "neither a folder nor a zip of images")


def _cache_key(entries: Sequence[tuple[Path, str | None]], resolution: int) -> str:
    digest = hashlib.sha256()
    for path in dict.fromkeys(path for path, _ in entries):
        # Every file of a folder: the folder's own time says nothing of a picture changed in place.
        stat = path.stat()
        digest.update(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}|".encode())
    return f"{digest.hexdigest()[:16]}-{resolution}"


def _decode(
    entries: list[tuple[Path, str | None]],
    resolution: int,
    pixel_file: Path,
    name_file: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    archives: dict[Path, zipfile.ZipFile] = {}
    names: list[str] = []
    broken: list[str] = []
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replaced_atomically(pixel_file))
        # Mapped, not held: a set may be larger than memory. Broken images leave rows at the end.
        shape = (len(entries), resolution, resolution, 3)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for done, (path, member) in enumerate(entries):
            name, data = path.name, None
            try:
                if member is not None:
                    name = member
                    if path not in archives:
                        archives[path] = stack.enter_context(zipfile.ZipFile(path))
                    data = archives[path].read(member)
                image = open_image(path if member is None else Path(member), resolution, data=data)
                pixels[len(names)] = np.asarray(image)
                names.append(name)
            # RuntimeError: encrypted, or compressed in a way that is not known here.
            except (WranganError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
                broken.append(name)
            if progress:
                progress(done + 1, len(entries))
        pixels.flush()
    with replaced_atomically(name_file) as temporary:
        temporary.write_text(json.dumps({"names": names, "broken": broken}))


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/wrangan` or `~/.cache/wrangan`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wrangan"
