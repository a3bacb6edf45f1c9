"""Sampling images at the points of a grid, differentiable any number of times with respect to the images.

The R1 penalty differentiates a gradient that has gone through an augmentation. Older versions of PyTorch
have no derivative for the backward pass of `grid_sample`. Sampling is linear in the images, though: its
gradient is the transposed map, and the gradient of that is sampling again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BILINEAR, _REFLECTION = 0, 2
"""Numbers of ATen's interpolation and padding modes."""


def sample_reflected(images: Tensor, grid: Tensor) -> Tensor:
    """images (B, C, H, W), grid (B, H', W', 2) in [-1, 1] over the image → (B, C, H', W').

    Bilinear; images go on mirrored beyond their borders. No gradient flows to the grid.
    """
    result: Tensor = _Sample.apply(images, grid.detach())
    return result


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Transposed.apply(gradients[0], ctx.saved_tensors[0], ctx.shape), None


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # The gradient does not depend on the values of the images, only on their shape.
        images = gradient.new_zeros(()).expand(shape)
        back = torch.ops.aten.grid_sampler_2d_backward
        found = back(gradient, images, grid, _BILINEAR, _REFLECTION, False, [True, False])
        result: Tensor = found[0]
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Sample.apply(gradients[0], ctx.saved_tensors[0]), None, None
