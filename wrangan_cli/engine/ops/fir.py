"""FIR resampling of image batches (StyleGAN2, Karras et al. 2020, appendix B).

Without compiled kernels every filter runs as one depthwise convolution, for which oneDNN and
cuDNN have fast paths. Gradients of any order exist either way.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.ops.dispatch import compiled, filters, kernels, knows, laid_out

DEFAULT_TAPS = (1.0, 3.0, 3.0, 1.0)


def fir_kernel(taps: Sequence[float] = DEFAULT_TAPS, gain: float = 1.0) -> Tensor:
    """Separable 2-D kernel from 1-D `taps`: float32 (len, len), summing to `gain`."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel * (gain / kernel.sum())


def upfirdn2d(
    x: Tensor,
    kernel: Tensor,
    up: int = 1,
    down: int = 1,
    pad: tuple[int, int] = (0, 0),
) -> Tensor:
    """Insert zeros, pad, convolve, and take every `down`-th sample.

    x: (B, C, H, W) of any float dtype. kernel: (kh, kw), applied as a true
    convolution. pad: (before, after) on both axes after zero insertion; negative
    values crop. Returns (B, C, H', W') with H' = (H·up + before + after − kh) // down + 1.
    """
    if filters(x, kernel):
        return kernels().upfirdn2d(laid_out(x), kernel, up, down, *pad)
    channels = x.shape[1]
    kh, kw = kernel.shape
    weight = kernel.to(x.dtype).expand(channels, 1, kh, kw)
    if up == 1:
        weight = weight.flip(2, 3)
        if pad[0] == pad[1] and pad[0] >= 0:
            return F.conv2d(x, weight, stride=down, padding=pad[0], groups=channels)
        x = F.pad(x, (pad[0], pad[1], pad[0], pad[1]))
        return F.conv2d(x, weight, stride=down, groups=channels)
    # A transposed convolution is zero insertion followed by the full convolution;
    # the full one starts kh − 1 samples before the padded one does.
    rows = x.shape[2] * up + pad[0] + pad[1] - kh + 1
    cols = x.shape[3] * up + pad[0] + pad[1] - kw + 1
    top, left = kh - 1 - pad[0], kw - 1 - pad[0]
    bottom = rows + top - ((x.shape[2] - 1) * up + kh)
    right = cols + left - ((x.shape[3] - 1) * up + kw)
    if top == left == -bottom == -right and top >= 0:
        x = F.conv_transpose2d(x, weight, stride=up, padding=top, groups=channels)
    else:
        x = F.conv_transpose2d(x, weight, stride=up, groups=channels)
        x = F.pad(x, (-left, right, -top, bottom))
    return x[:, :, ::down, ::down] if down > 1 else x


def add_upsampled(y: Tensor, skip: Tensor, kernel: Tensor) -> Tensor:
    """y + skip enlarged twofold: y (B, C, 2H, 2W), skip (B, C, H, W), kernel (k, k) of gain 4."""
    # At any size: PyTorch's transposed convolution is slow for three channels.
    if y.dtype == skip.dtype and knows(kernel) and compiled(y):
        return kernels().add_upsampled(laid_out(y), laid_out(skip), kernel)
    return y + upfirdn2d(skip, kernel, up=2, pad=upsample_padding(kernel.shape[0]))


def upsample_padding(taps: int, factor: int = 2) -> tuple[int, int]:
    """(before, after) that make FIR up-sampling by `factor` exactly double a side."""
    extra = taps - factor
    return (extra + 1) // 2 + factor - 1, extra // 2


def up_conv_padding(taps: int, kernel_size: int, factor: int = 2) -> tuple[int, int]:
    """(before, after) of the FIR that follows a stride-2 transposed convolution."""
    extra = (taps - factor) - (kernel_size - 1)
    return (extra + 1) // 2 + factor - 1, extra // 2 + 1


def down_conv_padding(taps: int, kernel_size: int, factor: int = 2) -> tuple[int, int]:
    """(before, after) of the FIR that goes before a stride-2 convolution."""
    extra = (taps - factor) + (kernel_size - 1)
    return (extra + 1) // 2, extra // 2
