"""Peak signal-to-noise ratio.

Protocol: 10·log10(2² / MSE) per image with values in [-1, 1], whose peak-to-peak range
is 2 (the same value as with 1 on [0, 1] or 255 on 8 bits); means are taken over decibels.
Equal images, which would be infinite, count as 100 dB. Higher is better.
"""

from torch import Tensor

from wrangan_cli.engine.metrics.base import PairMetric
from wrangan_cli.engine.metrics.mse import mse

PEAK = 2.0
MOST = 100.0


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """(B,) in dB of two batches (B, 3, H, W) in [-1, 1]."""
    ratio = PEAK**2 / mse(x, y).clamp_min(PEAK**2 * 10 ** (-MOST / 10))
    return 10 * ratio.log10()


METRIC = PairMetric("psnr", True, "dB, peak 2 on [-1, 1], at most 100", lambda _device: psnr)
