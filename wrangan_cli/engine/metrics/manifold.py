"""Improved precision and recall (Kynkäänniemi et al. 2019) by torch-fidelity: shared part."""

import math

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate
from wrangan_cli.engine.metrics.inception import require_package, require_samples

NEIGHBOURHOOD = 3


def manifold_fraction(name: str, generated: Tensor, reference: Tensor) -> Estimate:
    """`precision` or `recall` of features (N, F) and (M, F), N, M ≥ 5; WranganError for fewer.

    The standard error is the binomial one over the counted images, for fixed spheres.
    """
    require_samples(name, NEIGHBOURHOOD + 2, generated, reference)
    require_package(name)
    from torch_fidelity import metric_prc

    result = metric_prc.prc_features_to_metric(
        generated.float().cpu(), reference.float().cpu(), prc_neighborhood=NEIGHBOURHOOD, verbose=False
    )
    fraction = float(result[name])
    counted = len(generated if name == "precision" else reference)
    return Estimate(fraction, math.sqrt(fraction * (1 - fraction) / counted))
