"""The encoder from images into W (paper, Algorithm 1: w = E(x))."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.models.encoders.blocks import body_layers, fitted


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder."""

    style_dim: int
    """Length of w."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Feature maps of the stages; each halves the size."""
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    """Residual blocks of each stage (e4e's IR-SE50: 3, 4, 14, 3)."""
    input_side: int = 256
    """Images are reduced by area to this side."""

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
        )


class Encoder(nn.Module):
    """An IR-SE network with one linear map into W; it predicts the offset from the mean of W.

    The body of e4e's encoder (Tov et al. 2021) with a single W head, all sizes settings.
    """

    w_mean: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.body, _ = body_layers("ir-se", 3, config.widths, config.blocks)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(config.widths[-1] * 16, config.style_dim)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(self.head.in_features))
        nn.init.zeros_(self.head.bias)
        self.register_buffer("w_mean", torch.zeros(config.style_dim))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → w: (B, style_dim)."""
        images = fitted(images, self.config.input_side)
        return self.w_mean + self.head(self.pool(self.body(images)).flatten(1))
