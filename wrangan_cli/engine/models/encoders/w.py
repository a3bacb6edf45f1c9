"""The encoder from images into W (paper, Algorithm 1: w = E(x))."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import WBackbone, check_choices
from wrangan_cli.engine.models.efficientnet import WIDTH
from wrangan_cli.engine.models.encoders.blocks import EFFICIENTNET, body_layers, laid_out, resized
from wrangan_cli.engine.models.layers import EqualLinear


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder."""

    style_dim: int
    """Length of w."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """ir-se: feature maps of the stages; each halves the size."""
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    """ir-se: residual blocks of each stage (e4e's IR-SE50: 3, 4, 14, 3)."""
    input_side: int = 256
    """Side in px to which images are reduced by area averaging."""
    backbone: WBackbone = "ir-se"
    """The body: ir-se, or efficientnet-lite0, whose sizes are fixed."""

    def __post_init__(self) -> None:
        check_choices(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "EncoderConfig":
        """The inverse of `to_json`."""
        return cls(
            style_dim=data["style_dim"],
            widths=tuple(data["widths"]),
            blocks=tuple(data["blocks"]),
            input_side=data["input_side"],
            # Older files have ir-se without recording it.
            backbone=data.get("backbone", "ir-se"),
        )


class Encoder(nn.Module):
    """A convolutional body with one linear map into W; it predicts the offset from the mean of W.

    The body is that of e4e (Tov et al. 2021), with all sizes as settings, or that of EfficientNet-lite0. Its
    last map enters the linear map as 4×4 means, which preserve positions in the image.
    """

    w_mean: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.body, _ = body_layers(config.backbone, 3, config.widths, config.blocks)
        if config.backbone == EFFICIENTNET:
            # With so many inputs, the steps of a plain linear map would be too long.
            self.head: nn.Module = EqualLinear(WIDTH * 16, config.style_dim)
            nn.init.normal_(self.head.weight, std=0.1)
        else:
            inputs = config.widths[-1] * 16
            self.head = nn.Linear(inputs, config.style_dim)
            nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(inputs))
            nn.init.zeros_(self.head.bias)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.register_buffer("w_mean", torch.zeros(config.style_dim))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → w: (B, style_dim)."""
        images = laid_out(resized(images, self.config.input_side), self.config.backbone)
        return self.w_mean + self.head(self.pool(self.body(images)).flatten(1))
