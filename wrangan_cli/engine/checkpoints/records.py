"""The content of a checkpoint file in this suite's names, and helpers to collect tensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

NAMED_AT_MOST = 4


class NotConvertible(WranganError):
    """The file is readable, but its content cannot become one of this suite's models."""


@dataclass(frozen=True)
class Checkpoint:
    """One StyleGAN2 read from a file."""

    kind: str
    """`rosinality`, `nvidia-torch` or `nvidia-tensorflow`."""
    config: StyleGAN2Config
    generator: dict[str, Tensor]
    """State dict of `Generator(config)` without FIR kernels, float32."""
    discriminator: dict[str, Tensor] | None
    """State dict of `Discriminator(config)` without FIR kernels; None if there is none."""
    w_mean: Tensor | None
    """(style_dim,) float32; None if the file has none."""
    notes: list[str] = field(default_factory=list)
    """Remarks for the user: what was left out, filled in or assumed."""
    encoder: bool = False
    """Whether the file is that of a trained encoder, including its generator."""


def shapes(
    network: type[StyleGAN2Generator] | type[Discriminator], config: StyleGAN2Config
) -> dict[str, torch.Size]:
    """Shapes of a network's stored tensors by name, without allocating it."""
    with torch.device("meta"):
        state = network(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith(".kernel")}


def collect(
    label: str,
    source: Mapping[str, Tensor],
    names: Mapping[str, str],
    wanted: Mapping[str, torch.Size],
    superfluous: Callable[[str], bool],
    network: str = "StyleGAN2 (configuration E/F)",
) -> dict[str, Tensor]:
    """The tensors of `wanted`, taken from `source` by `names` (name in this suite → name in the file).

    Axes of length 1 may be added or dropped. superfluous: whether a name in the file
    may be ignored. Raises NotConvertible that names tensors that are missing,
    misshapen, not finite, or unknown. label: name of the network, network: what it is; both
    for the message.
    """
    missing = [names[own] for own in wanted if names[own] not in source]
    if missing:
        raise NotConvertible(f"{label} lacks {listed(missing)}")
    used = {names[own] for own in wanted}
    extra = [name for name in source if name not in used and not superfluous(name)]
    if extra:
        raise NotConvertible(f"{label} has tensors that {network} does not have: {listed(extra)}")
    made = {}
    for own, shape in wanted.items():
        tensor = source[names[own]]
        if _without_ones(tensor.shape) != _without_ones(shape):
            found, expected = list(tensor.shape), list(shape)
            raise NotConvertible(f"{label}: {names[own]} has shape {found}, expected {expected}")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise NotConvertible(f"{label}: {names[own]} has values that are not finite numbers")
        made[own] = tensor.detach().float().reshape(shape).contiguous()
    return made


def listed(names: Iterable[str]) -> str:
    """The first few names, and the number of further ones."""
    every = list(names)
    more = f" and {len(every) - NAMED_AT_MOST} more" if len(every) > NAMED_AT_MOST else ""
    return ", ".join(every[:NAMED_AT_MOST]) + more


def brief(value: object) -> str:
    """A setting shortened for a message, since files may hold anything, of any size."""
    simple = isinstance(value, str | int | float | bool | None)
    return repr(value)[:40] if simple else f"a {type(value).__name__}"


def shape_of(label: str, source: Mapping[str, Tensor], name: str, axes: int) -> torch.Size:
    """Shape of a tensor that determines a size; NotConvertible if it is missing or has other axes."""
    if name not in source:
        raise NotConvertible(f"{label} lacks {name}")
    if source[name].ndim != axes:
        raise NotConvertible(f"{label}: {name} has {source[name].ndim} axes, expected {axes}")
    return source[name].shape


def make_config(
    resolution: int,
    channels: dict[int, int],
    style_dim: int,
    mapping_layers: int,
    lr_multiplier: float,
    conv_clamp: float | None = None,
    taps: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0),
    stddev_group: int | None = 4,
    randomized_layers: int = 0,
) -> StyleGAN2Config:
    """Settings read from a file; NotConvertible if the models do not support them."""
    if mapping_layers < 1:
        raise NotConvertible("no mapping network found")
    try:
        return StyleGAN2Config(
            resolution=resolution,
            channels=channels,
            style_dim=style_dim,
            mapping_layers=mapping_layers,
            mapping_lr_multiplier=lr_multiplier,
            randomized_layers=randomized_layers,
            conv_clamp=conv_clamp,
            fir_taps=taps,
            stddev_group=stddev_group,
        )
    except ValueError as error:
        raise NotConvertible(str(error)) from error


def taps_of_kernel(kernel: Tensor) -> tuple[float, ...]:
    """1-D filter of a separable FIR kernel (n, n) of any gain, or of its line (n,), summing to 8.

    Only four symmetric taps are accepted: for others the paddings of the published
    implementations may differ.
    """
    line = kernel.double().sum(dim=1) if kernel.ndim == 2 else kernel.double()
    line = line * (8 / line.sum())
    square = torch.outer(line, line) / 64
    separable = kernel.ndim == 1 or torch.allclose(kernel.double() / kernel.double().sum(), square, atol=1e-6)
    if line.shape != (4,) or not separable or not torch.allclose(line, line.flip(0), atol=1e-6):
        raise NotConvertible("its resampling filter is not one of four symmetric taps")
    return tuple(round(float(tap), 5) for tap in line)


def _without_ones(shape: torch.Size) -> list[int]:
    return [side for side in shape if side != 1]
