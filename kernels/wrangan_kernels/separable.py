"""The layers of MobileStyleGAN: shapes and gradients. All channels_last. On the CPU float32, with channels a
multiple of the processor's vector (at most 16 floats); on a GPU also fp16 and bf16, and any channels: results
and gradients with respect to x have the dtype of x, whatever that of the weights, noise and biases.

separable_conv: y = leaky_relu(mixing · depthwise(x) + noise + bias). x (B, I, H, W), depthwise
(1 or B, I, 3, 3) including the style, zero padding; mixing (1 or B, O, I); noise (1 or B, 1, H, W);
bias (O,).
haar_up: the inverse Haar transform of x · style. x (B, C, H, W), style (B, C) → (B, C/4, 2H, 2W).
pooled_pointwise: weight · (mean of x over pool × pool pixels) + bias. x (B, I, H, W), weight (1 or B, C, I)
with C ≤ 16 (any, on a GPU), bias (C,) → (B, C, H/pool, W/pool), contiguous.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_kernels.schemas import LIBRARY, again_differentiable, ops, register, sum_dtype


def _channels_last(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def separable_parts(
    x: Tensor, depthwise: Tensor, mixing: Tensor, noise: Tensor | None, bias: Tensor, slope: float
) -> Tensor:
    """`separable_conv` by operations that can be differentiated again."""
    batch, inputs = x.shape[:2]
    weight = depthwise.to(x.dtype).expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding=1, groups=batch * inputs)
    y = torch.matmul(mixing.to(x.dtype), y.reshape(batch, inputs, -1)).unflatten(2, x.shape[2:])
    y = y + bias[:, None, None]
    return F.leaky_relu(y if noise is None else y + noise, slope).to(x.dtype)


def inverse_haar(x: Tensor) -> Tensor:
    """The orthonormal inverse Haar transform: (B, C, H, W) → (B, C/4, 2H, 2W), by PyTorch, any C.

    The first C/4 channels are the low band; then for each of them three neighbours: high along the
    rows' direction (vertical), high along the columns (horizontal), both. The high band's taps are (+, −).
    """
    batch, channels, height, width = x.shape
    out = channels // 4
    x = x.permute(0, 2, 3, 1)
    low, high = x[..., :out], x[..., out:].unflatten(-1, (out, 3))
    upper, lower = low + high[..., 0], low - high[..., 0]
    right, corner = high[..., 1] + high[..., 2], high[..., 1] - high[..., 2]
    pixels = torch.stack([upper + right, upper - right, lower + corner, lower - corner], dim=3) * 0.5
    # (B, H, W, 2·2, C/4) → (B, H, 2, W, 2, C/4)
    pixels = pixels.unflatten(3, (2, 2)).transpose(2, 3)
    return pixels.reshape(batch, 2 * height, 2 * width, out).permute(0, 3, 1, 2)


def haar_parts(x: Tensor, style: Tensor) -> Tensor:
    """`haar_up` by operations that can be differentiated again."""
    return inverse_haar(x * style.to(x.dtype)[:, :, None, None])


def pooled_parts(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """`pooled_pointwise` by operations that can be differentiated again."""
    if pool > 1:
        x = F.avg_pool2d(x, pool)
    y = torch.matmul(weight.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
    return (y + bias[:, None, None]).to(x.dtype)


def _separable_fake(x: Tensor, depthwise: Tensor, mixing: Tensor, *others: Any) -> Tensor:
    del depthwise, others
    return _channels_last(x, (x.shape[0], mixing.shape[1], *x.shape[2:]))


def _separable_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors, output)


def _separable_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, depthwise, mixing, noise, bias, y = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:5])
    found: list[Any]
    if torch.is_grad_enabled():
        tensors = [x, depthwise, mixing, noise, bias]
        found = again_differentiable(separable_parts, tensors, [ctx.slope], grad, needed)
    else:
        maps = 0 if noise is None else len(noise)
        found = list(ops.separable_conv_backward(grad, y, x, depthwise, mixing, maps, ctx.slope, needed))
        if noise is not None:
            found[3] = found[3].to(noise.dtype)
        found[4] = found[4].to(bias.dtype)
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), None)


def _haar_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _haar_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad)
    found: list[Any]
    if torch.is_grad_enabled():
        found = again_differentiable(haar_parts, ctx.saved_tensors, [], grad, needed)
    else:
        found = list(ops.haar_up_backward(grad, *ctx.saved_tensors, needed))
    return tuple(g if need else None for g, need in zip(found, needed, strict=True))


def _pooled_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    *tensors, ctx.pool = inputs
    ctx.save_for_backward(*tensors)


def _pooled_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:3])
    found: list[Any]
    if torch.is_grad_enabled():
        found = again_differentiable(pooled_parts, [x, weight, bias], [ctx.pool], grad, needed)
    else:
        found = list(ops.pooled_pointwise_backward(grad, x, weight, ctx.pool, needed))
        found[2] = found[2].to(bias.dtype)
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), None)


def _haar_fake(x: Tensor, style: Tensor) -> Tensor:
    del style
    return _channels_last(x, (len(x), x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3]))


def _pooled_fake(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    del bias
    return x.new_empty((len(x), weight.shape[1], x.shape[2] // pool, x.shape[3] // pool))


register("separable_conv", _separable_fake, _separable_backward, _separable_setup)
register("haar_up", _haar_fake, _haar_backward, _haar_setup)
register("pooled_pointwise", _pooled_fake, _pooled_backward, _pooled_setup)


def _only(needed: list[bool], *made: Tensor) -> tuple[Tensor, ...]:
    return tuple(t if need else t.new_empty((0,)) for t, need in zip(made, needed, strict=True))


def _separable_gradient_fake(
    grad: Tensor,
    y: Tensor,
    x: Tensor,
    depthwise: Tensor,
    mixing: Tensor,
    noise_maps: int,
    slope: float,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    del y, slope
    noise = x.new_empty((noise_maps, 1, *x.shape[2:]) if noise_maps else (0,), dtype=sum_dtype(x))
    bias = x.new_empty(grad.shape[1], dtype=sum_dtype(x))
    made = (_channels_last(x, x.shape), torch.empty_like(depthwise), torch.empty_like(mixing), noise, bias)
    return _only(needed, *made)


def _haar_gradient_fake(grad: Tensor, x: Tensor, style: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
    del grad
    return _only(needed, _channels_last(x, x.shape), torch.empty_like(style))


def _pooled_gradient_fake(
    grad: Tensor, x: Tensor, weight: Tensor, pool: int, needed: list[bool]
) -> tuple[Tensor, ...]:
    del pool
    bias = x.new_empty(grad.shape[1], dtype=sum_dtype(x))
    return _only(needed, _channels_last(x, x.shape), torch.empty_like(weight), bias)


# Not differentiable: the functions above do not use them where a second derivative may be needed.
for _name, _fake in (
    ("separable_conv", _separable_gradient_fake),
    ("haar_up", _haar_gradient_fake),
    ("pooled_pointwise", _pooled_gradient_fake),
):
    torch.library.register_fake(f"wrangan::{_name}_backward", _fake, lib=LIBRARY)
