"""Kernel Inception distance (Bińkowski et al. 2018), computed by torch-fidelity from our features.

Protocol: squared maximum mean discrepancy, unbiased, kernel (x·y / 2048 + 1)³, of the
Inception features of metrics/inception.py; mean over 100 pairs of subsets (seed 2020)
drawn without replacement. A subset has 1000 images, or half of the smaller set if that is
smaller. It is unbiased, so sets of different sizes are comparable; slightly negative values are possible.
Lower is better.

Standard error: the root of the variance of the estimate from all pairs (`mmd_variance`) plus a
hundredth of the variance over the subsets, which they add. (The standard deviation over the subsets divided
by √100 would be far too small, since they overlap.)
"""

import math

import numpy as np
from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL, require_package, require_samples
from wrangan_cli.engine.metrics.mmd_variance import Matrix, mmd_variance

SUBSETS = 100
SUBSET_SIZE = 1000
LEAST = 4
"""Minimum number of images for KID."""


def kid(generated: Tensor, reference: Tensor, with_error: bool = True) -> Estimate:
    """Of features (N, F) and (M, F), N, M ≥ 4; WranganError for fewer.

    with_error: whether to compute the standard error, which takes a few seconds for large sets.
    """
    require_samples("kid", LEAST, generated, reference)
    require_package("kid")
    from torch_fidelity import metric_kid

    result = metric_kid.kid_features_to_metric(
        generated.float().cpu(),
        reference.float().cpu(),
        kid_subsets=SUBSETS,
        kid_subset_size=min(SUBSET_SIZE, min(len(generated), len(reference)) // 2),
        verbose=False,
    )
    value, deviation = result[metric_kid.KEY_METRIC_KID_MEAN], result[metric_kid.KEY_METRIC_KID_STD]
    if not with_error:
        return Estimate(value)
    first, second = generated.double().cpu().numpy(), reference.double().cpu().numpy()
    return Estimate(value, math.sqrt(mmd_variance(first, second, _kernel) + deviation**2 / SUBSETS))


def _kernel(first: Matrix, second: Matrix) -> Matrix:
    product: Matrix = np.matmul(first, second.T)
    return (product / first.shape[1] + 1) ** 3


METRIC = SampleMetric(
    "kid", False, f"polynomial kernel of degree 3, 100 subsets of at most 1000; {PROTOCOL}", kid
)
