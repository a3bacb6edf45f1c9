"""GANSpace (Härkönen et al. 2020): the principal components of W as directions."""

from collections.abc import Callable

import torch

from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.engine.models.folder import Model, sample_w

PREFIX = "pca-"


@torch.no_grad()
def pca_directions(
    model: Model,
    components: int = 10,
    samples: int = 100_000,
    seed: int = 0,
    on_samples: Callable[[int], None] | None = None,
) -> list[Direction]:
    """`pca-0` … `pca-<components - 1>`, largest variance first.

    Exact: eigenvectors of the covariance of w over `samples` random z, in float64 (the
    published code works incrementally). std is the root of the eigenvalue. The sign,
    which is arbitrary, makes the largest entry positive. on_samples gets
    the number of w sampled so far. Raises UsageError for invalid counts.
    """
    dim = model.generator.config.style_dim
    if not 1 <= components <= dim:
        raise UsageError(f"components {components}: expected 1…{dim}")
    if samples <= dim:
        raise UsageError(f"samples {samples}: expected more than the {dim} dimensions of w")
    # Sums about the model's stored mean: no large terms cancel, and the samples are never all in memory.
    centre = model.w_mean.double().cpu()
    total, products = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    chunk, done = 20_000, 0
    while done < samples:
        count = min(chunk, samples - done)
        # One seed per chunk, so that the first samples are the same whatever their number.
        w = sample_w(model.generator, count, seed=seed * 100_003 + done // chunk).double().cpu() - centre
        total += w.sum(dim=0)
        products += w.T @ w
        done += count
        if on_samples:
            on_samples(done)
    covariance = (products - torch.outer(total, total) / samples) / (samples - 1)
    if not covariance.isfinite().all():
        raise WranganError("the mapping network returned values that are not finite")
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    fractions = values / values.sum()
    found = []
    for index in range(components):
        vector = vectors[:, index]
        vector = vector * vector[vector.abs().argmax()].sign()
        found.append(
            Direction(
                name=f"{PREFIX}{index}",
                vector=vector.float(),
                std=float(values[index].sqrt()),
                source={
                    "method": "GANSpace",
                    "samples": samples,
                    "seed": seed,
                    "variance_share": round(float(fractions[index]), 6),
                },
            )
        )
    return found
