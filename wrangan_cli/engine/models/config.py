"""Settings of the two StyleGAN2 networks, as stored in a model's `config.json`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wrangan_cli.engine.models.generator import (
    GeneratorConfig,
    RandomLayers,
    random_names,
    read_random_layers,
)

if TYPE_CHECKING:
    from wrangan_cli.engine.models.discriminator import Discriminator


@dataclass(frozen=True)
class StyleGAN2Config(GeneratorConfig):
    """Shape of a generator and of its discriminator."""

    architecture: ClassVar[str] = "stylegan2"

    resolution: int
    """Side of the square image in px: a power of two from 8 to 1024."""
    channels: dict[int, int]
    """Feature maps at each resolution 4, 8 … `resolution`."""
    style_dim: int = 512
    """Length of z and w."""
    mapping_layers: int = 8
    """Fully connected layers between z and w."""
    mapping_lr_multiplier: float = 0.01
    """Learning-rate multiplier of the mapping network."""
    randomized_layers: RandomLayers = 0
    """N: the last N styled convolutions have random 3×3 weights (paper, section 3.4); or names of weights."""
    conv_clamp: float | None = None
    """Clamp of every layer's output (NVIDIA's fp16 models); None in rosinality's."""
    fir_taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)
    """1-D filter of all up- and down-sampling."""
    image_channels: int = 3
    """Colour channels."""
    stddev_group: int | None = 4
    """Images that share one standard deviation in the discriminator; None: the whole batch."""

    def __post_init__(self) -> None:
        counts = [self.style_dim, self.image_channels, self.mapping_layers, *self.channels.values()]
        if self.stddev_group is not None:
            counts.append(self.stddev_group)
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError("style_dim, layers, channels and stddev_group must be whole numbers from 1 up")
        if len(self.fir_taps) < 2 or not 0 < abs(sum(self.fir_taps)) < float("inf"):
            raise ValueError(f"fir_taps {self.fir_taps}: expected two or more numbers whose sum is not 0")
        if not self.mapping_lr_multiplier > 0 or not (self.conv_clamp is None or self.conv_clamp > 0):
            raise ValueError("mapping_lr_multiplier and conv_clamp must be above 0")
        sizes = self.resolutions
        if not 8 <= self.resolution <= 1024 or sizes[-1] != self.resolution:
            raise ValueError(f"resolution {self.resolution} is not a power of two in 8…1024")
        missing = [size for size in sizes if size not in self.channels]
        if missing:
            raise ValueError(f"no channel count for resolutions {missing}")
        random_names(read_random_layers(self.randomized_layers), {name: name for name in self.layer_names})

    @property
    def resolutions(self) -> list[int]:
        """[4, 8, …, resolution]."""
        return [2**i for i in range(2, self.resolution.bit_length())]

    @property
    def num_styled_convs(self) -> int:
        """Styled 3×3 convolutions: one at 4 px, two at each larger size."""
        return 2 * len(self.resolutions) - 1

    @property
    def layer_names(self) -> list[str]:
        """Names of the styled convolutions, rosinality's, in order of use; each has one weight."""
        return ["conv1", *(f"convs.{index}" for index in range(self.num_styled_convs - 1))]

    @property
    def num_latents(self) -> int:
        """Rows of a W+ code: one more than the styled convolutions."""
        return 2 * len(self.resolutions)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "StyleGAN2Config":
        """The inverse of `to_json`; raises as that of `GeneratorConfig`."""
        return super().from_json({**data, "fir_taps": tuple(data.get("fir_taps", cls.fir_taps))})

    def discriminator(self) -> "Discriminator":
        """The residual discriminator that StyleGAN2 is trained against."""
        from wrangan_cli.engine.models.discriminator import Discriminator  # avoids a circular import

        return Discriminator(self)


def rosinality_channels(resolution: int, multiplier: float = 2.0) -> dict[int, int]:
    """The channel table of rosinality's `channel_multiplier` (2 is "config-f")."""
    table = {4: 512, 8: 512, 16: 512, 32: 512}
    table |= {size: int(16384 // size * multiplier) for size in (64, 128, 256, 512, 1024)}
    return {size: width for size, width in table.items() if size <= resolution}
