"""`wrangan train generator|randomize|encoder|attributes`."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrangan_cli.commands.shell import Results, progress, say, settings_options
from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.training.attribute_settings import AttributeSettings
from wrangan_cli.engine.training.settings import (
    EncoderSettings,
    GeneratorSettings,
    RandomizeSettings,
    SensitivitySettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from wrangan_cli.engine.model_folder import Model
    from wrangan_cli.engine.models.stylegan2 import Generator
    from wrangan_cli.engine.training.adversarial import AdversarialTrainer
    from wrangan_cli.engine.training.data import ImageSet
    from wrangan_cli.engine.training.settings import AdversarialSettings

app = typer.Typer(no_args_is_help=True, help="Train a generator, its σ, an encoder, an attribute net.")

Data = Annotated[list[Path], typer.Option(help="Folder or zip of images; may be given several times.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; what is there is resumed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")]
ModelOption = Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")]


@app.command("generator")
@settings_options(GeneratorSettings)
def generator(
    data: Data,
    out: Out,
    settings: GeneratorSettings,
    device: Device = "auto",
    perceptual: Annotated[
        str, typer.Option(help="Perceptual distance that the finished model names as its own.")
    ] = "lpips-vgg",
) -> None:
    """Train a StyleGAN2 from scratch; the finished model is RUN/model."""
    import torch

    from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
    from wrangan_cli.engine.models.discriminator import Discriminator
    from wrangan_cli.engine.models.stylegan2 import Generator
    from wrangan_cli.engine.perceptual import check_perceptual
    from wrangan_cli.engine.runtime import resolve_device
    from wrangan_cli.engine.training.adversarial import AdversarialTrainer
    from wrangan_cli.engine.training.encoder import numbers

    check_perceptual(perceptual)
    sizes = [2**i for i in range(2, settings.resolution.bit_length())]
    channels = rosinality_channels(settings.resolution)
    if settings.channels:
        widths = numbers(settings.channels, "channels")
        if len(widths) != len(sizes):
            raise UsageError(f"channels: {len(widths)} widths for the sizes {sizes}")
        channels = dict(zip(sizes, widths, strict=True))
    try:
        config = StyleGAN2Config(
            resolution=settings.resolution,
            channels=channels,
            style_dim=settings.style_dim,
            mapping_layers=settings.mapping_layers,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    images = _load(data, settings.resolution)
    torch.manual_seed(settings.seed)
    trainer = AdversarialTrainer(Generator(config), Discriminator(config), settings, resolve_device(device))
    _adversarial(trainer, images, out, settings, perceptual)


@app.command("randomize")
@settings_options(RandomizeSettings)
@settings_options(SensitivitySettings, "sensitivity")
def randomize(
    out: Out,
    settings: RandomizeSettings,
    sensitivity: SensitivitySettings,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or zip of images; may be given several times. Not for --from sensitivity."),
    ] = None,
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            help="`adversarial`: σ trained against the discriminator; `sensitivity`: σ from how much the "
            "model's own images change with each weight, in minutes.",
        ),
    ] = "adversarial",
    keep_std: Annotated[
        bool, typer.Option("--keep-std", help="Go on from the σ that the model has, not from --initial-std.")
    ] = False,
    model: ModelOption = "faces-64",
    device: Device = "auto",
) -> None:
    """Make the last layers random; the result is RUN/model.

    --from adversarial trains μ and σ (Algorithm 2) and needs --data and the model's
    discriminator (discriminator.safetensors); --from sensitivity needs neither.
    """
    import torch

    from wrangan_cli.engine.model_folder import load_discriminator, load_model
    from wrangan_cli.engine.models.randomized import randomize as make_random
    from wrangan_cli.engine.runtime import resolve_device
    from wrangan_cli.engine.training.adversarial import AdversarialTrainer

    if origin not in ("adversarial", "sensitivity"):
        raise UsageError(f"--from {origin}: expected adversarial or sensitivity")
    start = load_model(model, resolve_device(device))
    most = start.generator.config.num_styled_convs
    if settings.layers > most:
        raise UsageError(f"layers {settings.layers}: model {start.name} has {most} styled convolutions")
    if origin == "sensitivity":
        if data or keep_std:
            raise UsageError("--from sensitivity takes neither --data nor --keep-std")
        _by_sensitivity(start, settings, sensitivity, out)
        return
    if not data:
        raise UsageError("--from adversarial needs --data")
    own = start.generator.config.randomized_layers
    if keep_std and own != settings.layers:
        raise UsageError(f"--keep-std: model {start.name} has {own} random layers, not {settings.layers}")
    discriminator = load_discriminator(start.path, start.generator.config)
    images = _load(data, start.resolution)
    torch.manual_seed(settings.seed)
    random = start.generator
    if not keep_std:
        random = make_random(start.generator, settings.layers, settings.initial_std)
    random.requires_grad_(True)
    trainer = AdversarialTrainer(random, discriminator, settings, resolve_device(device))
    _adversarial(trainer, images, out, settings, start.perceptual)


def _by_sensitivity(
    start: "Model", settings: RandomizeSettings, sensitivity: SensitivitySettings, out: Path
) -> None:
    from wrangan_cli.engine.model_folder import load_discriminator, save_model
    from wrangan_cli.engine.perceptual import load_perceptual
    from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity

    perceptual = load_perceptual(start.perceptual, start.device)
    bar = progress("sensitivity", sensitivity.probes)
    with bar:
        random = randomize_by_sensitivity(
            start.generator,
            perceptual,
            settings.layers,
            sensitivity,
            settings.batch,
            settings.seed,
            lambda done: bar.update(bar.task_ids[0], completed=done),
        )
    discriminator = None
    if (start.path / "discriminator.safetensors").is_file():
        discriminator = load_discriminator(start.path, start.generator.config)
    source = {
        "trained_by": "wrangan train randomize --from sensitivity",
        "of": start.sha256,
        "layers": settings.layers,
        "batch": settings.batch,
        "seed": settings.seed,
        "settings": dataclasses.asdict(sensitivity),
    }
    save_model(out / "model", random, discriminator, start.w_mean, start.perceptual, source)
    _print_small_std(random)
    Results().wrote(out / "model")


def _print_small_std(generator: "Generator") -> None:
    from wrangan_cli.engine.models.randomized import small_std_share

    for name, share in small_std_share(generator).items():
        say(f"{name}: {share:.2%} of |σ| below 0.001")


@app.command("encoder")
@settings_options(EncoderSettings)
def encoder(
    data: Data,
    out: Out,
    settings: EncoderSettings,
    model: ModelOption = "faces-64",
    device: Device = "auto",
    install: Annotated[
        bool, typer.Option("--install", help="Put the finished encoder into the model's folder.")
    ] = False,
) -> None:
    """Train an encoder from photographs into W; the result is RUN/encoder.safetensors."""
    import torch

    from wrangan_cli.engine.model_folder import load_model
    from wrangan_cli.engine.perceptual import load_perceptual
    from wrangan_cli.engine.runtime import resolve_device
    from wrangan_cli.engine.training.encoder import EncoderTrainer, save_encoder
    from wrangan_cli.engine.training.record import RunRecord
    from wrangan_cli.engine.training.run import Report, train

    loaded = load_model(model, resolve_device(device))
    images = _load(data, loaded.resolution)
    perceptual = load_perceptual(settings.perceptual or loaded.perceptual, loaded.device)
    trainer = EncoderTrainer(loaded, settings, perceptual)
    record = RunRecord(out, dataclasses.asdict(settings) | {"model": str(loaded.path)})
    bar = progress("encoder", settings.images)
    examples = images.batch(range(min(16, len(images))))

    def on_step(trainer: EncoderTrainer, report: Report) -> None:
        record.step(trainer.images, report)
        _advance(bar, trainer.images, report)

    def on_snapshot(trainer: EncoderTrainer) -> None:
        with torch.no_grad():
            drawn = loaded.generator.synthesis(trainer.ema(examples.to(loaded.device))).cpu()
        record.grid(trainer.images, torch.cat([examples, drawn]), columns=len(examples))
        about = {"images": trainer.images, "settings": dataclasses.asdict(settings)}
        save_encoder(out, trainer.ema, loaded, about)

    with bar:
        train(trainer, _stream(images, settings), out, on_step, on_snapshot)
    record.close()
    results = Results()
    if install:
        about = {"images": trainer.images, "settings": dataclasses.asdict(settings)}
        results.wrote(save_encoder(loaded.path, trainer.ema, loaded, about))
    results.wrote(out / "encoder.safetensors")


@app.command("attributes")
@settings_options(AttributeSettings)
def attributes(
    data: Data,
    out: Out,
    settings: AttributeSettings,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a column `file` and one of 0, 1 or nothing per attribute; "
            "default: of the name of the first --data, with .csv."
        ),
    ] = None,
    held_out: Annotated[Path | None, typer.Option(help="Images to measure on.")] = None,
    held_out_labels: Annotated[Path | None, typer.Option(help="CSV of the held-out images.")] = None,
    model: ModelOption = "faces-64",
    device: Device = "auto",
    install: Annotated[
        bool, typer.Option("--install", help="Put the finished net into the model's folder.")
    ] = False,
) -> None:
    """Train a small net for yes/no attributes; the result is RUN/attributes.safetensors.

    With --held-out and its labels the accuracy on them is printed, one line an attribute.
    """
    from wrangan_cli.engine.files import replaced_atomically
    from wrangan_cli.engine.model_folder import find_model
    from wrangan_cli.engine.runtime import resolve_device
    from wrangan_cli.engine.tensorfile import read_tensors
    from wrangan_cli.engine.training.attributes import read_labels, train_attributes
    from wrangan_cli.engine.training.record import RunRecord

    if (held_out is None) != (held_out_labels is None):
        raise UsageError("--held-out and --held-out-labels go together")
    beside = data[0].with_suffix(".csv")
    if labels is None and not beside.is_file():
        raise UsageError(f"no --labels given, and there is no {beside} to take them from")
    images = _load(data, settings.resolution)
    known = read_labels(labels or beside, images.names, settings)
    measured = None
    if held_out is not None and held_out_labels is not None:
        others = _load([held_out], settings.resolution)
        measured = (others, read_labels(held_out_labels, others.names, settings))
    target = find_model(model) if install else None
    record = RunRecord(out, dataclasses.asdict(settings))
    bar = progress("attributes", settings.images)

    def on_step(seen: int, report: dict[str, float]) -> None:
        record.step(seen, report)
        _advance(bar, seen, report)

    with bar:
        train_attributes(settings, images, known, out, on_step, measured, resolve_device(device))
    record.close()
    finished = out / "attributes.safetensors"
    _, about = read_tensors(finished)
    for name, figures in about.get("held_out", {}).items():
        say(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    results = Results()
    if target is not None:
        with replaced_atomically(target / finished.name) as temporary:
            shutil.copyfile(finished, temporary)
        results.wrote(target / finished.name)
    results.wrote(finished)


def _load(data: list[Path], resolution: int) -> "ImageSet":
    from wrangan_cli.engine.training.data import default_cache_dir, load_image_set

    bar = progress("decoding", None)
    with bar:
        images = load_image_set(
            data,
            resolution,
            default_cache_dir(),
            lambda n, total: bar.update(bar.task_ids[0], completed=n, total=total),
        )
    for name in images.broken:
        say(f"wrangan: {name}: cannot be read, left out")
    say(f"{len(images)} images of {resolution} px")
    return images


def _stream(
    images: "ImageSet", settings: "AdversarialSettings | EncoderSettings"
) -> "Callable[[int], Iterator[Tensor]]":
    from wrangan_cli.engine.training.data import batches

    return lambda start: batches(images, settings.batch, settings.seed, start, settings.flip)


def _adversarial(
    trainer: "AdversarialTrainer",
    images: "ImageSet",
    out: Path,
    settings: "AdversarialSettings",
    perceptual: str,
) -> None:
    from wrangan_cli.engine.model_folder import save_model
    from wrangan_cli.engine.training.record import RunRecord, fixed_samples
    from wrangan_cli.engine.training.run import Report, train

    group = trainer.discriminator.config.stddev_group
    if group and settings.batch % min(group, settings.batch):
        raise UsageError(f"batch {settings.batch}: expected a multiple of {group}, which D looks at together")
    config = trainer.generator.config.to_json()
    record = RunRecord(out, {"settings": dataclasses.asdict(settings), "network": config})
    bar = progress("training", settings.images)

    def on_step(trainer: "AdversarialTrainer", report: Report) -> None:
        record.step(trainer.images, report)
        _advance(bar, trainer.images, report)

    def on_snapshot(trainer: "AdversarialTrainer") -> None:
        record.grid(trainer.images, fixed_samples(trainer), columns=8)
        source = {
            "trained_by": "wrangan train",
            "images": trainer.images,
            "settings": dataclasses.asdict(settings),
        }
        save_model(out / "model", trainer.ema, trainer.discriminator, perceptual=perceptual, source=source)

    with bar:
        train(trainer, _stream(images, settings), out, on_step, on_snapshot)
    record.close()
    _print_small_std(trainer.ema)
    Results().wrote(out / "model")


def _advance(bar: Any, images: int, report: dict[str, float]) -> None:
    rate = f"{report['images_per_second']:.1f} images/s"
    bar.update(bar.task_ids[0], completed=images, rate=rate)
