"""Adaptive discriminator augmentation (Karras et al. 2020b): the "bgc" transforms.

Blits (flips, quarter turns, integer shifts), geometry (scale, rotation, anisotropic
scale, fractional shift) and colour (brightness, contrast, luma flip, hue, saturation),
each applied with probability p to each image. All geometry is one affine resampling
and all colour one 3×4 matrix, so gradients of any order pass through. Unlike the
published pipeline the resampling is bilinear, without its wavelet low-pass filter.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.ops.sampling_grid import sample_reflected


@dataclass(frozen=True)
class Transforms:
    """The transform of each image of a batch, sampled once and applied to any of its rows."""

    geometry: Tensor
    """(B, 3, 3): affine maps of `affine_grid`'s coordinates."""
    colour: Tensor
    """(B, 3, 4): matrices of (r, g, b, 1)."""

    def rows(self, indices: Tensor) -> "Transforms":
        """The transforms of some of the images."""
        return Transforms(self.geometry[indices], self.colour[indices])


class AdaptiveAugment:
    """Steers the strength p of the transforms by the discriminator's overfitting.

    target: desired mean sign of D on real images (0.6). horizon: images over which p can
    go from 0 to 1 (500,000). interval: batches between two adjustments (4). The defaults are
    the published values.
    """

    def __init__(self, target: float = 0.6, horizon: int = 500_000, interval: int = 4) -> None:
        self.target, self.horizon, self.interval = target, horizon, interval
        self.probability = 0.0
        self._sign_sum, self._images, self._batches = 0.0, 0, 0

    def observe(self, mean_sign: float, images: int) -> None:
        """Record the mean sign of D's logits on a batch of real images; adjust p when due."""
        self._sign_sum += mean_sign * images
        self._images += images
        self._batches += 1
        if self._batches >= self.interval:
            direction = math.copysign(1.0, self._sign_sum / self._images - self.target)
            step = direction * self._images / self.horizon
            self.probability = min(1.0, max(0.0, self.probability + step))
            self._sign_sum, self._images, self._batches = 0.0, 0, 0

    def state(self) -> dict[str, float]:
        """The state to store in a snapshot."""
        return {
            "probability": self.probability,
            "sign_sum": self._sign_sum,
            "images": self._images,
            "batches": self._batches,
        }

    def restore(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        self.probability = state["probability"]
        self._sign_sum = state["sign_sum"]
        self._images, self._batches = int(state["images"]), int(state["batches"])


def draw_transforms(batch: int, probability: float, width: int, rng: torch.Generator) -> Transforms:
    """Sample the transforms of `batch` images of `width` px, each with `probability`; rng: on the CPU."""
    draw = _Chances(batch, probability, rng)
    return Transforms(_geometry(draw, width), _colour(draw))


def apply_transforms(images: Tensor, transforms: Transforms) -> Tensor:
    """images: (B, 3, R, R) in [-1, 1] → the same shape, image i changed by transform i."""
    batch, _, height, width = images.shape
    if (transforms.geometry - torch.eye(3)).abs().max() > 0:
        theta = transforms.geometry[:, :2].to(images)
        grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
        images = sample_reflected(images, grid)
    matrix = transforms.colour.to(images)
    flat = torch.einsum("bij,bjp->bip", matrix[:, :, :3], images.flatten(2))
    return (flat + matrix[:, :, 3:]).reshape(images.shape)


class _Chances:
    """Random samples for a batch; those not chosen (with probability p each) take a neutral value."""

    def __init__(self, batch: int, probability: float, rng: torch.Generator) -> None:
        self.batch, self.probability, self.rng = batch, probability, rng

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, self.batch, generator=self.rng)

    def symmetric(self, *shape: int) -> Tensor:
        """Uniform in [-1, 1)."""
        return torch.rand(*shape, self.batch, generator=self.rng) * 2 - 1

    def whole(self, below: int) -> Tensor:
        return torch.randint(0, below, (self.batch,), generator=self.rng).to(torch.get_default_dtype())

    def chosen(self, probability: float | None = None) -> Tensor:
        p = self.probability if probability is None else probability
        return torch.rand(self.batch, generator=self.rng) < p

    def gate(self, value: Tensor, neutral: float, probability: float | None = None) -> Tensor:
        return torch.where(self.chosen(probability), value, torch.full_like(value, neutral))


def _affine(a: Tensor, b: Tensor, c: Tensor, d: Tensor, tx: Tensor, ty: Tensor) -> Tensor:
    """(B, 3, 3) matrices [[a, b, tx], [c, d, ty], [0, 0, 1]]."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    rows = [torch.stack(r, 1) for r in ((a, b, tx), (c, d, ty), (zero, zero, one))]
    return torch.stack(rows, 1)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return _affine(x, zero, zero, y, zero, zero)


def _rotation(angle: Tensor) -> Tensor:
    zero = torch.zeros_like(angle)
    return _affine(angle.cos(), -angle.sin(), angle.sin(), angle.cos(), zero, zero)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _affine(one, zero, zero, one, x, y)


def _geometry(draw: _Chances, width: int) -> Tensor:
    """(B, 3, 3), in coordinates of `grid_sample`: [-1, 1] over the image, so a shift of 1 px is 2 / width."""
    batch, p = draw.batch, draw.probability
    matrix = torch.eye(3).expand(batch, 3, 3)
    matrix = matrix @ _scaling(draw.gate(1 - 2 * draw.whole(2), 1.0), torch.ones(batch))
    matrix = matrix @ _rotation(draw.gate(draw.whole(4) * (math.pi / 2), 0.0))
    shift = (draw.symmetric(2) * 0.125 * width).round() * 2 / width * draw.chosen()
    matrix = matrix @ _translation(shift[0], shift[1])
    scale = draw.gate(torch.exp2(draw.normal() * 0.2), 1.0)
    matrix = matrix @ _scaling(scale, scale)
    # Two chances of a free rotation, such that p is the probability of at least one.
    p_rotate = 1 - math.sqrt(1 - p)
    matrix = matrix @ _rotation(draw.gate(draw.symmetric() * math.pi, 0.0, p_rotate))
    stretch = draw.gate(torch.exp2(draw.normal() * 0.2), 1.0)
    matrix = matrix @ _scaling(stretch, 1 / stretch)
    matrix = matrix @ _rotation(draw.gate(draw.symmetric() * math.pi, 0.0, p_rotate))
    drift = draw.normal(2) * 0.125 * 2 * draw.chosen()
    return matrix @ _translation(drift[0], drift[1])


def _colour(draw: _Chances) -> Tensor:
    """(B, 3, 4): brightness, contrast, luma flip, hue and saturation as one matrix and offset."""
    axis = torch.full((3,), 1 / math.sqrt(3))
    along = torch.outer(axis, axis)
    eye = torch.eye(3)
    brightness = draw.gate(draw.normal() * 0.2, 0.0)
    contrast = draw.gate(torch.exp2(draw.normal() * 0.5), 1.0)
    flip = draw.gate(draw.whole(2), 0.0)
    hue = draw.gate(draw.symmetric() * math.pi, 0.0)
    saturation = draw.gate(torch.exp2(draw.normal() * 1.0), 1.0)
    mirror = eye - 2 * along * flip[:, None, None]
    cross = torch.linalg.cross(axis.expand(3, 3), eye, dim=1).t()
    turn = along + (eye - along) * hue.cos()[:, None, None] + cross * hue.sin()[:, None, None]
    fade = along + (eye - along) * saturation[:, None, None]
    matrix = fade @ turn @ mirror * contrast[:, None, None]
    # Brightness comes before contrast; mirror, turn and fade fix or flip the grey axis only.
    offset = brightness * contrast * (1 - 2 * flip)
    return torch.cat([matrix, offset[:, None, None].expand(-1, 3, 1)], dim=2)
