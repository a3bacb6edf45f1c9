"""EfficientNet-lite0 (Tan and Le 2019, without squeeze and excitation): only the body, trainable.

In plain PyTorch, so that a network with this body needs no other package. Padding follows TensorFlow:
if a convolution halves the side, the odd px of padding is at the right and at the bottom.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class _Stage:
    """Inverted residual blocks of one width."""

    width: int
    blocks: int
    kernel: int
    stride: int
    expansion: int = 6


STEM = 32
STAGES = (
    _Stage(16, 1, 3, 1, expansion=1),
    _Stage(24, 2, 3, 2),
    _Stage(40, 2, 5, 2),
    _Stage(80, 3, 3, 2),
    _Stage(112, 3, 5, 1),
    _Stage(192, 4, 5, 2),
    _Stage(320, 1, 3, 1),
)
WIDTH = STAGES[-1].width
"""Channels of the last map, whose side is 1/32 of the image's."""


class _PaddedConv(nn.Conv2d):
    """A convolution with ⌈side / stride⌉ px out, padded as TensorFlow does; without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(x)
        kernel, stride, sides = self.kernel_size[0], self.stride[0], []
        for side in (x.shape[-1], x.shape[-2]):
            missing = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            sides += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, sides), self.weight, None, self.stride, 0, 1, self.groups)


def _unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, eps=1e-3)
    return [_PaddedConv(inputs, outputs, kernel, stride, groups), norm]


class InvertedResidual(nn.Module):
    """1×1 to more channels, a depthwise convolution, 1×1 back; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widened = [*_unit(inputs, hidden), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*_unit(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6()]
        self.body = nn.Sequential(*widened, *depthwise, *_unit(hidden, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W) → (B, outputs, ⌈H / stride⌉, ⌈W / stride⌉)."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def efficientnet_lite0() -> nn.Sequential:
    """A network from images (B, 3, H, W) in [-1, 1], the range of the classifier's training, to maps
    (B, WIDTH, ⌈H / 32⌉, ⌈W / 32⌉)."""
    layers: list[nn.Module] = [*_unit(3, STEM, 3, 2), nn.ReLU6()]
    inputs = STEM
    for stage in STAGES:
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            layers.append(InvertedResidual(inputs, stage.width, stage.kernel, stride, stage.expansion))
            inputs = stage.width
    body = nn.Sequential(*layers)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return body


def load_pretrained(body: nn.Module, classifier: Mapping[str, Tensor]) -> None:
    """Load the weights of a whole classifier into `efficientnet_lite0()`: the same layers in the same order,
    whatever their names, without the layers after the body (1×1 convolution, norm, linear).

    Raises ValueError if a shape differs.
    """
    own = body.state_dict()
    for (name, tensor), given in zip(own.items(), classifier.values(), strict=False):
        if tensor.shape != given.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(given)
