"""Mean squared error.

Protocol: over the 3·H·W values of an image in [-1, 1]; four times the value on [0, 1].
Range 0…4, lower is better.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import PairMetric


def mse(x: Tensor, y: Tensor) -> Tensor:
    """(B,) of two batches (B, 3, H, W) in [-1, 1]."""
    return (x - y).square().mean(dim=(1, 2, 3))


METRIC = PairMetric("mse", False, "mean squared error of values in [-1, 1]", lambda _device: mse)
