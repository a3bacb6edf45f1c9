"""Recall (Kynkäänniemi et al. 2019) on Inception features.

Protocol: the share of reference images whose feature vector lies within a sphere around some
generated image's, the sphere reaching to its 3rd nearest neighbour among the generated ones.
On the Inception features of metrics/inception.py: the paper takes VGG16's, so its figures
are on another scale. Range 0…1, higher is better.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL
from wrangan_cli.engine.metrics.manifold import manifold_share


def recall(generated: Tensor, reference: Tensor) -> Estimate:
    """Of features (N, F) and (M, F)."""
    return manifold_share("recall", generated, reference)


METRIC = SampleMetric("recall", True, f"k = 3 on Inception (not VGG16) features; {PROTOCOL}", recall)
