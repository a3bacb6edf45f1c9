"""Checkpoint file → model folder, and model folder → rosinality's `.pt`, with self-checks."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.runtime import seeded_latents
from wrangan_cli.engine.base.tensorfile import write_torch
from wrangan_cli.engine.checkpoints import rosinality
from wrangan_cli.engine.checkpoints.detect import read_checkpoint
from wrangan_cli.engine.checkpoints.encoders import Report as EncoderReport
from wrangan_cli.engine.checkpoints.encoders import install_published
from wrangan_cli.engine.checkpoints.records import Checkpoint
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import (
    Model,
    find_discriminator,
    load_discriminator,
    read_model,
    save_model,
    stored_weights,
    w_statistics,
)
from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.perceptual import check_perceptual
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

CHECK_SEEDS = [0, 1, 2, 3]
SENSIBLE_STD = (0.05, 3.0)
"""Plausible range of the standard deviation of a trained generator's images (in [-1, 1])."""
SENSIBLE_MEAN = 1.0
SENSIBLE_W_DISTANCE = 0.5
"""Plausible distance of the stored mean of w from the measured one, in characteristic sizes of W."""


@dataclass(frozen=True)
class Report:
    """The result of a conversion and of its self-check."""

    kind: str
    """Format of the file."""
    settings: dict[str, Any]
    """The model's settings (`StyleGAN2Config.to_json`)."""
    tensors: int
    """Number of converted tensors of generator and discriminator."""
    parameters: int
    """Number of parameters of the generator."""
    discriminator_parameters: int
    """Number of parameters of the discriminator; 0 without one."""
    image_mean: float
    """Mean over the images of four seeds, with the stored noise maps."""
    image_std: float
    w_distance: float | None
    """Between the file's mean of w and the measured one, in units of W's size."""
    round_trip: bool
    """Whether the written file reads back bit for bit and renders the same images."""
    notes: list[str] = field(default_factory=list)
    encoder: EncoderReport | None = None
    """Report on the encoder, if the generator came from an encoder's file."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those of the encoder."""
        values = asdict(replace(self, encoder=None))
        del values["encoder"]
        return values

    def lines(self) -> list[str]:
        """Lines to print."""
        sizes = self.settings
        channels = " ".join(f"{size}:{width}" for size, width in sizes["channels"].items())
        clamp = sizes["conv_clamp"]
        drawn = f"images of {len(CHECK_SEEDS)} seeds: mean {self.image_mean:+.3f}, std {self.image_std:.3f}"
        distance = (
            "" if self.w_distance is None else f"; stored w mean is {self.w_distance:.3f} sizes of W off"
        )
        return [
            f"{self.kind}: {sizes['resolution']} px, channels {channels}, w {sizes['style_dim']}, "
            f"mapping depth {sizes['mapping_layers']} at rate {sizes['mapping_lr_multiplier']:g}, "
            f"clamp {'none' if clamp is None else format(clamp, 'g')}",
            f"{self.tensors} tensors; generator {self.parameters:,} parameters, "
            f"discriminator {self.discriminator_parameters:,}",
            f"self-check: {drawn}{distance}; read back {'equal' if self.round_trip else 'DIFFERENT'}",
            *(f"note: {note}" for note in self.notes),
        ]


def convert_to_model(
    source: Path, folder: Path, raw: bool = False, perceptual: str = "lpips-vgg", overwrite: bool = False
) -> Report:
    """Write the model folder for a checkpoint file, with the encoder if it is an encoder's file.

    raw: the generator as trained in place of its moving average. Everything is read and
    checked before anything is written. Raises FileError (see `detect.read_checkpoint`),
    UsageError if `folder` is not empty and `overwrite` is not set.
    """
    refuse_existing(folder, overwrite)
    check_perceptual(perceptual)
    checkpoint = read_checkpoint(source, raw)
    generator, discriminator = build(checkpoint)
    try:
        images = draw(generator)
        measured, size = w_statistics(generator)
    except WranganError as error:
        raise FileError(source, str(error)) from error
    distance = None
    if checkpoint.w_mean is not None:
        distance = float((checkpoint.w_mean - measured).norm() / max(size, 1e-12))
    save_model(
        folder,
        generator,
        discriminator,
        w_mean=checkpoint.w_mean,
        perceptual=perceptual,
        source={
            "converted_from": source.name,
            "format": checkpoint.kind,
            "generator": "raw" if raw else "moving average",
            "sha256": sha256(source),
            "w_mean": "measured" if checkpoint.w_mean is None else "file",
        },
    )
    if discriminator is None:
        # Of the previous model here; only now, since writing might have failed.
        (folder / "discriminator.safetensors").unlink(missing_ok=True)
    stored = read_model(folder)
    equal = torch.equal(draw(stored.generator), images) and _same(stored.generator, generator)
    if discriminator is not None:
        equal = equal and _same(load_discriminator(folder, generator.config), discriminator)
    encoder, notes = None, list(checkpoint.notes)
    if checkpoint.encoder:
        try:
            encoder = install_published(source, stored, overwrite=True)
        except FileError as error:
            notes.append(f"its encoder is left out: {error.cause}")
    report = _report(checkpoint.kind, generator, discriminator, images, distance, equal, notes)
    return replace(report, encoder=encoder)


def export_rosinality(model: Model, path: Path, overwrite: bool = False) -> Report:
    """Write a model as rosinality's `.pt`: g_ema, latent_avg, d.

    Raises UsageError if `path` exists and `overwrite` is not set, and for architectures other than
    StyleGAN2; WranganError if the model has a clamp that changes the images of the check's seeds, since
    rosinality's classes do not clamp.
    """
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path} exists already: choose another --out, or add --overwrite for a file")
    generator, notes = model.generator, []
    if not isinstance(generator, StyleGAN2Generator):
        architecture = generator.config.architecture
        raise UsageError(f"model {model.name} is {architecture}: rosinality's files can only hold StyleGAN2")
    images = draw(generator)
    if generator.config.conv_clamp is not None:
        free = rosinality.without_clamp(generator)
        difference = float((draw(free) - images).abs().max())
        if difference > 0:
            effect = f"clamp at {generator.config.conv_clamp:g}, which changes images by {difference:.2g}"
            raise FileError(model.path, f"not representable: its layers {effect}; rosinality's do not clamp")
        generator = free
        notes.append(f"the clamp was left out; it changes none of the images of {len(CHECK_SEEDS)} seeds")
    discriminator = find_discriminator(model)
    contents, more = rosinality.to_contents(generator, model.w_mean, discriminator)
    write_torch(path, contents)
    again = build(read_checkpoint(path))[0]
    # Rescaling the mapping network rounds its numbers; otherwise nothing must change.
    tolerance = 1e-4 if generator.config.mapping_lr_multiplier != rosinality.LR_MULTIPLIER else 0.0
    equal = float((draw(again) - images).abs().max()) <= tolerance
    return _report(
        "rosinality", again, discriminator if "d" in contents else None, images, None, equal, notes + more
    )


def build(checkpoint: Checkpoint) -> tuple[StyleGAN2Generator, Discriminator | None]:
    """The networks of a checkpoint, on the CPU in evaluation mode."""
    generator = _filled(StyleGAN2Generator(checkpoint.config), checkpoint.generator)
    discriminator = None
    if checkpoint.discriminator is not None:
        discriminator = _filled(Discriminator(checkpoint.config), checkpoint.discriminator)
    return generator, discriminator


@torch.no_grad()
def draw(generator: Generator) -> Tensor:
    """Images of the check's seeds with the stored noise maps: (4, 3, R, R).

    Raises WranganError if they are not finite.
    """
    latents = seeded_latents(CHECK_SEEDS, generator.config.style_dim)
    # One at a time: four images of 1024 px together would need gigabytes.
    images = torch.cat([generator.synthesis(generator.mapping(z[None])) for z in latents])
    if not images.isfinite().all():
        raise WranganError("self-check failed: the generator's images have values that are not finite")
    return images


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """UsageError if writing a model to `folder` would replace anything."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file: give a folder as --out")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: choose another --out, or add --overwrite")


def _filled(network: Any, tensors: dict[str, Tensor]) -> Any:
    # `tensors` may lack only the FIR kernels, which follow from the settings.
    result = network.load_state_dict(tensors, strict=False)
    wrong = [name for name in result.missing_keys if not name.endswith(".kernel")] + result.unexpected_keys
    if wrong:
        raise WranganError(f"converted tensors do not fit the network: {wrong[0]}")
    return network.eval().requires_grad_(False)


def _same(first: nn.Module, second: nn.Module) -> bool:
    one, other = (stored_weights(network, torch.float32) for network in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _report(
    kind: str,
    generator: StyleGAN2Generator,
    discriminator: Discriminator | None,
    images: Tensor,
    distance: float | None,
    equal: bool,
    notes: list[str],
) -> Report:
    mean, std, notes = float(images.mean()), float(images.std()), list(notes)
    if not (abs(mean) <= SENSIBLE_MEAN and SENSIBLE_STD[0] <= std <= SENSIBLE_STD[1]):
        notes.append("the images' mean or spread is unusual for a trained generator: look at some")
    if distance is not None and distance > SENSIBLE_W_DISTANCE:
        notes.append("the file's mean of w is far from the measured one: truncation may look wrong")
    networks = [network for network in (generator, discriminator) if network is not None]
    return Report(
        kind=kind,
        settings=generator.config.to_json(),
        tensors=sum(len(stored_weights(network, torch.float32)) for network in networks),
        parameters=_count(generator),
        discriminator_parameters=0 if discriminator is None else _count(discriminator),
        image_mean=mean,
        image_std=std,
        w_distance=distance,
        round_trip=equal,
        notes=notes,
    )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
