"""Training images: decoded once, resized by a chosen filter, cached."""

import collections
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from wrangan_kernels.caching import exclusive, folder_to_write, user_cache

from wrangan_cli.engine.base.choices import ResizeFilter
from wrangan_cli.engine.base.errors import UsageError, WranganError, cause_of
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.data.image_reading import RESIZE_FILTERS, open_with_size
from wrangan_cli.engine.data.pillow_limits import pillow_without_remarks
from wrangan_cli.engine.data.sources import UNREADABLE, Read, Source, find_source

_CACHE_VERSION = 3
"""Raised when the same files would give different pixels (2: colour profiles are applied), or when the
listing gets new entries (3: why an image was left out)."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size.

    pixels: uint8 (N, R, R, 3), possibly a memory map. names: file name of each inside its
    folder, zip or LMDB. broken: names of images that could not be read, causes: why, for each. enlarged:
    number of images smaller than R, which are therefore blurred. resize_filter: filter that reduced the
    others.
    """

    pixels: np.ndarray
    names: list[str]
    broken: list[str]
    enlarged: int = 0
    resize_filter: ResizeFilter = "box"
    causes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def summary(self) -> str:
        """A summary of the images, in one line."""
        counted = "1 image" if len(self) == 1 else f"{len(self)} images"
        parts = [f"{counted} of {self.pixels.shape[1]} px ({self.resize_filter} filter)"]
        if self.broken:
            parts.append(f"{len(self.broken)} broken ones left out (listed above)")
        if self.enlarged:
            parts.append(f"{self.enlarged} smaller ones enlarged")
        return ", ".join(parts)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The images at `indices`: float32 (B, 3, R, R) in [-1, 1]."""
        block = torch.from_numpy(np.ascontiguousarray(self.pixels[np.asarray(indices)]))
        return block.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def load_image_set(
    paths: Sequence[Path],
    resolution: int,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
    resize_filter: ResizeFilter = "box",
) -> ImageSet:
    """Read every image of the folders, zips and LMDBs in `paths`, centre-cropped to a square
    and reduced to `resolution` px by `resize_filter`.

    Smaller images are enlarged (bicubic) and counted in `enlarged`. Broken ones are left out
    and listed in `broken`. The result is cached in `cache_dir` under a key of paths, sizes,
    times, resolution and filter. If several processes load the same set, one decodes it
    and the others wait for its cache. A file lock of the operating system decides which, so no
    process group is needed, and if that process dies, another one decodes.

    Raises UsageError for an unknown filter, FileError for a path that is not a folder, zip or
    LMDB, WranganError when no image is left.
    """
    if resize_filter not in RESIZE_FILTERS:
        raise UsageError(f"resize filter {resize_filter!r}: expected one of {', '.join(RESIZE_FILTERS)}")
    sources = [find_source(path, resolution) for path in paths]
    if not any(source.names for source in sources):
        raise WranganError(f"no images in {', '.join(map(str, paths))}")
    key = _cache_key(sources, resolution, resize_filter)
    pixel_file, name_file = cache_dir / f"{key}.npy", cache_dir / f"{key}.json"
    if not (pixel_file.exists() and name_file.exists()):
        with exclusive(cache_dir / f"{key}.lock"):
            if not (pixel_file.exists() and name_file.exists()):
                _decode(sources, resolution, resize_filter, pixel_file, name_file, progress)
    listing = json.loads(name_file.read_text())
    pixels = np.load(pixel_file, mmap_mode="r")[: len(listing["names"])]
    if not listing["names"]:
        raise WranganError(f"every image in {', '.join(map(str, paths))} is broken")
    return ImageSet(
        pixels, listing["names"], listing["broken"], listing["enlarged"], resize_filter, listing["causes"]
    )


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count) that depends only on seed and epoch, so that resuming needs no state."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_indices(count: int, batch: int, seed: int, start: int) -> np.ndarray:
    """The indices of the next `batch` of `count` images after `start` have been seen: (batch,)."""
    offsets = range(start, start + batch)
    return np.array([_cached_order(count, seed, offset // count)[offset % count] for offset in offsets])


def batches(
    images: ImageSet,
    batch: int,
    seed: int,
    start: int = 0,
    flip: bool = True,
    rows: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Endless batches (B, 3, R, R) in [-1, 1], starting after `start` images.

    Each epoch is shuffled anew; a batch may span two epochs, so none is dropped.
    Flips are sampled per image and epoch from `seed`. rows: which images of each batch to return,
    in this order (the shard of one process); the others are not read.
    """
    position = start
    own = np.arange(batch) if rows is None else np.asarray(rows)
    while True:
        block = images.batch(batch_indices(len(images), batch, seed, position)[own])
        mirrored = [flip and _coin(seed, position + int(row)) for row in own]
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


def _cache_key(sources: Sequence[Source], resolution: int, resize_filter: ResizeFilter) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION}:{resize_filter}|".encode())
    for source in sources:
        for stamp in source.stamps():
            digest.update(f"{stamp}|".encode())
    return f"{digest.hexdigest()[:16]}-{resolution}"


def _decode(
    sources: Sequence[Source],
    resolution: int,
    resize_filter: ResizeFilter,
    pixel_file: Path,
    name_file: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None = None,
) -> None:
    """Write the cache. workers: threads (decoders release Python's lock); default: one per core."""
    total = sum(len(source.names) for source in sources)
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 0])
    names: list[str] = []
    broken: list[tuple[str, str]] = []
    enlarged = done = 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replaced_atomically(pixel_file))
        # A memory map, since a set may exceed memory. Broken images leave unused rows at the end.
        shape = (total, resolution, resolution, 3)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        stack.enter_context(pillow_without_remarks())
        pool = stack.enter_context(ThreadPoolExecutor(min(workers, 16)))
        for source in sources:
            with source.opened() as read:
                jobs = (
                    (source, index, read, resolution, resize_filter) for index in range(len(source.names))
                )
                for name, image in zip(source.names, _in_order(pool, jobs, 4 * workers), strict=True):
                    if isinstance(image, str):
                        broken.append((name, image))
                    else:
                        pixels[len(names)] = image.pixels
                        names.append(name)
                        enlarged += image.enlarged
                    done += 1
                    if progress:
                        progress(done, total)
        pixels.flush()
    with replaced_atomically(name_file) as temporary:
        named = {"broken": [name for name, _ in broken], "causes": [cause for _, cause in broken]}
        temporary.write_text(json.dumps({"names": names, **named, "enlarged": enlarged}))


@dataclass(frozen=True)
class _Decoded:
    pixels: np.ndarray
    enlarged: bool


_Job = tuple[Source, int, Read, int, ResizeFilter]


def _decoded(
    source: Source, index: int, read: Read, resolution: int, resize_filter: ResizeFilter
) -> _Decoded | str:
    """One image, uint8 (R, R, 3), or its problem."""
    # The image is not at this path, which only names it in messages.
    name = Path(source.names[index])
    try:
        image, size = open_with_size(name, resolution, data=read(index), resize_filter=resize_filter)
        return _Decoded(np.asarray(image), min(size) < resolution)
    except UNREADABLE as error:
        return cause_of(error)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[_Job], ahead: int) -> Iterator[_Decoded | str]:
    """The results of `_decoded` in the order of `jobs`, with at most `ahead` waiting in memory."""
    waiting: collections.deque[Future[_Decoded | str]] = collections.deque()
    for job in jobs:
        waiting.append(pool.submit(_decoded, *job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def default_cache_dir() -> Path:
    """The default cache folder of image sets and features; if it is not writable, a temporary folder of this
    process."""
    return folder_to_write(user_cache())
