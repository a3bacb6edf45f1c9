"""The image at one resolution, with a CPU kernel: shapes and gradients.

to_rgb: y[c] = clamp(Σ_i weight[c, i] · style[i] · x[i] + bias[c]), and the skip image enlarged twofold by
`fir` (or neither). x (B, I, H, W), weight (C, I) with C ≤ 4, style (B, I), bias (C,), skip (B, C, H/2, W/2),
fir (k, k). clamp: negative for none. float32.
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.schemas import LIBRARY, again_differentiable, ops, register


def _fake(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    del others
    return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    *tensors, ctx.clamp = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, style, bias, skip, fir = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:5])
    found: list[Any]
    if torch.is_grad_enabled():
        found = again_differentiable(parts, [x, weight, style, bias, skip, fir], [ctx.clamp], grad, needed)
    else:
        found = list(ops.to_rgb_backward(grad.contiguous(), x, weight, style, bias, fir, ctx.clamp, needed))
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), None, None)


def parts(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    fir: Tensor | None,
    clamp: float,
) -> Tensor:
    """`to_rgb` by operations that can be differentiated again."""
    y = torch.bmm(weight * style[:, None, :], x.flatten(2)) + bias[:, None]
    y = (y if clamp < 0 else y.clamp(-clamp, clamp)).unflatten(2, x.shape[2:])
    return y if skip is None else ops.add_upsampled(y, skip, fir)


register("to_rgb", _fake, _backward, _setup)


def _gradient_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor,
    fir: Tensor | None,
    clamp: float,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    del clamp
    sides = (side // 2 for side in grad.shape[2:])
    skip = None if fir is None else (*grad.shape[:2], *sides)
    shapes = (x.shape, weight.shape, style.shape, bias.shape, skip)
    pairs = zip(shapes, needed, strict=True)
    return tuple(x.new_empty(shape if need and shape is not None else (0,)) for shape, need in pairs)


# Not differentiable: `_backward` does not use it where a second derivative may be needed.
torch.library.register_fake("wrangan::to_rgb_backward", _gradient_fake, lib=LIBRARY)
