"""The attribute net: a small convolutional net with one logit for each yes/no attribute of a face."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import FileError, UsageError, cause_of
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.models.folder import Model, load_weights, stored_weights

FILE_NAME = "attributes.safetensors"


@dataclass(frozen=True)
class AttributeConfig:
    """Shape of an attribute net, as stored in its file."""

    names: tuple[str, ...]
    """The attributes, in the order of the logits."""
    resolution: int = 64
    """Side in px to which images are resized before the first layer."""
    widths: tuple[int, ...] = (24, 32, 64, 96, 128)
    """Feature maps of the layers, each of which halves the side."""

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError("attributes: expected one or more names, each once")
        if not self.widths or any(width < 1 or width % _GROUPS for width in self.widths):
            raise ValueError(f"widths {self.widths}: expected multiples of {_GROUPS}")
        if self.resolution < 2 ** len(self.widths):
            raise ValueError(f"resolution {self.resolution} is too small for {len(self.widths)} halvings")

    def to_json(self) -> dict[str, Any]:
        """Plain values for the record of the file."""
        return {"names": list(self.names), "resolution": self.resolution, "widths": list(self.widths)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AttributeConfig":
        """The inverse of `to_json`; raises KeyError, TypeError or ValueError on a bad field."""
        widths = tuple(int(width) for width in data["widths"])
        return cls(tuple(map(str, data["names"])), int(data["resolution"]), widths)


# Group normalisation keeps the score of an image independent of its batch.
_GROUPS = 8


class _Block(nn.Module):
    """3×3 convolution of stride 2, then a 3×3 convolution with a skip around it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.GroupNorm(_GROUPS, out_channels)
        self.conv = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        return F.relu(x + self.norm(self.conv(x)))


class AttributeNet(nn.Module):
    """Logits of the attributes in `config.names`."""

    def __init__(self, config: AttributeConfig) -> None:
        super().__init__()
        self.config = config
        stem, *rest = config.widths
        # Only one thin layer at full size, which takes most of the time.
        self.stem = nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.GroupNorm(_GROUPS, stem)
        inputs = [stem, *rest][: len(rest)]
        self.blocks = nn.Sequential(*[_Block(i, o) for i, o in zip(inputs, rest, strict=True)])
        self.head = nn.Linear(config.widths[-1], len(config.names))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) float32 in [-1, 1], of any size → logits (B, len(names)).

        Larger images are reduced by area, smaller ones enlarged bilinearly. A logit
        above 0 means that the net finds the attribute more likely than not.
        """
        side = self.config.resolution
        if images.shape[-1] > side:
            images = F.interpolate(images, size=(side, side), mode="area")
        elif images.shape[-1] < side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        x = F.relu(self.stem_norm(self.stem(images.contiguous(memory_format=torch.channels_last))))
        return self.head(self.blocks(x).mean(dim=(2, 3)))

    def index(self, name: str) -> int:
        """Column of an attribute; UsageError lists the names if it is not one of them."""
        if name not in self.config.names:
            raise UsageError(f"attribute {name!r}: the net knows {', '.join(self.config.names)}")
        return self.config.names.index(name)


@torch.no_grad()
def attribute_logits(net: AttributeNet, images: Tensor, batch: int = 256) -> Tensor:
    """Logits of many images without gradients: (N, len(names)) float32 on the net's device.

    images: (N, 3, H, W) in [-1, 1] on any device; values outside are clipped, as in image files.
    """
    device = net.head.weight.device
    return torch.cat([net(part.to(device).clamp(-1, 1)) for part in images.split(batch)])


def save_attributes(path: Path, net: AttributeNet, record: Mapping[str, Any] | None = None) -> None:
    """Write the net in float16, with its shape and `record` (data, accuracy …), atomically."""
    weights = stored_weights(net, torch.float16)
    write_tensors(path, weights, {**(record or {}), "kind": "attributes", **net.config.to_json()})


def load_attributes(source: Model | Path, device: torch.device | str | None = None) -> AttributeNet:
    """The attribute net of a model, or of a file, in evaluation mode and float32.

    device: the model's, or the CPU for a file, if not given. Raises FileError when
    there is none, or the file is not an attribute net.
    """
    path = source if isinstance(source, Path) else source.companion(FILE_NAME)
    if path is None:
        assert not isinstance(source, Path)
        raise FileError(
            source.path / FILE_NAME,
            f"{source.name} has no attribute net (make one with `wrangan train attributes`)",
        )
    if device is None:
        device = "cpu" if isinstance(source, Path) else source.device
    tensors, record = read_tensors(path)
    if record.get("kind") != "attributes":
        raise FileError(path, "not an attribute net (made by `wrangan train attributes`)")
    try:
        config = AttributeConfig.from_json(record)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"bad settings of the attribute net ({cause_of(error)})") from error
    net = AttributeNet(config)
    load_weights(net, tensors, path)
    return net.to(device).eval().requires_grad_(False)
