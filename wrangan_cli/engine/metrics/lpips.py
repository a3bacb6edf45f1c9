"""The four perceptual distances as metrics: LPIPS and shift-tolerant LPIPS.

Protocol: images in [-1, 1]; those with a side below 161 px are enlarged bilinearly to 256, others
unchanged. Lower is better. `lpips-*` (version 0.1) and `st-lpips-*` are different metrics:
their values are not comparable. Published values, including the paper's,
are of LPIPS and must not be compared with shift-tolerant LPIPS.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wrangan_cli.engine.metrics.base import PairMetric
from wrangan_cli.engine.models.perceptual import PERCEPTUAL_NAMES, for_metric, load_perceptual

_FULL_NAMES = {
    "lpips-vgg": "LPIPS 0.1 with VGG16",
    "lpips-alex": "LPIPS 0.1 with AlexNet",
    "st-lpips-vgg": "shift-tolerant LPIPS with VGG16",
    "st-lpips-alex": "shift-tolerant LPIPS with AlexNet",
}
_COLUMNS = {
    "lpips-vgg": "LPIPS-VGG (paper)",
    "lpips-alex": "LPIPS-Alex (paper)",
    "st-lpips-vgg": "st-LPIPS-VGG",
    "st-lpips-alex": "st-LPIPS-Alex",
}
"""Headings of columns; `paper` only for the networks behind the paper's values."""


def _metric(name: str) -> PairMetric:
    def load(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        net = load_perceptual(name, device)
        return lambda x, y: net(for_metric(x), for_metric(y))

    protocol = f"{_FULL_NAMES[name]} on [-1, 1]; images below 161 px enlarged bilinearly to 256"
    return PairMetric(name, False, protocol, load, _COLUMNS[name])


METRICS = tuple(_metric(name) for name in PERCEPTUAL_NAMES)
