"""Precision (Kynkäänniemi et al. 2019) on Inception features.

Protocol: the share of generated images whose feature vector lies within a sphere around some
reference image's, the sphere reaching to its 3rd nearest neighbour among the reference ones.
On the Inception features of metrics/inception.py: the paper takes VGG16's, so its figures
are on another scale. Range 0…1, higher is better.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL
from wrangan_cli.engine.metrics.manifold import manifold_share


def precision(generated: Tensor, reference: Tensor) -> Estimate:
    """Of features (N, F) and (M, F)."""
    return manifold_share("precision", generated, reference)


METRIC = SampleMetric("precision", True, f"k = 3 on Inception (not VGG16) features; {PROTOCOL}", precision)
