"""The trainer of each kind of encoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.encoders import (
    Encoder,
    Hypernet,
    StyleEncoder,
    encoder_sha256,
    kind_in,
    read_any,
    read_encoder,
)
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.pairs import Pairs
from wrangan_cli.engine.models.perceptual import PerceptualDistance
from wrangan_cli.engine.training.encoder import EncoderTrainer, ImageTrainer
from wrangan_cli.engine.training.hypernet import HypernetTrainer
from wrangan_cli.engine.training.settings import EncoderSettings
from wrangan_cli.engine.training.style_encoder import StyleEncoderTrainer


def encoder_trainer(
    model: Model,
    settings: EncoderSettings,
    perceptual: PerceptualDistance,
    start: Path | None = None,
    pairs: Pairs | None = None,
) -> ImageTrainer[Any]:
    """The trainer of `settings.kind`. start: file of an encoder of that kind to continue from, or, for e4e
    and restyle with efficientnet-lite0, of an encoder into W. pairs: made by the model's generator.

    Raises UsageError for sizes that do not fit, FileError if `start` is not such a file.
    """
    if pairs and settings.kind == "hyperstyle":
        raise UsageError("hyperstyle cannot use pairs: its w comes from the encoder")
    if pairs and settings.kind in ("e4e", "restyle") and not settings.w_weight:
        raise UsageError(f"{settings.kind} uses pairs only with --w-weight")
    if start and settings.kind in ("e4e", "restyle") and kind_in(start) == "w":
        styles = StyleEncoderTrainer(model, replace(settings, pretrained=False), perceptual, None, pairs)
        styles.init_from(read_encoder(start)[0])
        return styles
    network: Any = read_any(start, settings.kind)[0] if start else None
    if network is not None and settings.kind in ("restyle", "hyperstyle"):
        # Not a size of the network: the settings determine how often it is run.
        network.config = replace(network.config, passes=settings.passes)
    if settings.kind == "w":
        assert network is None or isinstance(network, Encoder)
        return EncoderTrainer(model, settings, perceptual, network, pairs)
    if settings.kind == "hyperstyle":
        assert network is None or isinstance(network, Hypernet)
        return HypernetTrainer(model, settings, perceptual, network)
    assert network is None or isinstance(network, StyleEncoder)
    return StyleEncoderTrainer(model, settings, perceptual, network, pairs)


def record_of(trainer: ImageTrainer[Any]) -> dict[str, Any]:
    """The record of the finished network's file, besides sizes and settings."""
    about: dict[str, Any] = {"images": trainer.images}
    if trainer.settings.kind == "hyperstyle":
        about["encoder_sha256"] = encoder_sha256(trainer.model)
    return about
