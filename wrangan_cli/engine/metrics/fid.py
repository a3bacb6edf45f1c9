"""Fréchet Inception distance (Heusel et al. 2017), computed by torch-fidelity from our features.

Protocol: ‖μ₁-μ₂‖² + Tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) of the 2048 Inception features of
metrics/inception.py, in float64. It is biased upwards, the more so for small sets: values are
comparable only at equal counts, which are therefore always given. Lower is better. No
standard error (its bootstrap is biased too).
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL, require_package, require_samples


def fid(generated: Tensor, reference: Tensor) -> Estimate:
    """Of features (N, F) and (M, F), N, M ≥ 2; WranganError for fewer."""
    require_samples("fid", 2, generated, reference)
    require_package("fid")
    from torch_fidelity import metric_fid

    first, second = (
        metric_fid.fid_features_to_statistics(features.double().cpu()) for features in (generated, reference)
    )
    result = metric_fid.fid_statistics_to_metric(first, second, verbose=False)
    return Estimate(result[metric_fid.KEY_METRIC_FID])


METRIC = SampleMetric("fid", False, f"Fréchet distance; {PROTOCOL}", fid)
