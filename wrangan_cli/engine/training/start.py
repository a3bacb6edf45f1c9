"""The networks with which an adversarial training starts: new ones, or those of a model."""

import dataclasses
from contextlib import suppress

import torch

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.architectures import build_generator
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import DISCRIMINATOR, Model, load_discriminator
from wrangan_cli.engine.models.generator import RandomLayers, random_names
from wrangan_cli.engine.models.precision import FP16_CLAMP
from wrangan_cli.engine.models.randomized import randomize
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.encoder import numbers
from wrangan_cli.engine.training.settings import AdversarialSettings, GeneratorSettings, RandomizeSettings


def generator_trainer(
    settings: GeneratorSettings, device: torch.device, start: Model | None = None
) -> AdversarialTrainer:
    """The trainer of a StyleGAN2: from scratch with the sizes of `settings`, or from the weights of `start`.

    Raises UsageError for invalid sizes, a model that is not a StyleGAN2, or a requested size that differs
    from the model's. Seeds PyTorch with `settings.seed`.
    """
    torch.manual_seed(settings.seed)
    if start is None:
        network = build_generator(network_of(settings))
        discriminator: Discriminator | None = network.config.discriminator()
    else:
        _check_sizes(settings, start)
        network = randomize(start.generator, 0)
        discriminator = _discriminator(start, settings)
    return AdversarialTrainer(network, discriminator, settings, device)


def randomize_trainer(
    settings: RandomizeSettings,
    device: torch.device,
    start: Model,
    layers: RandomLayers,
    keep_std: bool = False,
) -> AdversarialTrainer:
    """The trainer of μ and σ of `layers` (Algorithm 2).

    keep_std: start from the model's σ; otherwise from `settings.initial_std`. Raises UsageError
    if `keep_std` is set and the model's random layers differ from `layers`. Seeds PyTorch with
    `settings.seed`.
    """
    present = start.generator.random_weights()
    wanted = random_names(layers, {name: weight.layer for name, weight in start.generator.weights().items()})
    if keep_std and present.keys() != wanted:
        found = ", ".join(present) or "none"
        raise UsageError(
            f"--keep-std: --layers {settings.layers}, but the random layers of {start.name} are: {found}"
        )
    torch.manual_seed(settings.seed)
    discriminator = _discriminator(start, settings)
    network = start.generator if keep_std else randomize(start.generator, layers, settings.initial_std)
    network.requires_grad_(True)
    return AdversarialTrainer(network, discriminator, settings, device)


def network_of(settings: GeneratorSettings) -> StyleGAN2Config:
    """The sizes that the settings describe; UsageError if they are invalid."""
    sizes = [2**i for i in range(2, settings.resolution.bit_length())]
    channels = rosinality_channels(settings.resolution)
    if settings.channels:
        widths = numbers(settings.channels, "channels")
        if len(widths) != len(sizes):
            raise UsageError(f"channels: {len(widths)} widths for the sizes {sizes}")
        channels = dict(zip(sizes, widths, strict=True))
    try:
        return StyleGAN2Config(
            resolution=settings.resolution,
            channels=channels,
            style_dim=settings.style_dim,
            mapping_layers=settings.mapping_layers,
            conv_clamp=FP16_CLAMP if settings.precision == "fp16" else None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _discriminator(start: Model, settings: AdversarialSettings) -> Discriminator | None:
    """D of the model to start from. If only the projected one is trained, which always starts anew, it may be
    a new D, or None for an architecture without one."""
    config = start.generator.config
    if settings.discriminator != "projected":
        path = start.companion(DISCRIMINATOR)
        return load_discriminator(path.parent if path else start.path, config)
    with suppress(UsageError):
        return config.discriminator()
    return None


def _check_sizes(settings: GeneratorSettings, start: Model) -> None:
    config = start.generator.config
    if not isinstance(config, StyleGAN2Config):
        raise UsageError(f"train generator makes a StyleGAN2: model {start.name} is {config.architecture}")
    widths = ",".join(str(width) for width in config.channels.values())
    found = {
        "resolution": config.resolution,
        "channels": widths,
        "style_dim": config.style_dim,
        "mapping_layers": config.mapping_layers,
    }
    for field in dataclasses.fields(settings):
        asked = getattr(settings, field.name)
        if field.name in found and asked not in (field.default, found[field.name]):
            raise UsageError(f"{field.name} {asked}: the model to start from has {found[field.name]}")
