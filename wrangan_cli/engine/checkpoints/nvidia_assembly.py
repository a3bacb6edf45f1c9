"""From NVIDIA's tensors and settings to a `Checkpoint`: the steps that both formats share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from wrangan_cli.engine.checkpoints.naming import (
    Naming,
    complete_noise,
    discriminator_channels,
    discriminator_names,
    generator_names,
    generator_sizes,
)
from wrangan_cli.engine.checkpoints.records import Checkpoint, NotConvertible, collect, make_config, shapes
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator


@dataclass(frozen=True)
class GeneratorRecord:
    """Tensors by their names in the file, in PyTorch's axis order, and the settings that matter."""

    tensors: dict[str, Tensor]
    lr_multiplier: float
    conv_clamp: float | None
    taps: tuple[float, ...]


@dataclass(frozen=True)
class DiscriminatorRecord:
    """As `GeneratorRecord`; stddev_group None means the whole batch."""

    tensors: dict[str, Tensor]
    conv_clamp: float | None
    taps: tuple[float, ...]
    stddev_group: int | None


def assemble(
    kind: str,
    naming: Naming,
    label: str,
    generator: GeneratorRecord,
    discriminator: DiscriminatorRecord | NotConvertible | None,
) -> Checkpoint:
    """Rename, check and combine the tensors.

    discriminator: if it could not be read, the reason; it is then left out with a
    note, as it is if its settings differ from the generator's. label: name of the
    generator in the file. Raises NotConvertible if the generator does not fit.
    """
    tensors = dict(generator.tensors)
    sizes = generator_sizes(label, tensors, naming)
    config = make_config(
        sizes.resolution,
        sizes.channels,
        sizes.style_dim,
        sizes.mapping_layers,
        generator.lr_multiplier,
        conv_clamp=generator.conv_clamp,
        taps=generator.taps,
    )
    wanted = shapes(StyleGAN2Generator, config)
    names = generator_names(config, naming)
    notes = complete_noise(tensors, names, wanted)
    weights = collect(label, tensors, names, wanted, lambda name: name == naming.w_mean or _no_weight(name))
    w_mean, remarks = _tracked_mean(tensors, naming, sizes.style_dim)
    notes += [f"{remark}: it was measured" for remark in remarks]

    found: dict[str, Tensor] | None = None
    try:
        if isinstance(discriminator, NotConvertible):
            raise discriminator
        if discriminator is None:
            notes.append("the file has no discriminator")
        else:
            _check_match(generator, discriminator, sizes.channels, naming)
            config = replace(config, stddev_group=discriminator.stddev_group)
            found = collect(
                "D",
                discriminator.tensors,
                discriminator_names(config, naming),
                shapes(Discriminator, config),
                _no_weight,
            )
    except NotConvertible as reason:
        notes.append(f"discriminator left out: {reason}")
    return Checkpoint(kind, config, weights, found, w_mean, notes)


def _check_match(
    generator: GeneratorRecord,
    discriminator: DiscriminatorRecord,
    channels: Mapping[int, int],
    naming: Naming,
) -> None:
    widths = discriminator_channels("D", discriminator.tensors, naming)
    if widths != channels:
        raise NotConvertible("D has different channel counts or a different resolution than the generator")
    if discriminator.conv_clamp != generator.conv_clamp:
        clamps = f"{discriminator.conv_clamp}, the generator at {generator.conv_clamp}"
        raise NotConvertible(f"D clamps at {clamps}")
    if discriminator.taps != generator.taps:
        raise NotConvertible("D has a different resampling filter than the generator")


def _tracked_mean(
    tensors: Mapping[str, Tensor], naming: Naming, style_dim: int
) -> tuple[Tensor | None, list[str]]:
    mean = tensors.get(naming.w_mean)
    # A network that does not track the mean (w_avg_beta 1) keeps its initial zeros.
    if mean is None or not mean.any():
        return None, ["the file has no mean of w"]
    if mean.shape != (style_dim,) or not mean.isfinite().all():
        return None, [f"the file's mean of w ({naming.w_mean}) is not {style_dim} finite numbers"]
    return mean.float().contiguous(), []


def _no_weight(name: str) -> bool:
    """Whether it is a filter, which the settings determine, or a remnant of progressive growing."""
    return name.endswith("resample_filter") or name == "lod"
