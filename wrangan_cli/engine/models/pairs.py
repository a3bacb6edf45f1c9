"""Pairs (w, image) rendered once by a generator, for every training that needs images with known w."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, cause_of
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.base.tensorfile import opened_tensors, write_tensors
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Generator

SHARD = 256
"""Pairs per file: the most that an interruption can lose."""
SEED_STRIDE = 1_000_003
"""Factor between seeds and the seeds of files, so that files of different seeds never share one."""
DRAWN_TOGETHER = 32
"""Images rendered together on a GPU; on the CPU one, which is as fast there and shows progress."""


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs, with its w in memory and its images read on demand."""

    w: Tensor
    """float32 (N, style_dim), on the CPU."""
    side: int
    """Side of the images in px."""
    shards: tuple[Path, ...] = field(repr=False)
    """Files of SHARD pairs each, in order; the last may have fewer."""

    def __len__(self) -> int:
        return len(self.w)

    def images(self, indices: np.ndarray | range) -> Tensor:
        """float32 (len(indices), 3, side, side) in [-1, 1], in the order of `indices`.

        Each from 0 to len(self) - 1; IndexError otherwise.
        """
        found = torch.empty(len(indices), 3, self.side, self.side)
        order = np.asarray(indices, dtype=np.int64)
        if len(order) and not 0 <= order.min() <= order.max() < len(self):
            raise IndexError(f"pairs {order.min()}…{order.max()}: there are {len(self)}")
        for shard in np.unique(order // SHARD):
            with opened_tensors(self.shards[shard]) as stream:
                stored = stream.get_slice("images")
                for place in np.flatnonzero(order // SHARD == shard):
                    row = int(order[place] % SHARD)
                    found[place] = stored[row : row + 1][0].float()
        return found.div_(127.5).sub_(1)


def means_sha256(generator: Generator) -> str:
    """sha256 of everything that images at ε = 0 depend on, which does not include σ."""
    digest = hashlib.sha256()
    random = {f"{weight.key}.std" for weight in generator.random_weights().values()}
    for name, tensor in sorted(generator.state_dict().items()):
        if name not in random:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def render_pairs(
    model: Model,
    folder: Path,
    samples: int,
    side: int,
    seed: int = 0,
    on_pairs: Callable[[int], None] | None = None,
) -> Pairs:
    """Render w of random z and their images at ε = 0, reduced by area averaging to `side`, into `folder`.

    Existing pairs of the same model, side and seed are kept: an interrupted run continues, and a
    larger number adds to them. on_pairs gets the number of pairs so far. Raises UsageError for invalid
    numbers, FileError for pairs of another model, side or seed.
    """
    if samples < 1 or side < 1 or seed < 0:
        raise UsageError(f"pairs: {samples} of {side} px, seed {seed}: expected 1 or more, seed 0 or more")
    generator = model.generator
    side = min(side, model.resolution)
    record = {"kind": "pairs", "means_sha256": means_sha256(generator), "side": side, "seed": seed}
    for number, first in enumerate(range(0, samples, SHARD)):
        count = min(SHARD, samples - first)
        path = _shard(folder, number)
        if path.exists() and _count(path, record) >= count:
            continue
        if on_pairs:
            on_pairs(first)
        rng = random_generator(seed * SEED_STRIDE + number)
        z = torch.randn(SHARD, generator.config.style_dim, generator=rng)[:count]
        w, images = generator.mapping(z.to(model.device)), []
        done = first
        for rows in w.split(1 if w.device.type == "cpu" else DRAWN_TOGETHER):
            images.append(to_uint8(generator.synthesis(rows, side=side)))
            done += len(rows)
            if on_pairs:
                on_pairs(done)
        write_tensors(path, {"w": w.float(), "images": torch.cat(images)}, record)
    return open_pairs(folder, generator)


def open_pairs(folder: Path, generator: Generator) -> Pairs:
    """The pairs in a folder; FileError if there are none, or if they belong to another generator."""
    shards = sorted(folder.glob("pairs-*.safetensors"))
    if not shards:
        raise FileError(folder, "no pairs in it: make some with `wrangan generate --pairs`")
    wanted, side, rows = means_sha256(generator), 0, []
    for number, path in enumerate(shards):
        record, w, shape = _read(path)
        if record.get("means_sha256") != wanted or w.shape[1] != generator.config.style_dim:
            raise FileError(path, "made with another generator")
        if path != _shard(folder, number) or (side and shape[-1] != side):
            raise FileError(path, "does not match the number or size of the files before it")
        if len(w) != SHARD and path != shards[-1]:
            raise FileError(path, f"{len(w)} pairs, expected {SHARD}: make them again")
        side = shape[-1]
        rows.append(w)
    return Pairs(torch.cat(rows), side, tuple(shards))


def _shard(folder: Path, number: int) -> Path:
    return folder / f"pairs-{number:05d}.safetensors"


def _count(path: Path, wanted: dict[str, object]) -> int:
    record, w, _ = _read(path)
    different = [name for name, value in wanted.items() if record.get(name) != value]
    if different:
        raise FileError(path, f"pairs of another {different[0]}: choose another folder")
    return len(w)


def _read(path: Path) -> tuple[dict[str, object], Tensor, list[int]]:
    """The record, w, and the shape of the images."""
    try:
        with opened_tensors(path) as stream:
            record = json.loads((stream.metadata() or {})["wrangan"])
            w, shape = stream.get_tensor("w"), stream.get_slice("images").get_shape()
    except (KeyError, SafetensorError, OSError, ValueError) as error:
        raise FileError(path, f"not a readable file of pairs ({cause_of(error)})") from error
    if not isinstance(record, dict) or record.get("kind") != "pairs":
        raise FileError(path, "not a file of pairs")
    if w.ndim != 2 or len(shape) != 4 or len(w) != shape[0] or shape[2] != shape[3]:
        raise FileError(path, f"w of shape {tuple(w.shape)} and images of {tuple(shape)} do not form pairs")
    return record, w.float(), list(shape)
