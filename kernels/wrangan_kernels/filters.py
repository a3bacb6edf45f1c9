"""FIR filters, alone and with noise, bias and activation: shapes and gradients.

Filters are true convolutions (StyleGAN2, Karras et al. 2020, appendix B).
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.schemas import like, ops, plane_dot, register, sum_dtype

# upfirdn2d


def _resampled(side: int, taps: int, up: int, down: int, before: int, after: int) -> int:
    return (side * up + before + after - taps) // down + 1


def _upfirdn2d_fake(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    taps = kernel.shape[0]
    height, width = (_resampled(side, taps, up, down, before, after) for side in x.shape[2:])
    return like(x, (*x.shape[:2], height, width))


def _upfirdn2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, *ctx.numbers = inputs
    ctx.save_for_backward(kernel)
    ctx.sides, ctx.outputs = x.shape[2:], output.shape[2:]


def _upfirdn2d_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (kernel,) = ctx.saved_tensors
    up, down, before, after = ctx.numbers
    return _transposed(grad, kernel, up, down, before, after, ctx.sides), None, None, None, None, None


def _transposed(
    grad: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int, sides: tuple[int, int]
) -> Tensor:
    """The gradient of `upfirdn2d` with respect to an x of these sides: up and down are exchanged."""
    del after
    taps = kernel.shape[0]
    start = taps - 1 - before
    # Padding that makes each side exact; if they differ (a remainder of `down`), the rest is cut off.
    ends = [(n - 1) * up + taps - m * down - start for n, m in zip(sides, grad.shape[2:], strict=True)]
    x = ops.upfirdn2d(
        grad.contiguous() if _strange(grad) else grad, kernel.flip(0, 1), down, up, start, max(ends)
    )
    return x if tuple(x.shape[2:]) == tuple(sides) else x[:, :, : sides[0], : sides[1]]


def _strange(x: Tensor) -> bool:
    """Whether x is in neither of the two layouts that the kernels support."""
    return not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


register("upfirdn2d", _upfirdn2d_fake, _upfirdn2d_backward, _upfirdn2d_setup)


# fir_act


def _fir_act_fake(x: Tensor, kernel: Tensor | None, before: int, after: int, *others: Any) -> Tensor:
    del others
    taps = 1 if kernel is None else kernel.shape[0]
    height, width = (_resampled(side, taps, 1, 1, before, after) for side in x.shape[2:])
    return like(x, (*x.shape[:2], height, width))


def _fir_act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, before, after, noise, strength, scale, bias, *ctx.numbers = inputs
    ctx.pad, ctx.sides = (before, after), x.shape[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype
    # x is needed only for the gradient of the demodulation.
    ctx.save_for_backward(x if scale is not None and ctx.needs_input_grad[6] else None,
                          kernel, noise, strength, scale, output)  # fmt: skip


def _fir_act_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, kernel, noise, strength, scale, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if _strange(grad) or grad.is_contiguous() != y.is_contiguous():
        grad = grad.contiguous(memory_format=_layout(y))
    grad_x, grad_pre = ops.fir_act_backward(grad, y, kernel, *ctx.pad, scale, *ctx.numbers, *ctx.sides)
    if kernel is None and scale is None:
        grad_x = grad_pre
    grad_noise = grad_strength = grad_scale = grad_bias = None
    if noise is not None and (needs[4] or needs[5]):
        over_channels = grad_pre.sum(dim=1, keepdim=True, dtype=sum_dtype(grad_pre))
        if noise.shape[0] == 1:
            over_channels = over_channels.sum(dim=0, keepdim=True)
        if needs[4]:
            grad_noise = (over_channels * strength).to(noise.dtype)
        if needs[5]:
            grad_strength = (over_channels * noise).sum().reshape(strength.shape).to(strength.dtype)
    if x is not None:
        # <grad_pre, FIR(x)> = <FIRᵀ(scale ⊙ grad_pre), x> / scale: no second filtering.
        grad_scale = plane_dot(grad_x, x).to(scale.dtype) / scale
    if needs[7]:
        grad_bias = grad_pre.sum(dim=(0, 2, 3), dtype=sum_dtype(grad_pre)).to(ctx.bias_dtype)
    grad_in = grad_x if needs[0] else None
    return grad_in, None, None, None, grad_noise, grad_strength, grad_scale, grad_bias, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


register("fir_act", _fir_act_fake, _fir_act_grad, _fir_act_setup)


def _fir_act_backward_fake(
    grad: Tensor,
    y: Tensor,
    kernel: Tensor | None,
    before: int,
    after: int,
    scale: Tensor | None,
    slope: float,
    gain: float,
    clamp: float,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    del before, after, slope, gain, clamp
    pre = like(y, tuple(grad.shape))
    # Without filter and scale both would be the same, so one suffices.
    back = y.new_empty(0) if kernel is None and scale is None else like(y, (*grad.shape[:2], height, width))
    return back, pre


def _fir_act_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, y, kernel, ctx.before, ctx.after, scale, ctx.slope, ctx.gain, ctx.clamp, *_ = inputs
    del grad
    ctx.save_for_backward(y, kernel, scale, output[1])


def _fir_act_backward_grad(ctx: Any, grad_of_x: Tensor, grad_of_pre: Tensor) -> tuple[Any, ...]:
    """grad_x = FIRᵀ(scale ⊙ m ⊙ grad) and grad_pre = m ⊙ grad, with m the slope of the activation."""
    y, kernel, scale, grad_pre = ctx.saved_tensors
    filtered = grad_of_x if kernel is not None or scale is not None else torch.zeros_like(grad_of_pre)
    if kernel is not None:
        filtered = grad_of_x.contiguous() if _strange(grad_of_x) else grad_of_x
        filtered = ops.upfirdn2d(filtered, kernel, 1, 1, ctx.before, ctx.after)
    grad_scale = None
    total = filtered
    if scale is not None:
        total = filtered * scale.to(filtered.dtype)[:, :, None, None]
        if ctx.needs_input_grad[5]:
            grad_scale = plane_dot(grad_pre, filtered).to(scale.dtype)
    slopes = torch.where(y > 0, ctx.gain, ctx.gain * ctx.slope).to(y.dtype)
    if ctx.clamp >= 0:
        slopes = slopes * (y.abs() < ctx.clamp)
    grad = (total + grad_of_pre) * slopes
    return (grad, None, None, None, None, grad_scale, *[None] * 5)


register("fir_act_backward", _fir_act_backward_fake, _fir_act_backward_grad, _fir_act_backward_setup)


# add_upsampled


def _add_upsampled_fake(y: Tensor, skip: Tensor, kernel: Tensor) -> Tensor:
    del skip, kernel
    return like(y, tuple(y.shape))


def _add_upsampled_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, skip, kernel = inputs
    ctx.save_for_backward(kernel)
    ctx.sides = skip.shape[2:]


def _add_upsampled_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (kernel,) = ctx.saved_tensors
    grad_skip = None
    if ctx.needs_input_grad[1]:
        extra = kernel.shape[0] - 2
        grad_skip = _transposed(grad, kernel, 2, 1, (extra + 1) // 2 + 1, extra // 2, ctx.sides)
    return grad, grad_skip, None


register("add_upsampled", _add_upsampled_fake, _add_upsampled_backward, _add_upsampled_setup)
