"""Adaptive discriminator augmentation (Karras et al. 2020b): the "bgc" transforms.

Blits (flips, quarter turns, integer shifts), geometry (scale, rotation, anisotropic
scale, fractional shift) and colour (brightness, contrast, luma flip, hue, saturation),
each applied with probability p to each image. All geometry is one affine resampling
and all colour one 3×4 matrix, so gradients of any order pass through. Unlike the
published pipeline the resampling is bilinear, without its wavelet low-pass filter.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class AdaptiveAugment:
    """Transforms images with strength p, and steers p by the discriminator's overfitting.

    target: wanted mean sign of D on real images (0.6). horizon: images over which p can
    go from 0 to 1 (500,000). interval: images between two adjustments.
    """

    def __init__(self, target: float = 0.6, horizon: int = 500_000, interval: int = 64) -> None:
        self.target, self.horizon, self.interval = target, horizon, interval
        self.probability = 0.0
        self._sign_sum, self._count = 0.0, 0

    def observe(self, real_logits: Tensor) -> None:
        """Take note of D's logits on real images (B, 1) and adjust p when it is time."""
        self._sign_sum += real_logits.detach().sign().sum().item()
        self._count += real_logits.numel()
        if self._count >= self.interval:
            direction = math.copysign(1.0, self._sign_sum / self._count - self.target)
            step = direction * self._count / self.horizon
            self.probability = min(1.0, max(0.0, self.probability + step))
            self._sign_sum, self._count = 0.0, 0

    def state(self) -> dict[str, float]:
        """What a snapshot needs."""
        return {"probability": self.probability, "sign_sum": self._sign_sum, "count": self._count}

    def restore(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        self.probability = state["probability"]
        self._sign_sum, self._count = state["sign_sum"], int(state["count"])

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → the same shape, augmented."""
        if self.probability <= 0:
            return images
        return augment(images, self.probability)


def augment(images: Tensor, probability: float) -> Tensor:
    """Apply each transform to each image with `probability`."""
    return _colour(_geometry(images, probability), probability)


def _chosen(count: int, probability: float) -> Tensor:
    return torch.rand(count) < probability


def _gate(value: Tensor, neutral: float, probability: float) -> Tensor:
    return torch.where(_chosen(value.shape[0], probability), value, torch.full_like(value, neutral))


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


def _geometry(images: Tensor, p: float) -> Tensor:
    batch, _, height, width = images.shape
    ones = torch.ones(batch)
    # Coordinates of `grid_sample`: [-1, 1] over the image, so a shift of 1 px is 2 / width.
    matrix = torch.eye(3).expand(batch, 3, 3)
    flip = _gate(torch.randint(0, 2, (batch,)) * -2.0 + 1.0, 1.0, p)
    matrix = matrix @ _scaling(flip, ones)
    matrix = matrix @ _rotation(_gate(torch.randint(0, 4, (batch,)) * (math.pi / 2), 0.0, p))
    shift = ((torch.rand(2, batch) * 2 - 1) * 0.125 * width).round() * 2 / width
    keep = _chosen(batch, p).float()
    matrix = matrix @ _translation(shift[0] * keep, shift[1] * keep)
    scale = _gate(torch.exp2(torch.randn(batch) * 0.2), 1.0, p)
    matrix = matrix @ _scaling(scale, scale)
    # Two chances of a free rotation, each so likely that p is the chance of at least one.
    p_rotate = 1 - math.sqrt(1 - p)
    matrix = matrix @ _rotation(_gate((torch.rand(batch) * 2 - 1) * math.pi, 0.0, p_rotate))
    stretch = _gate(torch.exp2(torch.randn(batch) * 0.2), 1.0, p)
    matrix = matrix @ _scaling(stretch, 1 / stretch)
    matrix = matrix @ _rotation(_gate((torch.rand(batch) * 2 - 1) * math.pi, 0.0, p_rotate))
    drift = torch.randn(2, batch) * 0.125 * 2
    keep = _chosen(batch, p).float()
    matrix = matrix @ _translation(drift[0] * keep, drift[1] * keep)
    changed = (matrix - torch.eye(3)).abs().amax(dim=(1, 2)) > 0
    if not changed.any():
        return images
    theta = matrix[:, :2].to(images)
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _colour(images: Tensor, p: float) -> Tensor:
    batch = images.shape[0]
    axis = torch.full((3,), 1 / math.sqrt(3))
    along = torch.outer(axis, axis)
    eye = torch.eye(3)
    brightness = _gate(torch.randn(batch) * 0.2, 0.0, p)
    contrast = _gate(torch.exp2(torch.randn(batch) * 0.5), 1.0, p)
    flip = _gate(torch.randint(0, 2, (batch,)).float(), 0.0, p)
    hue = _gate((torch.rand(batch) * 2 - 1) * math.pi, 0.0, p)
    saturation = _gate(torch.exp2(torch.randn(batch) * 1.0), 1.0, p)
    mirror = eye - 2 * along * flip[:, None, None]
    cross = torch.linalg.cross(axis.expand(3, 3), eye, dim=1).t()
    turn = along + (eye - along) * hue.cos()[:, None, None] + cross * hue.sin()[:, None, None]
    fade = along + (eye - along) * saturation[:, None, None]
    matrix = (fade @ turn @ mirror * contrast[:, None, None]).to(images)
    offset = (brightness * contrast)[:, None].to(images)
    # Brightness comes before contrast; mirror, turn and fade fix or flip the grey axis only.
    sign = (1 - 2 * flip)[:, None].to(images)
    flat = torch.einsum("bij,bjp->bip", matrix, images.flatten(2))
    return (flat + (offset * sign)[:, :, None]).reshape(images.shape)
