"""HyperStyle (Alaluf et al. 2022, CVPR): a network that predicts how the generator's weights change.

From an image and its current reconstruction it predicts, for every styled convolution, an
offset Δ of each kernel; the layer then uses weight · (1 + Δ). The offsets of several
passes add up.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Backbone, SeparateHead, check_choices
from wrangan_cli.engine.models.encoders.blocks import (
    body_layers,
    encoder_input,
    halvings,
    laid_out,
    last_map,
    shrinking_convs,
)
from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.layers import EqualLinear


@dataclass(frozen=True)
class HypernetConfig:
    """Shape of a hypernetwork."""

    layers: dict[str, tuple[int, int]]
    """(output, input) channels of each weight that it changes, by name; (channels, 1) for depthwise ones."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Feature maps of the body's stages; each halves the size."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Residual blocks of each stage (ResNet34)."""
    input_side: int = 256
    """Side in px to which images are resized."""
    backbone: Backbone = "resnet"
    """`resnet`, `ir-se`, or `efficientnet-lite0`, which has fixed widths and blocks (empty here)."""
    shared_width: int = 512
    """Layers with this many input and output channels share one head; 0: no shared head."""
    shared_inner: int = 128
    """Feature maps in the refinement block of a layer with the shared head."""
    inner: int = 256
    """Feature maps in the refinement block of a layer with a separate head."""
    features: int = 512
    """Size of the output of a refinement block."""
    separate: SeparateHead = "separable"
    """Form of separate heads: `separable` (products of a vector for the inputs and one for the outputs,
    then mixed) or `linear` (every offset is a linear map of the features: large)."""
    rank: int = 1
    """Number of such products that are summed."""
    kernel: int = 1
    """1: one offset per kernel (the paper); 3: one for each of its nine weights (the published files).
    A `linear` head always has 1."""
    passes: int = 5
    """Number of passes over an image."""
    style_dim: int = 0
    """Length of a stored mean of w, to which the encoder's output is added in place of the encoder's mean;
    0: none (published files have one)."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.kernel not in (1, 3):
            raise ValueError(f"kernel {self.kernel}: expected 1 or 3")
        counts = (self.input_side, self.shared_inner, self.inner, self.features, self.rank, self.passes)
        if min(counts) < 1 or min(self.shared_width, self.style_dim) < 0 or not self.layers:
            raise ValueError("sizes, rank and passes must be 1 or more, and there must be layers")

    def shares(self, name: str) -> bool:
        """Whether a layer's offsets come from the shared head."""
        return self.shared_width > 0 and self.layers[name] == (self.shared_width, self.shared_width)

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "HypernetConfig":
        """The inverse of `to_json`; raises TypeError or ValueError on a bad field."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        layers = {}
        for name, (outputs, inputs) in fields["layers"].items():
            layers[str(name)] = (int(outputs), int(inputs))
        return cls(**{**fields, "layers": layers})


def layer_shapes(generator: Generator) -> dict[str, tuple[int, int]]:
    """(output, input) channels of the weights of a generator's styled convolutions by name; (channels, 1)
    for depthwise ones."""
    shapes = {name: weight.shape for name, weight in generator.weights().items()}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def all_kernels(generator: Generator) -> bool:
    """Whether all styled convolutions are 3×3, so that each of a kernel's nine weights can have an offset."""
    return all(weight.shape[2:] == (3, 3) for weight in generator.weights().values())


class SharedHead(nn.Module):
    """One map from a code to the offsets of a square layer, the same for all layers of that width."""

    def __init__(self, features: int, width: int, kernel: int) -> None:
        super().__init__()
        self.features, self.width, self.kernel = features, width, kernel
        spread = features**-0.5
        self.w2 = nn.Parameter(torch.randn(features, width * features) * spread)
        self.b2 = nn.Parameter(torch.zeros(width * features))
        # 0, so that training starts at the unchanged generator.
        self.w1 = nn.Parameter(torch.zeros(features, width * kernel**2))
        self.b1 = nn.Parameter(torch.zeros(width * kernel**2))

    def forward(self, code: Tensor) -> Tensor:
        """code: (B, features) → Δ (B, width, width, k, k)."""
        rows = (code @ self.w2 + self.b2).reshape(-1, self.width, self.features)
        offsets = rows @ self.w1 + self.b1
        return offsets.reshape(-1, self.width, self.width, self.kernel, self.kernel)


class SharedRefinement(nn.Module):
    """Features → the code of one layer, from which the shared head makes its offsets."""

    def __init__(self, channels: int, inner: int, features: int, side: int) -> None:
        super().__init__()
        count = max(1, halvings(side))
        self.convs = shrinking_convs([channels, *[inner] * count, features], [1, *[2] * count])
        self.linear = EqualLinear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, side, side) → (B, features)."""
        return self.linear(self.convs(x).flatten(1))


class SeparableRefinement(nn.Module):
    """Offsets as sums of products of an input and an output vector, mixed along both."""

    def __init__(self, channels: int, shape: tuple[int, int], config: HypernetConfig, side: int) -> None:
        super().__init__()
        count = max(2, halvings(side))
        self.convs = shrinking_convs([channels, *[config.inner] * (count - 1), config.features], [2] * count)
        self.shape, self.kernel, self.rank = shape, config.kernel, config.rank
        outputs, inputs = shape
        places = config.kernel**2 * config.rank
        self.make_in = nn.Linear(config.features, places * inputs)
        self.make_out = nn.Linear(config.features, places * outputs)
        self.mix_in = nn.Linear(inputs, inputs)
        self.mix_out = nn.Linear(outputs, outputs)
        # 0, so that training starts at the unchanged generator.
        nn.init.zeros_(self.mix_out.weight)
        nn.init.zeros_(self.mix_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, side, side) → Δ (B, outputs, inputs, k, k)."""
        features, k = self.convs(x).flatten(1), self.kernel
        outputs, inputs = self.shape
        across = self.make_in(features).reshape(-1, k, k, self.rank, inputs)
        along = self.make_out(features).reshape(-1, k, k, outputs, self.rank)
        offsets = self.mix_in(along @ across).transpose(-1, -2)
        return self.mix_out(offsets).permute(0, 4, 3, 1, 2)


class LinearRefinement(nn.Module):
    """Every offset a linear map of the features."""

    def __init__(self, channels: int, shape: tuple[int, int], config: HypernetConfig, side: int) -> None:
        super().__init__()
        count = max(2, halvings(side) - 1)
        self.convs = shrinking_convs([channels, *[config.inner] * (count - 1), config.features], [2] * count)
        self.shape = shape
        self.output = nn.Conv2d(config.features, shape[0] * shape[1], 1)
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, side, side) → Δ (B, outputs, inputs, 1, 1)."""
        features = F.adaptive_avg_pool2d(self.convs(x), 1)
        return self.output(features).reshape(-1, *self.shape, 1, 1)


class Hypernet(nn.Module):
    """(Image ‖ reconstruction) → offsets Δ of the weights of each layer."""

    w_mean: Tensor | None

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("w_mean", torch.zeros(config.style_dim) if config.style_dim else None)
        self.body, _ = body_layers(config.backbone, 6, config.widths, config.blocks)
        channels, side = last_map(config.backbone, config.widths, config.input_side)
        shared = [name for name in config.layers if config.shares(name)]
        self.shared_head = SharedHead(config.features, config.shared_width, config.kernel) if shared else None
        separate = SeparableRefinement if config.separate == "separable" else LinearRefinement
        self.refinements = nn.ModuleDict(
            {
                _key(name): SharedRefinement(channels, config.shared_inner, config.features, side)
                if name in shared
                else separate(channels, shape, config, side)
                for name, shape in config.layers.items()
            }
        )

    def forward(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Offsets Δ by layer name, (B, O, I, k, k) with k 1 or 3, to add to those of earlier passes.

        images: (B, 3, R, R), the photographs. reconstruction: (B, 3, S, S), their current reconstructions.
        """
        x = encoder_input(images, reconstruction, 6, self.config.input_side)
        x = laid_out(x, self.config.backbone)
        x = self.body(x)
        offsets = {}
        for name in self.config.layers:
            made = self.refinements[_key(name)](x)
            if self.config.shares(name):
                assert self.shared_head is not None
                made = self.shared_head(made)
            offsets[name] = made
        return offsets


def _key(name: str) -> str:
    return name.replace(".", "_")  # ModuleDict does not allow dots


def weight_offsets(generator: Generator, offsets: dict[str, Tensor]) -> dict[str, Tensor]:
    """δ = weight · Δ by name, (B, *shape of the weight), as for `Generator.synthesis` and codes."""
    weights = generator.weights()
    return {name: weights[name].mean * offset for name, offset in offsets.items()}


def refined(
    hypernet: Hypernet, generator: Generator, images: Tensor, w: Tensor, passes: int | None = None
) -> dict[str, Tensor]:
    """The offsets Δ by layer name of images (B, 3, R, R) after all passes, or the first few.

    w: (B, style_dim) or W+, the codes, which all passes use unchanged.
    """
    offsets: dict[str, Tensor] = {}
    for _ in range(passes or hypernet.config.passes):
        reconstruction = generator.synthesis(w, delta=weight_offsets(generator, offsets))
        made = hypernet(images, reconstruction)
        offsets = {name: offsets[name] + new if offsets else new for name, new in made.items()}
    return offsets
