"""Recall (Kynkäänniemi et al. 2019), on Inception features and on VGG16's.

Protocol: the fraction of reference images whose feature vector lies in a sphere around that of some
generated image, with the distance to its 3rd nearest generated neighbour as radius.
Range 0…1, higher is better. `recall` is on the Inception features of metrics/inception.py (pool3),
`recall-vgg16` on those of metrics/vgg16.py, as in the authors' protocol, which the paper quotes. The two
are not comparable.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import Estimate, SampleMetric
from wrangan_cli.engine.metrics.inception import PROTOCOL as INCEPTION
from wrangan_cli.engine.metrics.manifold import manifold_fraction
from wrangan_cli.engine.metrics.vgg16 import PROTOCOL as VGG16


def recall(generated: Tensor, reference: Tensor) -> Estimate:
    """Of features (N, F) and (M, F)."""
    return manifold_fraction("recall", generated, reference)


METRIC = SampleMetric(
    "recall",
    True,
    f"k = 3 on Inception (not VGG16) features; {INCEPTION}",
    recall,
    "recall (Inception pool3)",
)
VGG16_METRIC = SampleMetric(
    "recall-vgg16",
    True,
    f"k = 3 on VGG16 fc2 features; {VGG16}",
    recall,
    "recall (VGG16 fc2)",
    "vgg16",
)
