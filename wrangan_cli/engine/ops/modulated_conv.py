"""Modulated convolution (StyleGAN2, eq. 1–3) with shared or per-image weights.

Instead of building modulated weights, the input is scaled by the style and the
output by the demodulation factor. The kernel itself is then the same for the whole
batch (one dense convolution), or differs per image only where θ differs
(a grouped convolution).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.ops.fir import up_conv_padding, upfirdn2d

DEMODULATION_EPSILON = 1e-8


def demodulation(weight: Tensor, style: Tensor, scale: float) -> Tensor:
    """1 / ‖scale · weight · style‖ per output channel: (B, O).

    weight: (O, I, k, k) or (B, O, I, k, k). style: (B, I).
    """
    energy = weight.square().sum(dim=(-1, -2))
    square = style.square()
    total = square @ energy.t() if energy.ndim == 2 else torch.einsum("boi,bi->bo", energy, square)
    return (total * scale**2 + DEMODULATION_EPSILON).rsqrt()


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    scale: float,
    demodulate: bool = True,
    up: bool = False,
    fir: Tensor | None = None,
) -> Tensor:
    """Convolve `x` with scale · weight · style, optionally doubling its size.

    x: (B, I, H, W). weight: (O, I, k, k), shared, or (B, O, I, k, k), one per image.
    style: (B, I), multiplies input channels. fir: the (taps, taps) kernel of gain 4
    that follows the stride-2 transposed convolution when `up`. With x in fp16 and
    `demodulate`, weight and style are first divided by their largest magnitude, which
    demodulation undoes: the sums then stay within fp16's range.
    Returns (B, O, H, W), or (B, O, 2H, 2W) when `up`.
    """
    batch, _, height, width = x.shape
    size = weight.shape[-1]
    if x.dtype == torch.float16 and demodulate:
        weight = weight / _largest(weight, (-3, -2, -1))
        style = style / _largest(style, (-1,))
    x = x * (style * scale).to(x.dtype)[:, :, None, None]
    kernel = weight.to(x.dtype)
    groups = 1
    if weight.ndim == 5:
        groups = batch
        x = x.reshape(1, -1, height, width)
    if up:
        if fir is None:
            raise ValueError("up-sampling needs the FIR kernel")
        kernel = kernel.transpose(-4, -3).reshape(-1, weight.shape[-4], size, size)
        x = F.conv_transpose2d(x, kernel, stride=2, groups=groups)
    else:
        kernel = kernel.reshape(-1, weight.shape[-3], size, size)
        x = F.conv2d(x, kernel, padding=size // 2, groups=groups)
    if groups > 1 or weight.ndim == 5:
        x = x.reshape(batch, weight.shape[-4], *x.shape[2:])
    if demodulate:
        x = x * demodulation(weight, style, scale).to(x.dtype)[:, :, None, None]
    if up:
        assert fir is not None
        x = upfirdn2d(x, fir, pad=up_conv_padding(fir.shape[0], size))
    return x


def _largest(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """max |values| over `dims`, kept as axes of length 1; a constant to the gradient, since it cancels."""
    return values.detach().abs().amax(dim=dims, keepdim=True).clamp(min=1e-8)
