"""A convolution of few input channels whose gradient in its input is fast on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ByRows(torch.autograd.Function):
    """conv2d of stride 1, whose gradient in x is taken one row of the filter at a time.

    The gradient of a convolution from C to O channels is one from O to C, and with C = 3 a vector
    unit of 16 lanes idles. Here it is a convolution with one row of the filter, from O to C·k
    channels, and the sum of its k parts, each shifted by a row: for 11×11 filters about three
    times as fast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        channels, side = weight.shape[1], weight.shape[2]
        # (O, C, k, k) → (C·k, O, 1, k), mirrored: the gradient is a correlation with the mirrored filter.
        rows = weight.flip(3).permute(1, 2, 0, 3).reshape(channels * side, -1, 1, side)
        parts = F.conv2d(grad, rows, padding=(0, side - 1 - ctx.padding)).unflatten(1, (channels, side))
        height = grad.shape[2]
        whole = parts.new_zeros(len(grad), channels, height + side - 1, parts.shape[-1])
        for dy in range(side):
            # What moved row y of the output through row dy of the filter: row y + dy of the padded image.
            whole[:, :, dy : dy + height] += parts[:, :, dy]
        return whole[:, :, ctx.padding : whole.shape[2] - ctx.padding], None, None, None


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 and square filters, for a frozen network that sees images.

    Same numbers, but for rounding; on the CPU the gradient in the image is fast. padding: less than `side`.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int, padding: int) -> None:
        if not 0 <= padding < side:
            raise ValueError(f"padding {padding}: expected 0 to {side - 1}")
        super().__init__(in_channels, out_channels, side, padding=padding)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H', W')."""
        frozen = not self.weight.requires_grad
        if frozen and input.requires_grad and input.device.type == "cpu":
            return _ByRows.apply(input, self.weight, self.bias, self.padding[0])
        return super().forward(input)
