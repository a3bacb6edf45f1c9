"""Modulated convolution (StyleGAN2, eq. 1–3) with shared or per-image weights.

Instead of building modulated weights, the input is scaled by the style and the
output by the demodulation factor. The kernel itself is then the same for the whole
batch (one dense convolution), or differs per image only where θ differs
(a grouped convolution).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels.modulated import demodulation

from wrangan_cli.engine.ops.bias_act import LEAKY_GAIN, LEAKY_SLOPE, bias_act
from wrangan_cli.engine.ops.dispatch import compiled, filters, kernels, laid_out, large, whole_layer
from wrangan_cli.engine.ops.fir import up_conv_padding, upfirdn2d


def weight_energy(weight: Tensor) -> Tensor:
    """Σ weight² over the taps: (…, O, I, k, k) → (…, O, I), which is all that demodulation needs."""
    return weight.square().sum(dim=(-1, -2))


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool = True,
    up: bool = False,
    fir: Tensor | None = None,
    energy: Tensor | None = None,
) -> Tensor:
    """Convolve `x` with weight · style, optionally doubling its size.

    x: (B, I, H, W). weight: (O, I, k, k), shared, or (B, O, I, k, k), one per image.
    style: (B, I), multiplies input channels; includes the scale of the equalised learning rate.
    fir: the (taps, taps) kernel of gain 4 that follows the stride-2 transposed convolution when `up`.
    energy: `weight_energy(weight)`, if known; otherwise it is computed for the demodulation.
    With x in fp16 and `demodulate`, weight and style are first divided by their largest magnitude,
    which demodulation undoes: the sums then stay within fp16's range.
    Returns (B, O, H, W), or (B, O, 2H, 2W) when `up`.
    """
    if up and fir is None:
        raise ValueError("up-sampling needs the FIR kernel")
    x, factors = convolved(x, weight, style, demodulate, up, energy)
    if factors is not None:
        x = x * factors.to(x.dtype)[:, :, None, None]
    return (
        x if fir is None or not up else upfirdn2d(x, fir, pad=up_conv_padding(fir.shape[0], weight.shape[-1]))
    )


def styled_conv2d(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    bias: Tensor,
    clamp: float | None = None,
    up: bool = False,
    fir: Tensor | None = None,
    energy: Tensor | None = None,
) -> Tensor:
    """A whole styled layer: `modulated_conv2d` (demodulated), + strength · noise, then `bias_act`.

    noise: (1 or B, 1, H', W') with the sides of the result, or None. strength: (1,). bias: (O,).
    """
    if weight.shape[-1] == 3 and whole_layer(x, fir if up else None, weight, style):
        before, after = up_conv_padding(fir.shape[0], 3) if up and fir is not None else (0, 0)
        return kernels().styled_conv(
            x.contiguous(),
            weight,
            weight_energy(weight) if energy is None else energy,
            style,
            noise,
            None if noise is None else strength,
            bias,
            fir if up else None,
            before,
            after,
            LEAKY_SLOPE,
            LEAKY_GAIN,
            -1.0 if clamp is None else clamp,
        )[0]
    if not large(x) or (up and (fir is None or not filters(x, fir))):
        x = modulated_conv2d(x, weight, style, True, up, fir, energy)
        if noise is not None:
            x = x + (strength * noise).to(x.dtype)
        return bias_act(x, bias, clamp=clamp)
    x, factors = convolved(x, weight, style, True, up, energy)
    before, after = up_conv_padding(fir.shape[0], weight.shape[-1]) if up and fir is not None else (0, 0)
    return kernels().fir_act(
        laid_out(x),
        fir if up else None,
        before,
        after,
        noise,
        None if noise is None else strength,
        factors,
        bias,
        LEAKY_SLOPE,
        LEAKY_GAIN,
        -1.0 if clamp is None else clamp,
    )


def convolved(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    demodulate: bool,
    up: bool,
    energy: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The convolution of `modulated_conv2d` before its FIR filter, and the factors (B, O) of the demodulation
    if they still have to be applied."""
    batch, _, height, width = x.shape
    size = weight.shape[-1]
    if x.dtype == torch.float16 and demodulate:
        weight, energy = weight / _largest(weight, (-3, -2, -1)), None
        style = style / _largest(style, (-1,))
    factors = None
    if demodulate:
        factors = demodulation(weight_energy(weight) if energy is None else energy, style)
    if size == 3 and x.device.type == "cpu" and weight.dtype == x.dtype and compiled(x):
        convolve = kernels().conv3x3_up if up else kernels().conv3x3
        return convolve(x, weight, style, factors, False), None
    x = x * style.to(x.dtype)[:, :, None, None]
    kernel = weight.to(x.dtype)
    groups = 1
    if weight.ndim == 5:
        groups = batch
        x = x.reshape(1, -1, height, width)
    if up:
        kernel = kernel.transpose(-4, -3).reshape(-1, weight.shape[-4], size, size)
        x = F.conv_transpose2d(x, kernel, stride=2, groups=groups)
    else:
        kernel = kernel.reshape(-1, weight.shape[-3], size, size)
        x = F.conv2d(x, kernel, padding=size // 2, groups=groups)
    if weight.ndim == 5:
        x = x.reshape(batch, weight.shape[-4], *x.shape[2:])
    return x, factors


def conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """A plain convolution without bias: x (B, I, H, W), weight (O, I, k, k) of the same dtype."""
    if weight.shape[-1] == 3 and x.device.type == "cpu" and weight.dtype == x.dtype and compiled(x):
        if stride == padding == 1:
            return kernels().conv3x3(x, weight, None, None, False)
        if stride == 2 and padding == 0 and all(side % 2 and side > 1 for side in x.shape[2:]):
            # The gradient of the up-sampling convolution, with inputs and outputs exchanged.
            return kernels().conv3x3_up(x, weight.transpose(0, 1), None, None, True)
    return F.conv2d(x, weight, stride=stride, padding=padding)


def _largest(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """max |values| over `dims`, kept as axes of length 1; without gradient, since it cancels."""
    return values.detach().abs().amax(dim=dims, keepdim=True).clamp(min=1e-8)
