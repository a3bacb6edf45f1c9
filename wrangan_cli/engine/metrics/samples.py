"""Generated samples, and the reference with which they are compared."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import broadcast, gather_shards, is_main, local_shard
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.base.weights import INCEPTION, WeightFile
from wrangan_cli.engine.data.image_sets import ImageSet
from wrangan_cli.engine.metrics.inception import FEATURES, extract_features
from wrangan_cli.engine.models.folder import Model, sample_w
from wrangan_cli.engine.models.randomized import draw_epsilon

REFERENCE_FILE = "reference.safetensors"
"""File in a model's folder: features of images on which the model was not trained."""


@dataclass(frozen=True)
class Reference:
    """Features of real images. features: float32 (N, F), CPU; of Inception F is 2048."""

    features: Tensor
    source: str
    """Where the images come from."""
    resolution: int
    """Side in px to which they were reduced beforehand."""


def generated_images(
    model: Model,
    count: int,
    seed: int = 0,
    batch: int = 16,
    epsilon: float = 0.0,
    indices: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) of `count` images of random z, no truncation, stored noise maps; S is the
    model's `sample_side`.

    epsilon: scale of ε ~ N(0, 1), sampled for each image; 0: the mean weights.
    indices: which of the `count` images to generate (default: all, in order). An image depends
    only on `seed` and its index, not on `batch` or on the others.

    Raises UsageError for ε with a model without random weights.
    """
    chosen = torch.as_tensor(range(count) if indices is None else indices, dtype=torch.long)
    if not len(chosen):
        return
    w = sample_w(model.generator, count, seed)[chosen.to(model.device)]
    for part, rows in zip(chosen.split(batch), w.split(batch), strict=True):
        offsets = epsilon_of_images(model, part.tolist(), seed, epsilon) if epsilon else None
        with torch.no_grad():
            yield model.generator.synthesis(rows, epsilon=offsets, side=model.sample_side)


def epsilon_of_images(
    model: Model, indices: Sequence[int], seed: int, scale: float = 1.0
) -> dict[str, Tensor]:
    """ε ~ N(0, scale²) of the images `indices`: name of the weight → (B, O, I, k, k).

    Each depends only on `seed` and its index, so that it is independent of the batch and no process has to
    sample for another. Raises UsageError for a model without random weights.
    """
    sources = (int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) for index in indices)
    drawn = [draw_epsilon(model.generator, scale=scale, rng=random_generator(s)) for s in sources]
    return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}


def generated_features(
    model: Model,
    inception: Callable[[Tensor], Tensor],
    count: int,
    seed: int = 0,
    batch: int = 16,
    epsilon: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (count, F) of `generated_images`, in order, in every process.

    Under torchrun each process generates a shard, and all must call this. progress:
    called with the number of images that this process has done.
    """
    shard = local_shard(range(count))
    return gathered_features(inception, generated_images(model, count, seed, batch, epsilon, shard), progress)


def gathered_features(
    inception: Callable[[Tensor], Tensor],
    images: Iterator[Tensor],
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (N, F) of the images of all processes, in order. images: batches of this process's shard."""
    first = next(images, None)
    if first is None:
        return _gathered(torch.empty(0))
    return _gathered(extract_features(inception, itertools.chain([first], images), progress))


def image_set_features(
    images: ImageSet,
    inception: Callable[[Tensor], Tensor],
    batch: int = 16,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
    sharded: bool = False,
    network: WeightFile = INCEPTION,
) -> Tensor:
    """Features (N, F) of an image set, cached in `cache_dir` by a digest of its pixels and of `network`, the
    weight file of `inception`.

    sharded: each process does a shard, and all must call this.
    """
    cached = None
    if cache_dir is not None and (is_main() or not sharded):
        digest = hashlib.sha256(str((images.pixels.shape, network.sha256)).encode())
        for start in range(0, len(images), 1000):
            digest.update(images.pixels[start : start + 1000].tobytes())
        kind = "inception" if network is INCEPTION else "vgg16"
        cached = cache_dir / f"{kind}-{digest.hexdigest()[:16]}.safetensors"
    features = _read_features(cached)
    if sharded:
        features = broadcast(features)
    whole = range(len(images))
    if features is not None:
        if progress:
            progress(len(local_shard(whole) if sharded else whole))
        return features
    shard = local_shard(whole) if sharded else whole
    batches = (images.batch(shard[start : start + batch]) for start in range(0, len(shard), batch))
    here = extract_features(inception, batches, progress) if shard else torch.empty(0)
    features = _gathered(here) if sharded else here
    if cached is not None:
        write_tensors(cached, {"features": features}, {"kind": "features"})
    return features


def _gathered(here: Tensor) -> Tensor:
    """The features of all images; `here`: those of this process's shard, which may be empty."""
    # Send whole shards: a single row would be pickled with the whole tensor that it is a view of.
    return torch.stack(gather_shards(cast(Sequence[Tensor], here)))


def _read_features(path: Path | None) -> Tensor | None:
    """The cached features; None if missing or broken."""
    if path is not None:
        with suppress(FileError, KeyError):
            return read_tensors(path)[0]["features"]
    return None


def save_reference(path: Path, reference: Reference) -> None:
    """Write features in float16 with source, count and resolution, atomically."""
    record = {
        "kind": "reference",
        "network_sha256": INCEPTION.sha256,
        "source": reference.source,
        "count": len(reference.features),
        "resolution": reference.resolution,
    }
    write_tensors(path, {"features": reference.features.half()}, record)


def load_reference(path: Path, resolution: int) -> Reference:
    """Read what `save_reference` wrote, for images of `resolution` px.

    Raises FileError: missing, broken, or made with another network or resolution.
    """
    tensors, record = read_tensors(path)
    features = tensors.get("features")
    if record.get("kind") != "reference" or features is None:
        raise FileError(
            path, "not a file of reference features (made by `wrangan evaluate --save-reference`)"
        )
    if features.ndim != 2 or features.shape[1] != FEATURES or not features.isfinite().all():
        raise FileError(path, f"expected finite features (N, {FEATURES}), got {tuple(features.shape)}")
    if record.get("network_sha256") != INCEPTION.sha256:
        raise FileError(path, "features of another Inception network")
    if record.get("resolution") != resolution:
        raise FileError(
            path, f"features of images of {record.get('resolution')} px, expected {resolution} px"
        )
    return Reference(features.float(), str(record.get("source", "unknown")), resolution)


def model_reference(model: Model) -> Reference:
    """The reference stored with a model; WranganError if there is none."""
    path = model.companion(REFERENCE_FILE)
    if path is None:
        raise WranganError(
            f"{model.path / REFERENCE_FILE}: missing, so model {model.name} needs --reference "
            "(a zip or folder of images)"
        )
    return load_reference(path, model.sample_side)
