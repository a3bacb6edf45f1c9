"""Parts of the encoders: the residual body, its blocks, and the heads for one latent each."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Backbone
from wrangan_cli.engine.models.efficientnet import STEM, WIDTH, efficientnet_lite0
from wrangan_cli.engine.models.layers import EqualLinear

EFFICIENTNET: Final = "efficientnet-lite0"
DEFAULT_BLOCKS = {"ir-se": (3, 4, 14, 3), "resnet": (3, 4, 6, 3)}
"""Blocks per stage of IR-SE50 and of ResNet34."""


class SqueezeExcite(nn.Module):
    """Channel gates from the mean of each map (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.down = nn.Linear(channels, hidden)
        self.up = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), same shape out."""
        gate = self.up(F.relu(self.down(x.mean(dim=(2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class ResidualSEBlock(nn.Module):
    """The improved residual unit of IR-SE networks: norm, conv, PReLU, conv, norm, gate."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcite(outputs),
        )
        self.skip: nn.Module
        if inputs == outputs:
            self.skip = nn.MaxPool2d(1, stride)
        else:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W) → (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return self.body(x) + self.skip(x)


class PlainResidualBlock(nn.Module):
    """The residual unit of ResNet34 (He et al. 2016): conv, norm, ReLU, conv, norm, and ReLU of the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W) → (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def body_layers(
    backbone: Backbone, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...]
) -> tuple[nn.Sequential, list[int]]:
    """The body of an encoder, and the index in it of each stage's last layer.

    channels: those of the input. Every stage halves the side (rounding up). `ir-se`: the stem keeps
    the side and the first block of each stage halves it; `resnet`: the stem halves it, and so
    do all stages except the first. `efficientnet-lite0` has fixed sizes, without `widths` and `blocks`, and
    is a single stage here. Raises ValueError for invalid sizes.
    """
    if backbone == EFFICIENTNET:
        if widths or blocks:
            raise ValueError(f"backbone {EFFICIENTNET} has fixed widths and blocks")
        return efficientnet_body(channels)
    if not widths or len(widths) != len(blocks):
        raise ValueError(f"{len(widths)} widths for {len(blocks)} stages of blocks")
    if min(*widths, *blocks, channels) < 1:
        raise ValueError("widths and blocks must be 1 or more")
    plain, first = backbone == "resnet", widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, first, 7, 2, 3, bias=False)
        if plain
        else nn.Conv2d(channels, first, 3, 1, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.PReLU(first),
    ]
    inputs, ends = first, []
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            halves = index == 0 and not (plain and stage == 0)
            block = PlainResidualBlock if plain else ResidualSEBlock
            layers.append(block(inputs, width, stride=2 if halves else 1))
            inputs = width
        ends.append(len(layers) - 1)
    return nn.Sequential(*layers), ends


def efficientnet_body(channels: int) -> tuple[nn.Sequential, list[int]]:
    """EfficientNet-lite0's body for images of `channels` channels, and the index of its last layer."""
    # In this layout depthwise convolutions are fast on the CPU.
    body = efficientnet_lite0().to(memory_format=torch.channels_last)
    if channels != 3:
        stem = body[0]
        assert isinstance(stem, nn.Conv2d)
        wider = nn.Parameter(torch.randn(STEM, channels, 3, 3) * math.sqrt(2 / (STEM * 9)))
        stem.weight, stem.in_channels = wider, channels
    return body, [len(body) - 1]


def laid_out(images: Tensor, backbone: str) -> Tensor:
    """Images in the memory layout of the body's weights, in which it is fast on the CPU."""
    return images.contiguous(memory_format=torch.channels_last) if backbone == EFFICIENTNET else images


def last_map(backbone: str, widths: tuple[int, ...], input_side: int) -> tuple[int, int]:
    """Channels and side in px of the body's last map."""
    if backbone == EFFICIENTNET:
        return WIDTH, stage_side(input_side, 4)
    return widths[-1], stage_side(input_side, len(widths) - 1)


def stage_side(input_side: int, stage: int) -> int:
    """Side in px of the maps after the stage (0, 1, …)."""
    for _ in range(stage + 1):
        input_side = (input_side + 1) // 2
    return input_side


def halvings(side: int) -> int:
    """The number of halvings (rounding up) from `side` to 1."""
    return max(0, math.ceil(math.log2(side)))


def shrinking_convs(channels: list[int], strides: list[int]) -> nn.Sequential:
    """3×3 convolutions from channels[i] to channels[i + 1], each followed by a leaky ReLU of 0.01."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU()]
    return nn.Sequential(*layers)


class PooledHeads(nn.Module):
    """Latents from the 4×4 means of a map: the first w by one linear map, as in the encoder into W, and the
    offsets of all further latents by a shared hidden layer and a linear map each."""

    def __init__(self, inputs: int, width: int, outputs: int, latents: int) -> None:
        """width: size of the hidden layer. The offsets are 0 until trained."""
        super().__init__()
        self.first = EqualLinear(inputs * 16, outputs)
        nn.init.normal_(self.first.weight, std=0.1)
        self.hidden = EqualLinear(inputs * 16, width)
        self.offsets = nn.ModuleList(EqualLinear(width, outputs) for _ in range(latents - 1))
        for offset in self.offsets:
            assert isinstance(offset, EqualLinear)
            nn.init.zeros_(offset.weight)

    def forward(self, x: Tensor, active: int) -> list[Tensor]:
        """x: (B, inputs, H, W) → the first w and the offsets of active - 1 latents, each (B, outputs)."""
        means = F.adaptive_avg_pool2d(x, 4).flatten(1)
        hidden = F.leaky_relu(self.hidden(means), 0.2)
        return [self.first(means), *(offset(hidden) for offset in list(self.offsets)[: active - 1])]


class StyleHead(nn.Module):
    """One latent from a feature map: strided convolutions down to 1 px, then an equalised linear map."""

    def __init__(self, inputs: int, width: int, outputs: int, side: int, silent: bool = False) -> None:
        """side: side of the feature map in px. silent: the output is 0 until trained."""
        super().__init__()
        count = max(1, halvings(side))
        self.convs = shrinking_convs([inputs, *[width] * count], [2] * count)
        self.linear = EqualLinear(width, outputs)
        if silent:
            nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, side, side) → (B, outputs)."""
        return self.linear(self.convs(x).flatten(1))


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, R, R) resized to the encoder's side: reduced by area averaging, or enlarged
    bilinearly."""
    if images.shape[-1] == side:
        return images
    mode = "area" if images.shape[-1] > side else "bilinear"
    return F.interpolate(images, size=(side, side), mode=mode)


def encoder_input(images: Tensor, reconstruction: Tensor | None, channels: int, side: int) -> Tensor:
    """The input of an encoder with `channels` channels at its `side`: images, or images ‖ reconstructions.

    images: (B, 3, R, R). reconstruction: (B, 3, S, S), where S may differ from R: photographs can be smaller
    than the model's images. Raises ValueError if it is missing or superfluous.
    """
    if (reconstruction is None) != (channels == 3):
        given = "without" if reconstruction is None else "with"
        raise ValueError(f"an encoder of {channels} channels, images {given} a current reconstruction")
    images = resized(images, side)
    return images if reconstruction is None else torch.cat([images, resized(reconstruction, side)], dim=1)
