"""MobileStyleGAN (Belousov 2021, arXiv 2104.04767): StyleGAN2's W, separable convolutions, wavelets.

The mapping network is the teacher's, so a w, a direction or a row of W+ has the same meaning as in the
StyleGAN2 from which it was distilled. A styled convolution is a depthwise 3×3 and a 1×1 (the first, at 4 px,
one dense 3×3) without demodulation; both weights may be random. The side is doubled by an inverse Haar
transform, which turns four channels into four pixels and has no weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import check_choices
from wrangan_cli.engine.models.generator import (
    Generator,
    GeneratorConfig,
    NoiseInput,
    NoiseMode,
    Offsets,
    RandomLayers,
    StyledWeight,
    random_names,
    read_random_layers,
    reduced,
)
from wrangan_cli.engine.models.layers import Constant, NoiseMaps, NoiseStrength, PixelNorm, offset_weight
from wrangan_cli.engine.ops.separable import (
    inverse_haar,
    modulated_pointwise,
    modulated_separable,
    styled_upsample,
)


@dataclass(frozen=True)
class MobileStyleGANConfig(GeneratorConfig):
    """Shape of a MobileStyleGAN generator."""

    architecture: ClassVar[str] = "mobile-stylegan"

    channels: dict[int, int]
    """Feature maps at each side 4, 8 …; all but the last must be multiples of 4."""
    num_latents: int = 18  # type: ignore[assignment]
    """Rows of a W+ code: as many as the teacher has, so that rows correspond."""
    style_dim: int = 512
    """Length of z and w."""
    mapping_layers: int = 8
    """Fully connected layers between z and w."""
    head: Literal["wavelet", "plain"] = "wavelet"
    """wavelet: the image is the inverse Haar transform of a 1×1 convolution, at twice the last side.
    plain: the 1×1 convolution itself, at the last side."""
    image_channels: int = 3
    """Colour channels."""
    randomized_layers: RandomLayers = 0
    """Which weights have a σ: of the last N styled convolutions, or by name."""

    def __post_init__(self) -> None:
        check_choices(self)
        counts = [self.num_latents, self.style_dim, self.mapping_layers, self.image_channels]
        if not all(isinstance(count, int) and count >= 1 for count in [*counts, *self.channels.values()]):
            raise ValueError("rows, style_dim, layers and channels must be whole numbers from 1 up")
        sides = sorted(self.channels)
        if len(sides) < 2 or sides != [4 * 2**k for k in range(len(sides))]:
            raise ValueError(f"channels at {sides} px: expected 4, 8, 16 … without a gap")
        if any(self.channels[side] % 4 for side in sides[:-1]):
            raise ValueError("the channels before an upsampling must be multiples of 4")
        if self.num_latents < 2 * self.blocks + 2:
            raise ValueError(f"{self.num_latents} rows of w: {self.blocks} blocks need {2 * self.blocks + 2}")
        random_names(read_random_layers(self.randomized_layers), self.weight_layers)

    @property
    def blocks(self) -> int:
        """Blocks after the first convolution; each doubles the side."""
        return len(self.channels) - 1

    @property
    def resolution(self) -> int:  # type: ignore[override]
        """Side of the square image in px."""
        return max(self.channels) * (2 if self.head == "wavelet" else 1)

    @property
    def weight_layers(self) -> dict[str, str]:
        """The styled convolution of each weight by the weight's name, in order of use."""
        layers = {"conv1.dense": "conv1"}
        for k in range(self.blocks):
            for conv in ("conv1", "conv2"):
                for part in ("depthwise", "pointwise"):
                    layers[f"layers.{k}.{conv}.{part}"] = f"layers.{k}.{conv}"
        return layers


class _Mapping(nn.Linear):
    """Linear, leaky ReLU 0.2, × √2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.2) * math.sqrt(2)


class _Weight(nn.Module):
    """μ and, if random, σ of one convolution's weight."""

    def __init__(self, shape: Sequence[int], randomized: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(math.prod(shape[1:])))
        self.std = nn.Parameter(torch.ones(shape)) if randomized else None

    def kernel(self, epsilon: Tensor | None, delta: Tensor | None) -> Tensor:
        """θ = μ + σ⊙ε + δ: (O, I, k, k), or (B, O, I, k, k) if ε or δ has a batch axis."""
        return offset_weight(self.weight, self.std, epsilon, delta)


class _Modulation(nn.Linear):
    """From w to the factors of the input channels."""

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__(style_dim, channels)
        nn.init.normal_(self.weight, std=1 / math.sqrt(style_dim))
        nn.init.ones_(self.bias)


class _StyledConv(nn.Module):
    """x · style, convolution (depthwise and 1×1, or dense), noise, bias, leaky ReLU without gain."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, parts: Mapping[str, bool]) -> None:
        """parts: which weights there are, and which of them are random."""
        super().__init__()
        self.modulation = _Modulation(style_dim, inputs)
        shapes = {
            "dense": (outputs, inputs, 3, 3),
            "depthwise": (inputs, 1, 3, 3),
            "pointwise": (outputs, inputs, 1, 1),
        }
        for part, randomized in parts.items():
            self.add_module(part, _Weight(shapes[part], randomized))
        self.parts = tuple(parts)
        self.noise = NoiseStrength()
        self.bias = nn.Parameter(torch.zeros(outputs))
        # The teacher's equalised learning rate: 1/√(inputs · 9), also for the separable form.
        self.scale = 1 / math.sqrt(inputs * 9)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, offsets: Mapping[str, Any]) -> Tensor:
        """x: (B, I, H, W), w: (B, style_dim) → (B, O, H, W). offsets: (ε, δ) by part."""
        style = self.modulation(w) * self.scale
        kernels = [getattr(self, part).kernel(*offsets[part]) for part in self.parts]
        added = None if noise is None else noise * self.noise.weight
        depthwise, mixing = (None, kernels[0]) if len(kernels) == 1 else kernels
        return modulated_separable(x, style, depthwise, mixing, added, self.bias)


class _Upsample(nn.Module):
    """x · style, then the inverse Haar transform: C channels → C/4 at twice the side."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.modulation = _Modulation(style_dim, channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return styled_upsample(x, self.modulation(w))


class _Block(nn.Module):
    def __init__(self, up: _Upsample, conv1: _StyledConv, conv2: _StyledConv) -> None:
        super().__init__()
        self.up, self.conv1, self.conv2 = up, conv1, conv2


class _ToImage(nn.Module):
    """x · style, a 1×1 convolution and a bias; after it the inverse Haar transform, for a wavelet head."""

    def __init__(self, channels: int, style_dim: int, colours: int, wavelet: bool) -> None:
        super().__init__()
        self.modulation = _Modulation(style_dim, channels)
        outputs = colours * 4 if wavelet else colours
        self.conv = _Weight((outputs, channels, 1, 1), randomized=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(channels)
        self.colours, self.wavelet = colours, wavelet

    def forward(self, x: Tensor, w: Tensor, side: int | None) -> Tensor:
        """The image, or its means at `side` px if that divides the side of x: then only the low band is used,
        half of which equals the means over 2×2 px; averaging precedes the convolution, since both are
        linear."""
        style = self.modulation(w) * self.scale
        weight: Tensor = self.conv.weight[:, :, 0, 0]
        bias: Tensor = self.bias
        smaller = side is not None and x.shape[-1] % side == 0
        if smaller and self.wavelet:
            weight, bias = weight[: self.colours] / 2, bias[: self.colours] / 2
        pool = x.shape[-1] // side if smaller and side is not None else 1
        bands = modulated_pointwise(x, style, weight, bias, pool)
        return inverse_haar(bands) if self.wavelet and not smaller else bands


class MobileStyleGANGenerator(Generator):
    """The generator of `MobileStyleGANConfig`."""

    config: MobileStyleGANConfig

    def __init__(self, config: MobileStyleGANConfig) -> None:
        super().__init__()
        self.config = config
        dim, widths = config.style_dim, list(config.channels.values())
        self.style = nn.Sequential(PixelNorm(), *[_Mapping(dim, dim) for _ in range(config.mapping_layers)])
        self.input = Constant(widths[0])
        random = random_names(config.randomized_layers, config.weight_layers)

        def conv(name: str, inputs: int, outputs: int, parts: Sequence[str]) -> _StyledConv:
            return _StyledConv(inputs, outputs, dim, {part: f"{name}.{part}" in random for part in parts})

        self.conv1 = conv("conv1", widths[0], widths[0], ["dense"])
        separable = ["depthwise", "pointwise"]
        self.layers = nn.ModuleList(
            _Block(
                _Upsample(before, dim),
                conv(f"layers.{k}.conv1", before // 4, width, separable),
                conv(f"layers.{k}.conv2", width, width, separable),
            )
            for k, (before, width) in enumerate(pairwise(widths))
        )
        self.to_img = _ToImage(widths[-1], dim, config.image_channels, config.head == "wavelet")
        self.noises = NoiseMaps(side for _, side, _ in self._places())

    def synthesis(
        self,
        w: Tensor,
        epsilon: Offsets | None = None,
        delta: Offsets | None = None,
        noise: NoiseMode | Sequence[Tensor] = "const",
        side: int | None = None,
    ) -> Tensor:
        self.check_w(w)
        given = {"epsilon": epsilon or {}, "delta": delta or {}}
        if len(w) == 1 or w.device.type != "cpu":
            return self._drawn(w, given, noise, side)
        # One by one on the CPU: styles can then be folded into the depthwise weights, and planes stay in
        # cache.
        images = []
        for row in range(len(w)):
            own = {
                kind: {name: value[row] if value.ndim == 5 else value for name, value in offsets.items()}
                for kind, offsets in given.items()
            }
            maps = noise
            if not isinstance(noise, str):
                maps = [m[row : row + 1] if len(m) > 1 else m for m in noise]
            images.append(self._drawn(w[row : row + 1], own, maps, side))
        return torch.cat(images)

    def _drawn(
        self,
        w: Tensor,
        given: Mapping[str, Offsets],
        noise: NoiseMode | Sequence[Tensor],
        side: int | None,
    ) -> Tensor:
        def row(index: int) -> Tensor:
            return w if w.ndim == 2 else w[:, index]

        def styled(x: Tensor, index: int) -> Tensor:
            name, _, at = places[index]
            layer = self._conv(name)
            offsets = {
                part: [given[kind].get(f"{name}.{part}") for kind in ("epsilon", "delta")]
                for part in layer.parts
            }
            return layer(x, row(at), self.noises.given(index, noise, len(x)), offsets)

        places = self._places()
        x = self.input.input.expand(len(w), -1, -1, -1)
        x = styled(x.contiguous(memory_format=torch.channels_last), 0)
        for k, block in enumerate(self.layers):
            assert isinstance(block, _Block)
            x = styled(block.up(x, row(2 * k + 1)), 2 * k + 1)
            x = styled(x, 2 * k + 2)
        image = self.to_img(x, row(2 * self.config.blocks + 1), side)
        return reduced(image, side)

    def weights(self) -> dict[str, StyledWeight]:
        found = {}
        before_up = {"conv1", *(f"layers.{k}.conv2" for k in range(self.config.blocks - 1))}
        for name, side, row in self._places():
            layer = self._conv(name)
            for part in layer.parts:
                key = f"{name}.{part}"
                weight = StyledWeight(getattr(layer, part), key, name, row, side)
                if part != "depthwise" and name in before_up:
                    # A quarter of the input of an upsampling is its low band.
                    weight = replace(weight, low=weight.shape[0] // 4)
                found[key] = weight
        return found

    def noise_inputs(self) -> dict[str, NoiseInput]:
        return self.noises.inputs({name: self._conv(name).noise for name, _, _ in self._places()})

    def _places(self) -> list[tuple[str, int, int]]:
        """Name, side in px and row of W+ of each styled convolution, in order of use."""
        places = [("conv1", 4, 0)]
        for k in range(self.config.blocks):
            places += [(f"layers.{k}.conv{i}", 8 * 2**k, 2 * k + i) for i in (1, 2)]
        return places

    def _conv(self, name: str) -> _StyledConv:
        layer = self.get_submodule(name)
        assert isinstance(layer, _StyledConv)
        return layer
