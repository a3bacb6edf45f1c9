"""Multi-scale structural similarity (Wang et al. 2003), by package pytorch-msssim.

Protocol: values mapped to [0, 1], data range 1, window 11 with σ 1.5, five scales with the
published weights, mean over the colour channels. Images with a side below 161 px (five
scales do not fit) are enlarged bilinearly to 256 first. Range 0…1, higher is better.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import PairMetric
from wrangan_cli.engine.models.perceptual import for_metric


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B,) of two batches (B, 3, H, W) in [-1, 1]."""
    import pytorch_msssim

    a, b = ((for_metric(images) + 1) / 2 for images in (x, y))
    return pytorch_msssim.ms_ssim(a, b, data_range=1.0, size_average=False)


METRIC = PairMetric(
    "ms-ssim",
    True,
    "values in [0, 1], data range 1; images below 161 px enlarged bilinearly to 256",
    lambda _device: ms_ssim,
)
