"""The fraction of a random weight's elements with negligible σ: |σ| < 10⁻³ (the paper's Table 6)."""

from wrangan_cli.engine.metrics.base import LayerMetric
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import SMALL_STD, small_std_fraction


def std_share(model: Model, samples: int = 0, seed: int = 0, batch: int = 16) -> dict[str, float]:  # noqa: ARG001
    """Name of the weight → fraction in 0…1, read off the weights: no image is rendered."""
    return small_std_fraction(model.generator)


METRIC = LayerMetric(
    "std-share", f"fraction of |σ| < {SMALL_STD:g} in each random layer, 0…1", False, std_share
)
