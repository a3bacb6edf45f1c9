"""Training images: decoded once, brought to one size by a stated filter, cached."""

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

from wrangan_cli.engine.base.errors import UsageError, WranganError, cause_of
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.data.images import RESIZE_FILTERS, open_with_size
from wrangan_cli.engine.data.pillow_limits import pillow_without_remarks
from wrangan_cli.engine.data.sources import UNREADABLE, Read, Source, find_source

_CACHE_VERSION = 3
"""Counted up when the same files give other pixels than before (2: colour profiles are applied), or the
listing has more (3: why an image was left out)."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images of one size.

    pixels: uint8 (N, R, R, 3), possibly a memory map. names: file name of each inside its
    folder, zip or LMDB. broken: names that could not be read, causes: why, for each. enlarged: how
    many were smaller than R and are blurred for it. resize_filter: by which the others were reduced.
    """

    pixels: np.ndarray
    names: list[str]
    broken: list[str]
    enlarged: int = 0
    resize_filter: str = "box"
    causes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def summary(self) -> str:
        """What was read, in one line for the person who started the training."""
        counted = "1 image" if len(self) == 1 else f"{len(self)} images"
        parts = [f"{counted} of {self.pixels.shape[1]} px ({self.resize_filter} filter)"]
        if self.broken:
            parts.append(f"{len(self.broken)} broken left out (named above)")
        if self.enlarged:
            parts.append(f"{self.enlarged} smaller than that and enlarged")
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
    resize_filter: str = "box",
) -> ImageSet:
    """Read every image of the folders, zips and LMDBs in `paths`, centre-cropped to a square
    and reduced to `resolution` px by `resize_filter` (RESIZE_FILTERS).

    Smaller images are enlarged (bicubic) and counted in `enlarged`. A broken one is left out
    and named in `broken`. The result is cached in `cache_dir` under a key of paths, sizes,
    times, resolution and filter. Of several processes that ask for the same set one decodes,
    and the others wait for its cache: the operating system's lock on a file says who, so no
    process group is needed, and a process that dies lets the next one decode.

    Raises UsageError for an unknown filter, FileError for a path that is no folder, zip or
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
    """A permutation of range(count), a function of seed and epoch alone: resuming needs no state."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_indices(count: int, batch: int, seed: int, start: int) -> np.ndarray:
    """Which of `count` images come next after `start` of them were seen: (batch,) of range(count)."""
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
    Flips are drawn per image and epoch from `seed`. rows: which images of each batch are
    wanted, in this order (the share of one process); the others are not read.
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


def _cache_key(sources: Sequence[Source], resolution: int, resize_filter: str) -> str:
    digest = hashlib.sha256(f"{_CACHE_VERSION}:{resize_filter}|".encode())
    for source in sources:
        for stamp in source.stamps():
            digest.update(f"{stamp}|".encode())
    return f"{digest.hexdigest()[:16]}-{resolution}"


def _decode(
    sources: Sequence[Source],
    resolution: int,
    resize_filter: str,
    pixel_file: Path,
    name_file: Path,
    progress: Callable[[int, int], None] | None,
    workers: int | None = None,
) -> None:
    """Write the cache. workers: threads (decoders work outside Python's lock); default: one a core."""
    total = sum(len(source.names) for source in sources)
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 0])
    names: list[str] = []
    broken: list[tuple[str, str]] = []
    enlarged = done = 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replaced_atomically(pixel_file))
        # Mapped, not held: a set may be larger than memory. Broken images leave rows at the end.
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


_Job = tuple[Source, int, Read, int, str]


def _decoded(source: Source, index: int, read: Read, resolution: int, resize_filter: str) -> _Decoded | str:
    """One image, uint8 (R, R, 3), or what is wrong with it."""
    # What stands at the path is not this image, but its name belongs into a remark.
    name = Path(source.names[index])
    try:
        image, size = open_with_size(name, resolution, data=read(index), resize_filter=resize_filter)
        return _Decoded(np.asarray(image), min(size) < resolution)
    except UNREADABLE as error:
        return cause_of(error)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[_Job], ahead: int) -> Iterator[_Decoded | str]:
    """The results of `_decoded` in the order of `jobs`, at most `ahead` of them waiting in memory."""
    waiting: collections.deque[Future[_Decoded | str]] = collections.deque()
    for job in jobs:
        waiting.append(pool.submit(_decoded, *job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def default_cache_dir() -> Path:
    """Where image sets and features are kept if no other folder is named; where nothing can be kept,
    a folder of this process alone."""
    return folder_to_write(user_cache())
