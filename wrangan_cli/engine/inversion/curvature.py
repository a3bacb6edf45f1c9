"""Preconditioning for L-BFGS: rescale the unknowns so that the loss has similar curvature in all directions.

L-BFGS moves z, and the unknowns are x₀ + T z. T is linear and symmetric; T² approximates the inverse of
the curvature. With residuals r = image − photograph the curvature of Σr² is 2JᵀJ, where J is the Jacobian of
the image with respect to the unknowns; for random images v with E vvᵀ = 1, the second moment of Jᵀv is JᵀJ.
For each layer, (O, I, kh, kw), only the moments along its axes are kept, whose Kronecker product bounds the
full matrix (Shampoo, Gupta et al. 2018, arXiv:1802.09568). Shampoo sums over training steps; here the
product is the metric of a quasi-Newton method.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wrangan_cli.engine.base.runtime import random_generator

FLOOR = 0.01
"""Added to the eigenvalues of each factor, in units of their mean: with few probes some are 0."""
FACTOR_POWER = -1 / 6
"""Exponent of each of a layer's three factors: T² is the inverse of Shampoo's bound, a third per factor."""
LAYER_POWER = -0.25
"""Exponent of a layer's mean curvature, in units of that of all layers."""
W_POWER = -0.5
"""Exponent of w's curvature, in the same units; as in Newton's method, since w has few components and by far
the largest curvature."""


class Metric(Protocol):
    """T, for each image of a batch."""

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """T z: tensors with the shapes of the unknowns, (B, …) each, in order."""

    def keep(self, rows: Tensor) -> None:
        """Keep only these images."""


class Rates:
    """T proportional to Adam's learning rates of `groups`."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        largest = max(group["lr"] for group in groups) or 1.0
        self.scales: list[float] = [group["lr"] / largest for group in groups for _ in group["params"]]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor * scale for tensor, scale in zip(tensors, self.scales, strict=True)]

    def keep(self, rows: Tensor) -> None:
        pass


class Kronecker:
    """T that multiplies w by a scalar, and each layer by a symmetric matrix along each of its axes: O, I, and
    the taps.

    scales: (B,) for each tensor. factors: three for each tensor (B, O, I, kh, kw):
    (B, O, O), (B, I, I), (B, kh·kw, kh·kw); none for other tensors.
    """

    def __init__(self, scales: list[Tensor], factors: list[list[Tensor]]) -> None:
        self.scales, self.factors = scales, factors

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            _apply(tensor, scale, factors)
            for tensor, scale, factors in zip(tensors, self.scales, self.factors, strict=True)
        ]

    def fix(self, fixed: Sequence[bool]) -> None:
        """Keep the tensors where `fixed` is true constant."""
        for scale, constant in zip(self.scales, fixed, strict=True):
            scale.mul_(not constant)

    def keep(self, rows: Tensor) -> None:
        self.scales = [scale[rows] for scale in self.scales]
        self.factors = [[factor[rows] for factor in factors] for factors in self.factors]


def estimate_metric(render: Callable[[], Tensor], tensors: Sequence[Tensor], probes: int) -> Kronecker:
    """The metric at the current values of the unknowns.

    render: returns the images (B, 3, R, R) of `tensors`, the unknowns, which require gradients: w (B, …)
    first, then those of the layers (B, O, I, kh, kw). probes: number of backward passes through the
    generator; the random images are the same for every image of the batch.
    """
    rng = random_generator(0)
    images = render()
    squares = [images.new_zeros(len(images)) for _ in tensors]
    moments: list[list[Tensor]] = [[] for _ in tensors]
    for probe in range(probes):
        v = torch.randn(images.shape[1:], generator=rng).to(images)
        last = probe == probes - 1
        grads = torch.autograd.grad((images * v).sum(), list(tensors), retain_graph=not last)
        for index, grad in enumerate(grads):
            # An image that is not finite gets some metric, and is reported at the end.
            grad = grad.nan_to_num(0, 0, 0)
            squares[index] += grad.flatten(1).square().mean(dim=1) / probes
            if grad.dim() == 5:
                found = _moments(grad)
                before = moments[index]
                moments[index] = [a + b for a, b in zip(before, found, strict=True)] if before else found
    layers = [i for i, tensor in enumerate(tensors) if tensor.dim() == 5]
    weighed = layers or range(len(tensors))
    numel = {i: tensors[i][0].numel() for i in weighed}
    mean = torch.stack([squares[i] * numel[i] for i in weighed]).sum(dim=0) / sum(numel.values())
    scales = [
        (square / mean.clamp_min(1e-30) + 1e-6).pow(LAYER_POWER if index in layers else W_POWER)
        for index, square in enumerate(squares)
    ]
    return Kronecker(scales, [[_power(m, FACTOR_POWER) for m in of_layer] for of_layer in moments])


def _moments(grad: Tensor) -> list[Tensor]:
    """Second moments of (B, O, I, kh, kw) along O, I and the taps, summed over the other axes."""
    grad = grad.flatten(3)
    rows, columns, taps = grad.flatten(2), grad.transpose(1, 2).flatten(2), grad.flatten(1, 2)
    return [rows @ rows.mT, columns @ columns.mT, taps.mT @ taps]


def _power(moment: Tensor, power: float) -> Tensor:
    """(moment / its mean eigenvalue + FLOOR)^power, for symmetric matrices (B, n, n)."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
    values, vectors = torch.linalg.eigh(moment / mean.clamp_min(1e-30))
    return (vectors * (values.clamp_min(0) + FLOOR).pow(power)[:, None]) @ vectors.mT


def _apply(tensor: Tensor, scale: Tensor, factors: list[Tensor]) -> Tensor:
    if not factors:
        return tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))
    rows, columns, taps = factors
    batch, out, inner = tensor.shape[:3]
    # With the taps first, all three are large matrix products: ten times as fast as in the tensor's order.
    x = tensor.flatten(3).permute(0, 3, 1, 2).reshape(batch, -1, out * inner)
    x = ((taps * scale[:, None, None]) @ x).reshape(batch, -1, inner) @ columns
    x = rows[:, None] @ x.reshape(batch, -1, out, inner)
    return x.permute(0, 2, 3, 1).reshape(tensor.shape)
