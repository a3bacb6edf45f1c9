"""The StyleGAN2 generator, with random weights in its last layers.

Keys of the state dict are rosinality's; a layer with random weights has one more,
`….conv.std` (σ), beside `….conv.weight` (μ).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Precision
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.generator import (
    Generator,
    NoiseInput,
    NoiseMode,
    Offsets,
    StyledWeight,
    random_names,
    reduced,
)
from wrangan_cli.engine.models.layers import (
    BiasLeakyReLU,
    Constant,
    EqualLinear,
    NoiseMaps,
    NoiseStrength,
    PixelNorm,
    offset_weight,
)
from wrangan_cli.engine.models.precision import LowPrecision, low_precision
from wrangan_cli.engine.ops.bias_act import bias_act
from wrangan_cli.engine.ops.dispatch import MOST_COLOURS, compiled, kernels, whole_layer
from wrangan_cli.engine.ops.fir import add_upsampled, fir_kernel
from wrangan_cli.engine.ops.modulated_conv import modulated_conv2d, styled_conv2d, weight_energy


class _Kernel(nn.Module):
    """Holds one FIR kernel as a buffer, under rosinality's key."""

    def __init__(self, taps: Sequence[float], gain: float) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(taps, gain))
        self.kernel: Tensor


class ModulatedConv2d(nn.Module):
    """μ (and σ, if random), the affine map from w to styles, and the convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        style_dim: int,
        demodulate: bool = True,
        up: bool = False,
        fir_taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0),
        randomized: bool = False,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, size, size)
        self.weight = nn.Parameter(torch.randn(1, *shape))
        self.std = nn.Parameter(torch.ones(shape)) if randomized else None
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.blur = _Kernel(fir_taps, gain=4.0) if up else None
        self.scale = 1.0 / math.sqrt(in_channels * size**2)
        self.demodulate = demodulate
        self.kept: tuple[Tensor, Tensor] | None = None
        """A weight and its energy, within `cached_weights`; valid only for that tensor."""

    def style(self, w: Tensor) -> Tensor:
        """The factors of the input channels, including the scale of the equalised learning rate:
        (B, style_dim) → (B, I)."""
        return self.modulation(w) * self.scale

    def kernel(self, epsilon: Tensor | None = None, delta: Tensor | None = None) -> Tensor:
        """θ = μ + σ⊙ε + δ: (O, I, k, k), or (B, O, I, k, k) if ε or δ has a batch axis."""
        return offset_weight(self.weight[0], self.std, epsilon, delta)

    def kernel_and_energy(
        self, epsilon: Tensor | None = None, delta: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`kernel`, and its energy (`weight_energy`) if that costs nothing: computed with
        the kernel, or cached (`cached_weights`)."""
        if epsilon is None and delta is None:
            kept = self.kept
            return self.weight[0], kept[1] if kept is not None and kept[0] is self.weight else None
        # Inversion needs θ = μ + σ⊙ε or μ + δ, one per photograph, in every step.
        offset, std = (epsilon, self.std) if delta is None else (delta, None)
        if offset is not None and (epsilon is None or (delta is None and std is not None)):
            same = offset.ndim == 5 and offset.dtype == self.weight.dtype
            if same and offset.device.type == "cpu" and compiled(offset):
                return kernels().random_weight(self.weight[0], std, offset.contiguous())
        return self.kernel(epsilon, delta), None

    def forward(
        self, x: Tensor, style: Tensor, epsilon: Tensor | None = None, delta: Tensor | None = None
    ) -> Tensor:
        """x: (B, I, H, W), style: from `style` → (B, O, H', W')."""
        weight, energy = self.kernel_and_energy(epsilon, delta)
        return modulated_conv2d(
            x,
            weight,
            style,
            demodulate=self.demodulate,
            up=self.blur is not None,
            fir=None if self.blur is None else self.blur.kernel,
            energy=energy,
        )


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, leaky ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, config: StyleGAN2Config, up: bool, randomized: bool
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(
            in_channels,
            out_channels,
            3,
            config.style_dim,
            up=up,
            fir_taps=config.fir_taps,
            randomized=randomized,
        )
        self.noise = NoiseStrength()
        self.activate = BiasLeakyReLU(out_channels, clamp=config.conv_clamp)

    def forward(
        self,
        x: Tensor,
        style: Tensor,
        noise: Tensor | None,
        epsilon: Tensor | None = None,
        delta: Tensor | None = None,
    ) -> Tensor:
        conv = self.conv
        weight, energy = conv.kernel_and_energy(epsilon, delta)
        return styled_conv2d(
            x,
            weight,
            style,
            noise,
            self.noise.weight,
            self.activate.bias,
            self.activate.clamp,
            up=conv.blur is not None,
            fir=None if conv.blur is None else conv.blur.kernel,
            energy=energy,
        )


class ToRGB(nn.Module):
    """1×1 modulated convolution without demodulation; the skip image is up-sampled by FIR."""

    def __init__(self, in_channels: int, config: StyleGAN2Config, up: bool) -> None:
        super().__init__()
        colours = config.image_channels
        self.conv = ModulatedConv2d(in_channels, colours, 1, config.style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, colours, 1, 1))
        self.upsample = _Kernel(config.fir_taps, gain=4.0) if up else None
        self.clamp = config.conv_clamp

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None) -> Tensor:
        weight = self.conv.weight[0, :, :, 0, 0]
        fir = None if skip is None or self.upsample is None else self.upsample.kernel
        if len(weight) <= MOST_COLOURS and whole_layer(x, fir, weight, style, skip):
            most = -1.0 if self.clamp is None else self.clamp
            return kernels().to_rgb(x, weight, style, self.bias.flatten(), skip, fir, most)
        y = bias_act(self.conv(x, style), self.bias.flatten(), activate=False, clamp=self.clamp)
        # The image is summed in the precision of w, whatever the precision of x.
        y = y.to(style.dtype)
        if skip is not None:
            assert self.upsample is not None
            y = add_upsampled(y, skip, self.upsample.kernel)
        return y


def noise_side(index: int) -> int:
    """Side in px of the output, and of the noise map, of the styled convolution `index`."""
    return 2 ** ((index + 5) // 2)


class _AllStyles:
    """The maps from w to all styles as a single map, with a row per input channel of each modulated
    convolution."""

    def __init__(self, convs: Sequence[ModulatedConv2d]) -> None:
        self.made_of = [tensor for conv in convs for tensor in (conv.modulation.weight, conv.modulation.bias)]
        maps = [(conv.modulation, conv.scale) for conv in convs]
        with torch.no_grad():
            rows = torch.cat([own.weight * (own.scale * scale) for own, scale in maps])
            # (style_dim, rows): a product with one w is a third faster on the CPU in this layout.
            self.weight = rows.t().contiguous()
            self.bias = torch.cat([own.bias * (own.lr_multiplier * scale) for own, scale in maps])
        self.widths = [len(own.bias) for own, _ in maps]

    def good_for(self, maps: Sequence[EqualLinear], dtype: torch.dtype) -> bool:
        """Whether it was made from these maps, none replaced, and accepts w of this dtype."""
        tensors = (tensor for own in maps for tensor in (own.weight, own.bias))
        return self.weight.dtype == dtype and all(
            mine is given for mine, given in zip(self.made_of, tensors, strict=True)
        )


class StyleGAN2Generator(Generator):
    """Karras et al. 2020: one weight per styled convolution, with the name of the layer."""

    config: StyleGAN2Config

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.low_precision: LowPrecision | None = None
        self.kept_styles: _AllStyles | None = None
        """Within `cached_weights`."""
        widths = config.channels
        mapping = [
            EqualLinear(
                config.style_dim,
                config.style_dim,
                lr_multiplier=config.mapping_lr_multiplier,
                activate=True,
            )
            for _ in range(config.mapping_layers)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = Constant(widths[4])
        names = config.layer_names
        random = random_names(config.randomized_layers, {name: name for name in names})
        self.conv1 = StyledConv(widths[4], widths[4], config, False, names[0] in random)
        self.to_rgb1 = ToRGB(widths[4], config, up=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for size in config.resolutions[1:]:
            for up in (True, False):
                index = len(self.convs) + 1
                inputs = widths[size // 2] if up else widths[size]
                layer = StyledConv(inputs, widths[size], config, up, names[index] in random)
                self.convs.append(layer)
            self.to_rgbs.append(ToRGB(widths[size], config, up=True))
        self.noises = NoiseMaps(map(noise_side, range(config.num_styled_convs)))

    def styled_convs(self) -> dict[str, StyledConv]:
        """All styled convolutions by name (`conv1`, `convs.0`, …), in order of use."""
        layers = {"conv1": self.conv1}
        for i, layer in enumerate(self.convs):
            assert isinstance(layer, StyledConv)
            layers[f"convs.{i}"] = layer
        return layers

    def _to_rgb(self, index: int) -> ToRGB:
        """The layer that makes the image after the styled convolution `index`, which is even."""
        layer = self.to_rgb1 if index == 0 else self.to_rgbs[index // 2 - 1]
        assert isinstance(layer, ToRGB)
        return layer

    def modulated_convs(self) -> list[tuple[int, ModulatedConv2d]]:
        """All modulated convolutions in order of use, each with the row of W+ that modulates it."""
        found: list[tuple[int, ModulatedConv2d]] = []
        for index, layer in enumerate(self.styled_convs().values()):
            found.append((index, layer.conv))
            if index % 2 == 0:
                found.append((index + 1, self._to_rgb(index).conv))
        return found

    def styles(self, w: Tensor) -> list[Tensor]:
        """The styles of `modulated_convs`, (B, I) each. w: (B, style_dim) or (B, num_latents, style_dim)."""
        convs = self.modulated_convs()
        if w.ndim == 3:
            return [conv.style(w[:, row]) for row, conv in convs]
        kept = self.kept_styles
        if kept is None or not kept.good_for([conv.modulation for _, conv in convs], w.dtype):
            return [conv.style(w) for _, conv in convs]
        return list(torch.addmm(kept.bias, w, kept.weight).split(kept.widths, dim=1))

    def synthesis(
        self,
        w: Tensor,
        epsilon: Offsets | None = None,
        delta: Offsets | None = None,
        noise: NoiseMode | Sequence[Tensor] = "const",
        side: int | None = None,
    ) -> Tensor:
        """As in the interface. Activations are in `low_precision` if that is set."""
        self.check_w(w)
        epsilon, delta = epsilon or {}, delta or {}
        styles = iter(self.styles(w))
        x = self.input.input.repeat(w.shape[0], 1, 1, 1)
        image: Tensor | None = None
        for index, (name, layer) in enumerate(self.styled_convs().items()):
            maps = self.noises.given(index, noise, x.shape[0])
            if self.low_precision:
                x = x.to(self.low_precision.at(noise_side(index), w.dtype))
            x = layer(x, next(styles), maps, epsilon.get(name), delta.get(name))
            if index % 2 == 0:
                image = self._to_rgb(index)(x, next(styles), image)
        assert image is not None
        return reduced(image, side)

    def weights(self) -> dict[str, StyledWeight]:
        """One per styled convolution, by the layer's name."""
        return {
            name: StyledWeight(layer.conv, f"{name}.conv", name, index, noise_side(index))
            for index, (name, layer) in enumerate(self.styled_convs().items())
        }

    def noise_inputs(self) -> dict[str, NoiseInput]:
        """One per styled convolution, by its number."""
        return self.noises.inputs({name: layer.noise for name, layer in self.styled_convs().items()})

    def set_precision(self, name: Precision, top: int) -> None:
        """As in the interface; fp16 needs a model that was made with a clamp."""
        self.low_precision = low_precision(name, top, self.config)

    @contextmanager
    def cached_weights(self) -> Iterator[None]:
        """As in the interface. Caches energies, for the demodulation, and the combined map from w to all
        styles."""
        convs = [conv for _, conv in self.modulated_convs()]
        mine = [c for c in convs if c.demodulate and c.kept is None and not c.weight.requires_grad]
        for conv in mine:
            conv.kept = (conv.weight, weight_energy(conv.weight[0]))
        first = self.kept_styles is None
        if first and not any(p.requires_grad for conv in convs for p in conv.modulation.parameters()):
            self.kept_styles = _AllStyles(convs)
        try:
            yield
        finally:
            for conv in mine:
                conv.kept = None
            if first:
                self.kept_styles = None
