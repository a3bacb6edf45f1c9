"""Corruption: the effect of fitting one image on the rest of the latent space.

The paper's Table 4 and Figure 2: each code's generator, with the code's offsets of the
weights, renders images at w moved in random directions, and these are compared with
real images by FID or KID. A sound fit renders faces there too; one that has distorted
the weights for a single w renders debris.

Images: image i is rendered with code i mod n, at w + s·d, where d is a random unit vector of R^style_dim
that depends only on the seed and i, and so is the same for every method, and s is the characteristic
size of W, the root of the summed variance of w over 10,000 samples. In W+ every row is
moved alike. Reference and features are those of `fid` and `kid`.

Protocols of the numbers:
- `corruption-kid`, `corruption-fid`: the images of one code against the reference, as in the paper
  (there 1000 images of one code), averaged over the codes. The standard error is that of the mean over the
  codes, for a fixed reference; for a single code, that of KID. KID is unbiased: few images per code only
  make it less certain. FID is biased.
- `corruption-face`: the fraction of the images in which the detector finds a face. For faces only.
- `corruption-pooled-kid`, `corruption-pooled-fid`: the images of all codes together. They are more diverse,
  and so closer to the many images of the reference: the numbers are smaller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.base.distributed import local_shard
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.faces.detection import FaceDetector
from wrangan_cli.engine.metrics import fid, kid
from wrangan_cli.engine.metrics.base import CodeMetric, Estimate, SampleMetric
from wrangan_cli.engine.metrics.samples import gathered_features
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model

FACE = "corruption-face"
FACE_PROTOCOL = "w moved by the size of W in random directions, offsets kept; fraction with a detected face"
FACE_SIDE = 256
"""Minimum side in px at which faces are detected."""
MOVED = "w moved by the size of W in random directions, offsets kept"
LEAST = {"kid": kid.LEAST, "fid": 2}
"""Minimum number of images per code that a metric needs."""


def mean_over_codes(metric: SampleMetric, generated: Tensor, reference: Tensor, codes: int) -> Estimate:
    """A metric of the images of each code, averaged over the codes.

    generated: features (N, F), row i of code i mod `codes`. reference: (M, F). Raises WranganError if a
    code has fewer images than the metric needs.
    """
    least = LEAST[metric.name]
    if len(generated) < least * codes:
        raise WranganError(
            f"corruption-{metric.name}: {len(generated)} images of {codes} codes, expected {least} of each: "
            f"use {least * codes} samples or more"
        )
    if codes == 1:
        return metric.compute(generated, reference)
    return mean_of([one_code(metric, generated[code::codes], reference) for code in range(codes)])


def one_code(metric: SampleMetric, generated: Tensor, reference: Tensor) -> float:
    """A metric of the images of one code, without a standard error: that is slow to compute, and the error
    of a mean over codes follows from the values."""
    if metric.name == kid.METRIC.name:
        return kid.kid(generated, reference, with_error=False).value
    return metric.compute(generated, reference).value


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean over codes with its standard error."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else None
    return Estimate(float(array.mean()), error)


def _metrics() -> tuple[CodeMetric, ...]:
    made = []
    for metric in (kid.METRIC, fid.METRIC):
        each_code, pooled = f"corruption-{metric.name}", f"corruption-pooled-{metric.name}"
        each = f"{MOVED}; images of each code separately, mean over the codes; {metric.protocol}"
        together = f"{MOVED}; images of all codes together; {metric.protocol}"
        made.append(CodeMetric(each_code, False, each, partial(mean_over_codes, metric)))
        made.append(CodeMetric(pooled, False, together, partial(_pooled, metric)))
    return tuple(made)


def _pooled(metric: SampleMetric, generated: Tensor, reference: Tensor, codes: int) -> Estimate:  # noqa: ARG001
    return metric.compute(generated, reference)


METRICS = _metrics()


def moved_images(
    model: Model, codes: Sequence[Code], indices: Sequence[int], seed: int = 0, batch: int = 16
) -> Iterator[Tensor]:
    """The images `indices` of the protocol in batches (B, 3, S, S), not clipped; S is the model's
    `sample_side`."""
    for start in range(0, len(indices), batch):
        part = [
            _moved(codes[index % len(codes)], random_direction(seed, index, model) * model.w_std)
            for index in indices[start : start + batch]
        ]
        yield render(model, part, model.sample_side)


def moved_features(
    model: Model,
    network: Callable[[Tensor], Tensor],
    codes: Sequence[Code],
    count: int,
    seed: int = 0,
    batch: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features (count, F) by `network` of the protocol's first `count` images, in order, in every process.

    Under torchrun each process renders a part, and all must call this. progress: called with the number of
    images that this process has done.
    """
    images = moved_images(model, codes, local_shard(range(count)), seed, batch)
    return gathered_features(network, images, progress)


@torch.no_grad()
def face_fraction(
    model: Model,
    codes: Sequence[Code],
    count: int,
    seed: int = 0,
    on_images: Callable[[int], None] | None = None,
) -> float:
    """The fraction of the protocol's first `count` images in which the detector finds a face (smaller images
    are enlarged to 256 px). Raises WranganError if the detector's package is missing."""
    detector = FaceDetector()
    found = 0
    for done, image in enumerate(moved_images(model, codes, range(count), seed, batch=1), 1):
        image = image.clamp(-1, 1)
        if image.shape[-1] < FACE_SIDE:
            image = F.interpolate(image, size=(FACE_SIDE, FACE_SIDE), mode="bilinear")
        found += bool(detector.detect(to_pillow(image[0].cpu())))
        if on_images:
            on_images(done)
    return found / count


def random_direction(seed: int, index: int, model: Model) -> Tensor:
    """The unit vector (style_dim,) of image `index`, on the CPU."""
    source = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    drawn = torch.randn(model.generator.config.style_dim, generator=random_generator(source))
    return drawn / drawn.norm()


def _moved(code: Code, move: Tensor) -> Code:
    return replace(code, w=code.w + move)
