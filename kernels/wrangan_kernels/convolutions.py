"""3×3 convolutions with CPU kernels: shapes and gradients.

conv3x3: y = scale_out ⊙ conv(scale_in ⊙ x), scales (B, channels) or None; 3×3, stride 1, padding 1.
`transposed`: its gradient with respect to x, with the same weight (so channels are exchanged).
conv3x3_up: the same with a transposed convolution of stride 2, H → 2H + 1; weight also (O, I, 3, 3).
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.schemas import ops, plane_dot, register


def _sides(x: Tensor, transposed: bool, up: bool) -> list[int]:
    if not up:
        return list(x.shape[2:])
    return [side // 2 if transposed else 2 * side + 1 for side in x.shape[2:]]


def _convolution(name: str, up: bool) -> None:
    """Register the convolution `name` and its gradient with respect to the weight, each of which uses the
    other."""

    def convolve(*inputs: Any) -> Tensor:
        return getattr(ops, name)(*inputs)

    def correlate(*inputs: Any) -> Tensor:
        return getattr(ops, f"{name}_weight_grad")(*inputs)

    def fake(
        x: Tensor, weight: Tensor, scale_in: Tensor | None, scale_out: Tensor | None, transposed: bool
    ) -> Tensor:
        del scale_in, scale_out
        channels = weight.shape[-3 if transposed else -4]
        return x.new_empty((x.shape[0], channels, *_sides(x, transposed, up)))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scale_in, scale_out, ctx.transposed = inputs
        ctx.per_image = weight.ndim == 5
        needs = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs[1] or needs[2] else None,
            weight if needs[0] or needs[2] else None,
            scale_in,
            scale_out,
            output if needs[3] else None,
        )

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, scale_in, scale_out, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = grad_weight = grad_in = grad_out = None
        grad = grad.contiguous()
        if needs[2]:
            grad_x = convolve(grad, weight, scale_out, None, not ctx.transposed)
            grad_in = plane_dot(x, grad_x)
            grad_x = _scaled(grad_x, scale_in) if needs[0] else None
        elif needs[0]:
            grad_x = convolve(grad, weight, scale_out, scale_in, not ctx.transposed)
        if needs[1]:
            pairs = (grad, x, scale_out, scale_in) if ctx.transposed else (x, grad, scale_in, scale_out)
            grad_weight = correlate(*pairs, ctx.per_image)
        if needs[3]:
            grad_out = plane_dot(grad, y) / scale_out
        return grad_x, grad_weight, grad_in, grad_out, None

    register(name, fake, backward, setup)

    def weight_fake(
        x: Tensor, grad: Tensor, scale_in: Tensor | None, scale_out: Tensor | None, per_image: bool
    ) -> Tensor:
        del scale_in, scale_out
        shape = (grad.shape[1], x.shape[1], 3, 3)
        return x.new_empty((x.shape[0], *shape) if per_image else shape)

    def weight_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[:4])

    def weight_backward(ctx: Any, grad_weight: Tensor) -> tuple[Any, ...]:
        x, grad, scale_in, scale_out = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = grad_grad = grad_in = grad_out = None
        if needs[0]:
            grad_x = convolve(grad, grad_weight, scale_out, scale_in, True)
        if needs[1]:
            grad_grad = convolve(x, grad_weight, scale_in, scale_out, False)
        if needs[2]:
            grad_in = plane_dot(x, convolve(grad, grad_weight, scale_out, None, True))
        if needs[3]:
            grad_out = plane_dot(grad, convolve(x, grad_weight, scale_in, None, False))
        return grad_x, grad_grad, grad_in, grad_out, None

    register(f"{name}_weight_grad", weight_fake, weight_backward, weight_setup)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x times one number per plane; in place if no second derivative is needed."""
    factors = scale[:, :, None, None]
    return x * factors if torch.is_grad_enabled() else x.mul_(factors)


_convolution("conv3x3", up=False)
_convolution("conv3x3_up", up=True)
