"""Convolutions for frozen networks that see images, faster on the CPU than PyTorch's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.ops.dispatch import compiled
from wrangan_cli.engine.ops.modulated_conv import conv2d

_FEW = 36
"""Number of pixels of a whole batch up to which the layout does not matter."""


class _ByRows(torch.autograd.Function):
    """conv2d of stride 1, whose gradient with respect to x is computed one filter row at a time.

    The gradient of a convolution from C to O channels is a convolution from O to C, and with C = 3 most of
    16 vector lanes idle. Here it is a convolution with one row of the filter, from O to C·k
    channels, followed by the sum of its k parts, each shifted by a row: about three times as fast for
    11×11 filters.
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
            # Row y of the output depends, through row dy of the filter, on row y + dy of the padded image.
            whole[:, :, dy : dy + height] += parts[:, :, dy]
        return whole[:, :, ctx.padding : whole.shape[2] - ctx.padding], None, None, None


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of stride 1 and square filters, for a frozen network that sees images.

    Same results, except for rounding; the gradient with respect to the image is fast on the CPU. padding:
    less than `side`.
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


class FrozenConv3x3(nn.Conv2d):
    """`nn.Conv2d` with 3×3 filters, stride 1 and padding 1, by compiled kernels if available.

    Same results, except for rounding. Activations in the other layout are left to PyTorch, unless they are
    small (the time then goes into reading the filters, which PyTorch does more than once). Filters should be
    contiguous.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H, W)."""
        few = input.shape[0] * input.shape[2] * input.shape[3] <= _FEW
        if input.device.type != "cpu" or not compiled(input) or not (few or input.is_contiguous()):
            return super().forward(input)
        y = conv2d(input, self.weight, padding=1)
        return y if self.bias is None else y + self.bias[:, None, None]


def with_frozen_convs(network: nn.Module) -> None:
    """Replace the 3×3 convolutions of a frozen network by FrozenConv3x3 where they match, in place."""
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
                continue
            sides = ((3, 3), (1, 1), (1, 1), (1, 1))
            if (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == sides:
                with torch.device("meta"):
                    own = FrozenConv3x3(conv.in_channels, conv.out_channels)
                own.weight, own.bias = conv.weight, conv.bias
                own.weight.data = conv.weight.data.contiguous()
                setattr(parent, name, own)
