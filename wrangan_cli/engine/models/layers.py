"""Building blocks shared by the generator, the discriminator and the encoders.

Attribute names follow rosinality's state-dict keys, so that rosinality's checkpoints load
without renaming (docs/conversion.md).
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wrangan_cli.engine.models.generator import NoiseInput, NoiseMode
from wrangan_cli.engine.ops.bias_act import LEAKY_GAIN, bias_act
from wrangan_cli.engine.ops.fir import down_conv_padding, fir_kernel, upfirdn2d
from wrangan_cli.engine.ops.modulated_conv import conv2d


class PixelNorm(nn.Module):
    """z / √(mean z² + 1e-8)."""

    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class Constant(nn.Module):
    """The learned input of a generator's first layer: (1, C, 4, 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class NoiseStrength(nn.Module):
    """A scalar, under rosinality's key."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class NoiseMaps(nn.Module):
    """The stored noise maps of a generator: white noise, (1, 1, side, side) each."""

    def __init__(self, sides: Iterable[int]) -> None:
        """sides: those of the styled convolutions' outputs in px, in order of use."""
        super().__init__()
        for index, side in enumerate(sides):
            self.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))

    def stored(self, index: int) -> Tensor:
        """(1, 1, side, side)."""
        stored: Tensor = getattr(self, f"noise_{index}")
        return stored

    def given(self, index: int, noise: NoiseMode | Sequence[Tensor], batch: int) -> Tensor | None:
        """The noise that a layer adds, by `noise` of `Generator.synthesis`: the stored map, a given one,
        random ones (batch, 1, side, side), or None."""
        if not isinstance(noise, str):
            return noise[index]
        if noise == "none":
            return None
        stored = self.stored(index)
        return stored if noise == "const" else torch.randn(batch, *stored.shape[1:], device=stored.device)

    def inputs(self, strengths: Mapping[str, NoiseStrength]) -> dict[str, NoiseInput]:
        """The result of `Generator.noise_inputs`. strengths: the `noise` of each styled convolution, by its
        name, in order of use."""
        return {
            str(index): NoiseInput(name, self.stored(index), strength.weight, f"{name}.noise.weight")
            for index, (name, strength) in enumerate(strengths.items())
        }


def offset_weight(mean: Tensor, std: Tensor | None, epsilon: Tensor | None, delta: Tensor | None) -> Tensor:
    """θ = μ + σ⊙ε + δ: (O, I, k, k), or (B, O, I, k, k) if ε or δ has a batch axis."""
    if epsilon is not None:
        if std is None:
            raise ValueError("this layer has no σ: epsilon does not apply to it")
        mean = mean + std * epsilon.to(mean.dtype)
    return mean if delta is None else mean + delta.to(mean.dtype)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate: weight (out, in) ~ N(0, 1) / lr."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.scale = lr_multiplier / math.sqrt(in_features)
        self.lr_multiplier = lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in) → (B, out)."""
        bias = self.bias if self.lr_multiplier == 1 else self.bias * self.lr_multiplier
        # One operation, with the scale on the few results rather than the many weights.
        x = torch.addmm(bias.to(x.dtype), x, self.weight.to(x.dtype).t(), alpha=self.scale)
        return bias_act(x, None, activate=True) if self.activate else x


class EqualConv2d(nn.Module):
    """Convolution without bias, equalised learning rate: weight (O, I, k, k) ~ N(0, 1)."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.scale = 1.0 / math.sqrt(in_channels * size**2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, I, H, W) → (B, O, H / stride, W / stride); padded only at stride 1."""
        padding = self.weight.shape[-1] // 2 if self.stride == 1 else 0
        weight = self.weight.to(x.dtype) * self.scale
        return conv2d(x, weight, self.stride, padding)


class BiasLeakyReLU(nn.Module):
    """Bias, leaky ReLU 0.2, gain √2, optional clamp."""

    def __init__(self, channels: int, clamp: float | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.clamp = clamp

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x: (B, C, …), same shape out; `gain` multiplies the result and the clamp."""
        clamp = None if self.clamp is None else self.clamp * gain
        return bias_act(x, self.bias, gain=LEAKY_GAIN * gain, clamp=clamp)


class Blur(nn.Module):
    """The FIR filter before a strided convolution; the kernel is a fixed buffer."""

    def __init__(self, taps: tuple[float, ...], conv_size: int) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel(taps))
        self.kernel: Tensor
        self.pad = down_conv_padding(len(taps), conv_size)

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, pad=self.pad)
