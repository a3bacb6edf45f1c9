"""The interface of generators of every architecture, in this one place.

An architecture is a subclass of `GeneratorConfig` and one of `Generator`, named in
`architectures.py`. Nothing outside `engine/models/` depends on which one a model has.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Precision
from wrangan_cli.engine.base.errors import UsageError

if TYPE_CHECKING:
    from wrangan_cli.engine.models.discriminator import Discriminator

NoiseMode = Literal["const", "random", "none"]
Offsets = Mapping[str, Tensor]
RandomLayers = int | tuple[str, ...]
"""Which weights are random: those of the last N styled convolutions, or those of these names. A name is that
of a weight, of a layer, or a prefix of several layers up to a dot (`layers.3`)."""


class GeneratorConfig(ABC):
    """Shape of a generator, as `config.json` stores it; subclasses are frozen dataclasses."""

    architecture: ClassVar[str]
    """Name in `config.json`."""
    resolution: int
    """Side of the square image in px."""
    channels: dict[int, int]
    """Feature maps at each side in px."""
    style_dim: int
    """Length of z and w."""
    image_channels: int
    """Colour channels."""
    randomized_layers: RandomLayers
    """Which weights have a σ (paper, section 3.4)."""

    @property
    @abstractmethod
    def num_latents(self) -> int:
        """Rows of a W+ code."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for `config.json`, without the architecture's name."""
        data = asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses
        return {name: _plain(value) for name, value in data.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`; on a bad field raises KeyError, TypeError, ValueError or
        AttributeError."""
        fields = dict(data)
        fields["channels"] = {int(side): int(width) for side, width in fields["channels"].items()}
        if "randomized_layers" in fields:
            fields["randomized_layers"] = read_random_layers(fields["randomized_layers"])
        return cls(**fields)

    def with_random(self, which: RandomLayers) -> Self:
        """The same generator with these weights random; ValueError for weights that it does not have."""
        return replace(self, randomized_layers=which)  # type: ignore[type-var]  # subclasses are dataclasses

    def discriminator(self) -> "Discriminator":
        """A new discriminator of this architecture; UsageError if it has none."""
        raise UsageError(
            f"{self.architecture} has no discriminator: use --discriminator projected, or σ by sensitivity"
        )


@dataclass(frozen=True)
class StyledWeight:
    """A weight of a styled convolution, which may be random: θ = μ + σ⊙ε + δ."""

    owner: nn.Module
    """Holds μ as `weight`, of `shape`, possibly with a leading axis of 1, and σ as `std`, of `shape`, or
    None."""
    key: str
    """Name of the owner in the state dict."""
    layer: str
    """Name of the styled convolution that it belongs to; a convolution may have several weights."""
    row: int
    """Row of W+ that modulates it."""
    side: int
    """Side in px of its output feature maps."""
    low: int | None = None
    """Number of leading output channels that determine the image at `side`; the others add detail that is
    only visible at twice that side. None: all determine it."""

    def visible_outputs(self, side: int) -> int:
        """Number of its leading output channels that are visible in images of `side` px."""
        if side < self.side:
            return 0
        outputs = self.shape[0]
        return outputs if self.low is None or side >= 2 * self.side else self.low

    @property
    def mean(self) -> Tensor:
        """μ: (O, I, k, k)."""
        weight = self.owner.weight
        assert isinstance(weight, Tensor)
        return weight[0] if weight.ndim == 5 else weight

    @property
    def std(self) -> nn.Parameter | None:
        """σ: (O, I, k, k); None if the weight is not random."""
        std = self.owner.std
        assert std is None or isinstance(std, Tensor)
        return std  # type: ignore[return-value]

    @property
    def shape(self) -> torch.Size:
        """(O, I, k, k)."""
        return self.mean.shape


@dataclass(frozen=True)
class NoiseInput:
    """The noise that a styled convolution adds: strength · map."""

    layer: str
    """Name of the styled convolution."""
    map: Tensor
    """The stored map, white noise of mean square 1: (1, 1, side, side)."""
    strength: nn.Parameter
    """One number; 0 in a generator without noise."""
    strength_key: str
    """Its name in the state dict."""


class Generator(nn.Module, ABC):
    """`mapping` z → w, `synthesis` w → image; weights that may be random, noise inputs, all by name."""

    config: GeneratorConfig
    style: nn.Module
    """The mapping network."""

    def mapping(self, z: Tensor) -> Tensor:
        """z: (B, style_dim) ~ N(0, 1) → w: (B, style_dim)."""
        w: Tensor = self.style(z)
        return w

    @abstractmethod
    def synthesis(
        self,
        w: Tensor,
        epsilon: Offsets | None = None,
        delta: Offsets | None = None,
        noise: NoiseMode | Sequence[Tensor] = "const",
        side: int | None = None,
    ) -> Tensor:
        """Images (B, 3, R, R), nominally in [-1, 1] and not clipped.

        w: (B, style_dim) in W, or (B, num_latents, style_dim) in W+. epsilon, delta: by the names of
        `weights`, ε (in units of σ) and a plain offset, each (O, I, k, k) for the whole batch or
        (B, O, I, k, k) per image. Without ε a random weight equals its mean. noise: the stored maps,
        random ones, none, or given maps (B or 1, 1, side, side), one for each of `noise_inputs`. side: if R
        is larger, reduce the images to this side by area averaging (`reduced`): (B, 3, side, side).
        """

    def forward(self, z: Tensor, noise: NoiseMode = "random") -> Tensor:
        """z: (B, style_dim) → images (B, 3, R, R), ε = 0."""
        return self.synthesis(self.mapping(z), noise=noise)

    @abstractmethod
    def weights(self) -> dict[str, StyledWeight]:
        """The weights of all styled convolutions by name, in order of use; ε, σ and δ use these names."""

    @abstractmethod
    def noise_inputs(self) -> dict[str, NoiseInput]:
        """The noise inputs in order of use, by their number ("0", "1", …), which codes store."""

    def synthesis_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that an image depends on when w is given and ε is 0, by name in the state
        dict: not the mapping, not σ."""
        named = ((name.split("."), name, parameter) for name, parameter in self.named_parameters())
        return {
            name: parameter for parts, name, parameter in named if parts[0] != "style" and "std" not in parts
        }

    def cached_weights(self) -> AbstractContextManager[None]:
        """Within this block values that depend only on the weights may be computed once. The weights must
        not be changed in place; replacing them (functional_call) is detected."""
        return nullcontext()

    def set_precision(self, name: Precision, top: int) -> None:
        """Compute the `top` largest resolutions in the precision `name` during training.

        Raises UsageError if the architecture does not support it.
        """
        if name != "float32" and top > 0:
            raise UsageError(f"precision {name}: {self.config.architecture} supports only float32")

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def layer_names(self) -> list[str]:
        """Names of the styled convolutions, in order of use."""
        return list(dict.fromkeys(weight.layer for weight in self.weights().values()))

    def random_weights(self) -> dict[str, StyledWeight]:
        """Those of `weights` that have a σ."""
        return {name: weight for name, weight in self.weights().items() if weight.std is not None}

    def check_w(self, w: Tensor) -> None:
        """ValueError for a w that is neither in W nor in W+."""
        rows, length = self.config.num_latents, self.config.style_dim
        if w.shape[1:] not in ((length,), (rows, length)):
            raise ValueError(f"w has shape {tuple(w.shape)}; expected (B, {length}) or (B, {rows}, {length})")


def reduced(images: Tensor, side: int | None) -> Tensor:
    """Square images (B, C, R, R) reduced by area averaging to `side` px if R is larger; None: unchanged."""
    if side is None or images.shape[-1] <= side:
        return images
    return F.interpolate(images, size=(side, side), mode="area")


def _plain(value: Any) -> Any:
    """The value in JSON types: lists, and keys as strings, in numerical order."""
    if isinstance(value, dict):
        return {str(key): own for key, own in sorted(value.items())}
    return list(value) if isinstance(value, tuple) else value


def read_random_layers(value: Any) -> RandomLayers:
    """RandomLayers from JSON, a number or a list of names; TypeError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise TypeError(f"randomized_layers {value!r}: expected a whole number or a list of names")


def random_names(which: RandomLayers, weights: Mapping[str, str]) -> set[str]:
    """The names of the weights that `which` makes random.

    weights: the layer of each weight by the weight's name, in order of use. Raises ValueError for
    more layers than there are, or an unknown name.
    """
    layers = list(dict.fromkeys(weights.values()))
    if isinstance(which, int):
        if not 0 <= which <= len(layers):
            raise ValueError(f"randomized_layers {which} is outside 0…{len(layers)}")
        chosen = set(layers[len(layers) - which :])
        return {name for name, layer in weights.items() if layer in chosen}
    found: set[str] = set()
    for asked in which:
        some = {name for name in weights if f"{name}.".startswith(f"{asked}.")}
        if not some:
            raise ValueError(f"randomized_layers: no weight {asked!r}; there are {', '.join(weights)}")
        found |= some
    return found


def parse_random_layers(text: str, generator: Generator) -> RandomLayers:
    """`6` → 6, the last six styled convolutions; `3-5`, `convs.6,convs.7` or `layers.3-5` → names.

    A range refers to the numbers in the names of layers. UsageError for layers that do not exist.
    """
    if text.strip().isdigit():
        which: RandomLayers = int(text)
    else:
        which = tuple(dict.fromkeys(name for item in text.split(",") for name in _named(item, generator)))
    try:
        random_names(which, {name: weight.layer for name, weight in generator.weights().items()})
    except ValueError as error:
        raise UsageError(str(error).replace("randomized_layers", "layers")) from error
    return which


def _named(item: str, generator: Generator) -> Iterator[str]:
    """The layers of a range, or the single name."""
    first, dash, last = item.strip().rpartition("-")
    start = first.rpartition(".")[2]
    if not (dash and start.isdigit() and last.isdigit()):
        yield item.strip()
        return
    prefix = first.removesuffix(start)
    found = False
    for layer in generator.layer_names():
        numbers = [int(part) for part in layer.split(".") if part.isdigit()]
        if layer.startswith(prefix) and numbers and int(start) <= numbers[0] <= int(last):
            found = True
            yield layer
    if not found:
        raise UsageError(
            f"layers {item.strip()!r}: no such layer; there are {', '.join(generator.layer_names())}"
        )
