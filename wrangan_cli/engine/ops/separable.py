"""Operations of MobileStyleGAN: separable styled convolution, inverse Haar transform, image of few channels.

They use kernels (kernels/wrangan_kernels/separable.py) if available, otherwise PyTorch. Everything is
channels_last, in which depthwise convolutions are three times as fast and a 1×1 convolution is
one matrix product (docs/benchmarks.md).
"""

import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels.separable import haar_parts, inverse_haar

from wrangan_cli.engine.ops.dispatch import compiled, kernels

__all__ = ["inverse_haar", "modulated_pointwise", "modulated_separable", "styled_upsample"]

SLOPE = 0.2
_VECTOR = 16
"""Channels per vector of the CPU kernels on the widest processor; they need multiples of it."""
_MOST_POOLED = 16


def _has_kernel(x: Tensor, *channels: int) -> bool:
    fit = x.device.type != "cpu" or all(count % _VECTOR == 0 for count in channels)
    return fit and compiled(x)


def modulated_separable(
    x: Tensor,
    style: Tensor,
    depthwise: Tensor | None,
    mixing: Tensor,
    noise: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """leaky ReLU(mix(depthwise(x · style)) + noise + bias), slope 0.2, no gain.

    x: (B, I, H, W). style: (B, I). depthwise: (I, 1, 3, 3) or (B, I, 1, 3, 3), zero padding; None: none.
    mixing: (O, I, k, k) or (B, O, I, k, k), k = 1 or 3. noise: (B or 1, 1, H, W). bias: (O,).
    Returns (B, O, H, W).
    """
    if depthwise is not None and _has_kernel(x, x.shape[1], mixing.shape[-4]):
        own = depthwise.reshape(-1, x.shape[1], 3, 3) * style[:, :, None, None]
        return kernels().separable_conv(x, own, mixing.reshape(-1, *mixing.shape[-4:-2]), noise, bias, SLOPE)
    if len(x) == 1:
        depthwise = None if depthwise is None else depthwise.reshape(depthwise.shape[-4:])
        mixing = mixing.reshape(mixing.shape[-4:])
        if depthwise is None:
            y = F.conv2d(x, mixing * style[0][:, None, None], bias, padding=mixing.shape[-1] // 2)
        else:
            # Apply the style to the few weights rather than the many pixels.
            y = F.conv2d(x, depthwise * style[0][:, None, None, None], padding=1, groups=x.shape[1])
            y = _pointwise(y, mixing[:, :, 0, 0], bias)
    else:
        y = x * style[:, :, None, None]
        if depthwise is not None:
            y = _each(y, depthwise, groups=x.shape[1])
        y = _each(y, mixing, groups=1) + bias[:, None, None]
    if noise is not None:
        y = y + noise
    return F.leaky_relu_(y, SLOPE)


def modulated_pointwise(x: Tensor, style: Tensor, weight: Tensor, bias: Tensor, pool: int = 1) -> Tensor:
    """weight · (x · style) + bias, of the means over pool × pool px.

    x: (B, I, H, W), style: (B, I), weight: (O, I), bias: (O,) → (B, O, H/pool, W/pool).
    """
    if len(weight) <= _MOST_POOLED and _has_kernel(x, x.shape[1]):
        return kernels().pooled_pointwise(x, weight * style[:, None], bias, pool)
    if pool > 1:
        x = F.avg_pool2d(x, pool)
    if len(x) == 1:
        return _pointwise(x, weight * style[0], bias)
    return _pointwise(x * style[:, :, None, None], weight, bias)


def styled_upsample(x: Tensor, style: Tensor) -> Tensor:
    """`inverse_haar` of x · style. x: (B, C, H, W), style: (B, C) → (B, C/4, 2H, 2W)."""
    if _has_kernel(x, x.shape[1] // 4):
        return kernels().haar_up(x, style)
    return haar_parts(x, style)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _each(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A convolution with zero padding, with a separate weight for each image if given."""
    padding = weight.shape[-1] // 2
    if weight.ndim == 4:
        return F.conv2d(x, weight, padding=padding, groups=groups)
    batch, outputs = weight.shape[:2]
    joined = x.reshape(1, -1, *x.shape[2:])
    y = F.conv2d(joined, weight.flatten(0, 1), padding=padding, groups=groups * batch)
    return y.reshape(batch, outputs, *y.shape[2:])
