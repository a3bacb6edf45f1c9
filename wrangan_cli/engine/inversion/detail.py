"""Detail finer than the photograph shows.

A photograph of 256 px says nothing about the detail that an image of 1024 px has beyond it. The data loss
does not see it, so a fit may leave a weave of the photograph's pixels on skin and sky. Natural
images have about as much energy in one octave as in the next, at the same place. `excess_detail` therefore
measures how much more unseen detail an image has than the finest octave of its photograph suggests.
"""

import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.models.generator import reduced

CELL = 8
"""Side in px of the photograph of the cells in which energies are compared."""
RATIO = 1.0
"""Energy of the unseen detail, relative to that of the photograph's finest octave, that is not excess."""
FLOOR = 5e-5
"""Energy that is not excess even in a flat cell: an amplitude of 1/140 on [-1, 1], invisible."""


def excess_detail(images: Tensor, photographs: Tensor) -> Tensor:
    """Mean energy of unseen detail beyond what the photograph suggests, per image: (B,), 0 or more.

    images: (B, 3, S, S) on [-1, 1]. photographs: (B, 3, s, s), s < S. Energies are mean squares over the
    channels and cells of 8 px of the photograph.
    """
    side = photographs.shape[-1]
    unseen = _cells(_energy_beyond(images, side), side)
    allowed = RATIO * _cells(_energy_beyond(photographs, max(1, side // 2)), side) + FLOOR
    return (unseen - allowed).relu().mean(dim=(1, 2, 3))


def _energy_beyond(images: Tensor, side: int) -> Tensor:
    """The energy that is lost in a reduction to `side` px, (B, 1, side, side): the variance in each area that
    becomes one pixel."""
    lost = reduced(images.square(), side) - reduced(images, side).square()
    return lost.mean(dim=1, keepdim=True)


def _cells(energy: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(energy, max(1, side // CELL))
