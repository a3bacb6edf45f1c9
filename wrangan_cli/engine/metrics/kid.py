"""Kernel Inception distance (Bińkowski et al. 2018), by torch-fidelity on our features.

Protocol: squared maximum mean discrepancy, unbiased, kernel (x·y / 2048 + 1)³, of the
Inception features of metrics/inception.py; mean over 100 pairs of subsets (seed 2020)
drawn without replacement. A subset has 1000 images, or half of the smaller set if that is
less. Unbiased, so sets of different sizes compare; slightly negative values are possible.
Lower is better.

Standard error: the subsets overlap, so their deviation over √100 would be far too small.
Deviation · √(m / (n - m)) for subsets of m out of n (the delete-(n-m) jackknife, n of the
smaller set) is given.
"""

import math

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL, require_package, require_samples

SUBSETS = 100
SUBSET_SIZE = 1000


def kid(generated: Tensor, reference: Tensor) -> Estimate:
    """Of features (N, F) and (M, F), N, M ≥ 4; WranganError for fewer."""
    require_samples("kid", 4, generated, reference)
    require_package("kid")
    from torch_fidelity import metric_kid

    smaller = min(len(generated), len(reference))
    size = min(SUBSET_SIZE, smaller // 2)
    result = metric_kid.kid_features_to_metric(
        generated.float().cpu(),
        reference.float().cpu(),
        kid_subsets=SUBSETS,
        kid_subset_size=size,
        verbose=False,
    )
    deviation = result[metric_kid.KEY_METRIC_KID_STD]
    return Estimate(result[metric_kid.KEY_METRIC_KID_MEAN], deviation * math.sqrt(size / (smaller - size)))


METRIC = SampleMetric(
    "kid", False, f"polynomial kernel of degree 3, 100 subsets of at most 1000; {PROTOCOL}", kid
)
