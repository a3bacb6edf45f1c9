"""The residual StyleGAN2 discriminator; state-dict keys are rosinality's."""

import math

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Precision
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.layers import BiasLeakyReLU, Blur, EqualConv2d, EqualLinear
from wrangan_cli.engine.models.precision import LowPrecision, low_precision


class ResidualBlock(nn.Module):
    """(conv path + 1×1 skip) / √2, both halving the size."""

    def __init__(self, in_channels: int, out_channels: int, config: StyleGAN2Config) -> None:
        super().__init__()
        taps, clamp = config.fir_taps, config.conv_clamp
        self.conv1 = nn.Sequential(
            EqualConv2d(in_channels, in_channels, 3), BiasLeakyReLU(in_channels, clamp)
        )
        self.conv2 = nn.Sequential(
            Blur(taps, 3),
            EqualConv2d(in_channels, out_channels, 3, stride=2),
            BiasLeakyReLU(out_channels, clamp),
        )
        self.skip = nn.Sequential(Blur(taps, 1), EqualConv2d(in_channels, out_channels, 1, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, I, H, W) → (B, O, H/2, W/2)."""
        gain = math.sqrt(0.5)
        blur, conv, act = self.conv2
        y = act(conv(blur(self.conv1(x))), gain=gain)
        return y + self.skip(x) * gain


class Discriminator(nn.Module):
    """Images → realness logits."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.low_precision: LowPrecision | None = None
        widths = config.channels
        top = widths[config.resolution]
        self.convs = nn.Sequential(
            nn.Sequential(EqualConv2d(config.image_channels, top, 1), BiasLeakyReLU(top, config.conv_clamp)),
            *(
                ResidualBlock(widths[size], widths[size // 2], config)
                for size in reversed(config.resolutions[1:])
            ),
        )
        last = widths[4]
        self.final_conv = nn.Sequential(
            EqualConv2d(last + 1, last, 3), BiasLeakyReLU(last, config.conv_clamp)
        )
        self.final_linear = nn.Sequential(EqualLinear(last * 16, last, activate=True), EqualLinear(last, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → (B, 1) logits.

        B must be divisible by the group of min(B, config.stddev_group) images that
        share a standard deviation (ValueError otherwise). Activations are in
        `low_precision` if that is set; the logits are not.
        """
        x = images
        # The first layer, from RGB, works at the side of the following block.
        for layer, side in zip(self.convs, [images.shape[-1], *self.config.resolutions[:0:-1]], strict=True):
            if self.low_precision:
                x = x.to(self.low_precision.at(side, images.dtype))
            x = layer(x)
        x = x.to(images.dtype)
        x = torch.cat([x, self.minibatch_stddev(x)], dim=1)
        return self.final_linear(self.final_conv(x).flatten(1))

    def set_precision(self, name: Precision, top: int) -> None:
        """As `Generator.set_precision`."""
        self.low_precision = low_precision(name, top, self.config)

    def minibatch_stddev(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 1, h, w): mean standard deviation within each group.

        Image i belongs to group i mod (B / group), as in the published models.
        """
        batch, channels, height, width = x.shape
        group = min(batch, self.config.stddev_group or batch)
        if batch % group:
            raise ValueError(f"batch {batch} is not a multiple of the group of {group}")
        y = x.reshape(group, batch // group, channels, height, width)
        y = y.to(torch.promote_types(x.dtype, torch.float32))
        y = (y.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        return y.to(x.dtype).repeat(group).reshape(batch, 1, 1, 1).expand(-1, 1, height, width)
