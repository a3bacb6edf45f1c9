"""Encoders from images into W (paper, Algorithm 1: w = E(x))."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.errors import FileError, UsageError
from wrangan_cli.engine.model_folder import Model, load_weights
from wrangan_cli.engine.tensorfile import read_tensors

FILE = "encoder.safetensors"


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


class SqueezeExcite(nn.Module):
    """Channel gates from the mean of each map (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.down = nn.Linear(channels, hidden)
        self.up = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
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
        return self.body(x) + self.skip(x)


class Encoder(nn.Module):
    """An IR-SE network with one linear map into W; it predicts the offset from the mean of W.

    The body of e4e's encoder (Tov et al. 2021) with a single W head, all sizes settings.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(3, first, 3, 1, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.PReLU(first),
        ]
        inputs = first
        for width, count in zip(config.widths, config.blocks, strict=True):
            for index in range(count):
                layers.append(ResidualSEBlock(inputs, width, stride=2 if index == 0 else 1))
                inputs = width
        self.body = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Linear(inputs * 16, config.style_dim)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(self.head.in_features))
        nn.init.zeros_(self.head.bias)
        self.register_buffer("w_mean", torch.zeros(config.style_dim))
        self.w_mean: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → w: (B, style_dim)."""
        side = self.config.input_side
        if images.shape[-1] != side:
            mode = "area" if images.shape[-1] > side else "bilinear"
            images = F.interpolate(images, size=(side, side), mode=mode)
        return self.w_mean + self.head(self.pool(self.body(images)).flatten(1))


def load_encoder(model: Model) -> Encoder:
    """The encoder in a model's folder, on the model's device, in evaluation mode.

    Raises UsageError if there is none, FileError if it is broken or for another model.
    """
    path = model.path / FILE
    if not path.is_file():
        raise UsageError(
            f"model {model.name} has no {FILE}: train one with `wrangan train encoder`, "
            "or start from the mean of W with --init mean"
        )
    encoder, trained_for = read_encoder(path)
    if trained_for != model.sha256:
        raise FileError(path, f"was trained for another model, not for {model.name}")
    return encoder.to(model.device).eval().requires_grad_(False)


def read_encoder(path: Path) -> tuple[Encoder, str | None]:
    """The encoder in a file, on the CPU, and the sha256 of the model that it was trained for.

    Raises FileError if it is broken or something else.
    """
    tensors, record = read_tensors(path)
    try:
        encoder = Encoder(EncoderConfig.from_json(record["encoder"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"bad encoder settings ({error})") from error
    # A counter that batch normalisation keeps for training only.
    tensors |= {k: v for k, v in encoder.state_dict().items() if k.endswith("num_batches_tracked")}
    load_weights(encoder, tensors, path)
    return encoder, record.get("model_sha256")
