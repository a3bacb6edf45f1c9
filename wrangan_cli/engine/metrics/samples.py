"""Generated samples, and the reference they are compared with."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.errors import FileError, WranganError
from wrangan_cli.engine.metrics.inception import FEATURES, extract_features
from wrangan_cli.engine.model_folder import Model, sample_w
from wrangan_cli.engine.models.randomized import draw_epsilon
from wrangan_cli.engine.runtime import random_generator
from wrangan_cli.engine.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.training.data import ImageSet
from wrangan_cli.engine.weights import INCEPTION

REFERENCE_FILE = "reference.safetensors"
"""In a model's folder: features of images that the model was not trained on."""


@dataclass(frozen=True)
class Reference:
    """Inception features of real images. features: float32 (N, 2048), CPU."""

    features: Tensor
    source: str
    """Where the images come from."""
    resolution: int
    """Side in px to which they were reduced before."""


def generated_images(
    model: Model, count: int, seed: int = 0, batch: int = 16, epsilon: float = 0.0
) -> Iterator[Tensor]:
    """Batches (B, 3, R, R) of `count` images of random z, no truncation, stored noise maps.

    epsilon: scale of ε ~ N(0, 1), drawn anew for each image; 0 is the mean weights.
    The images do not depend on `batch`.

    Raises UsageError for ε of a model without random weights.
    """
    w = sample_w(model.generator, count, seed)
    rng = random_generator(seed + 1)
    for rows in w.split(batch):
        offsets = None
        if epsilon:
            drawn = [draw_epsilon(model.generator, scale=epsilon, rng=rng) for _ in rows]
            offsets = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
        with torch.no_grad():
            yield model.generator.synthesis(rows, epsilon=offsets)


def image_set_features(
    images: ImageSet,
    inception: Callable[[Tensor], Tensor],
    batch: int = 16,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (N, 2048) of an image set; kept in `cache_dir` under a digest of its pixels."""
    cached = None
    if cache_dir is not None:
        digest = hashlib.sha256(str((images.pixels.shape, INCEPTION.sha256)).encode())
        for start in range(0, len(images), 1000):
            digest.update(images.pixels[start : start + 1000].tobytes())
        cached = cache_dir / f"inception-{digest.hexdigest()[:16]}.safetensors"
        with suppress(FileError, KeyError):  # not there, or broken: made again
            features = read_tensors(cached)[0]["features"]
            if progress:
                progress(len(images))
            return features
    starts = range(0, len(images), batch)
    batches = (images.batch(range(start, min(start + batch, len(images)))) for start in starts)
    features = extract_features(inception, batches, progress)
    if cached is not None:
        write_tensors(cached, {"features": features}, {"kind": "features"})
    return features


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
    """Read what `save_reference` wrote, for a model of `resolution` px.

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
    """The reference that travels with a model; WranganError if none does."""
    path = model.path / REFERENCE_FILE
    if not path.is_file():
        raise WranganError(
            f"{path}: not there, so model {model.name} needs --reference (a zip or folder of images)"
        )
    return load_reference(path, model.resolution)
