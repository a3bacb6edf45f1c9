"""Corruption: what fitting one image has done to the rest of the latent space.

The paper's Table 4 and Figure 2: each code's generator, with the code's offsets of the
weights in place, draws images at w moved in random directions, and these are compared with
real images by FID or KID. A fit that holds everywhere draws faces there too; one that has bent
the weights for one w draws debris.

Protocol: image i is drawn with code i mod n, at w + s·d: d a random unit vector of R^style_dim, a
function of the seed and i alone and so the same for every method; s the characteristic
size of W, the root of the summed variance of w over 10,000 samples. Of a code in W+ every row is
moved alike. Reference, features and numbers are those of `fid` and `kid`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.codes import Code, render
from wrangan_cli.engine.metrics import fid, kid
from wrangan_cli.engine.metrics.base import SampleMetric
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.runtime import random_generator

METRICS = tuple(
    SampleMetric(
        f"corruption-{metric.name}",
        False,
        f"w moved by the size of W in random directions, offsets kept; {metric.protocol}",
        metric.compute,
    )
    for metric in (fid.METRIC, kid.METRIC)
)


def moved_images(
    model: Model, codes: Sequence[Code], indices: Sequence[int], seed: int = 0, batch: int = 16
) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) of the images `indices` of the protocol, not clipped; S is the model's
    `sample_side`."""
    for start in range(0, len(indices), batch):
        part = [
            _moved(codes[index % len(codes)], random_direction(seed, index, model) * model.w_std)
            for index in indices[start : start + batch]
        ]
        yield render(model, part, model.sample_side)


def random_direction(seed: int, index: int, model: Model) -> Tensor:
    """The unit vector (style_dim,) of image `index`, on the CPU."""
    source = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    drawn = torch.randn(model.generator.config.style_dim, generator=random_generator(source))
    return drawn / drawn.norm()


def _moved(code: Code, move: Tensor) -> Code:
    return replace(code, w=code.w + move)
