"""`wrangan train generator|randomize|encoder|attributes`."""

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from wrangan_cli.commands.option_help import choices_label
from wrangan_cli.commands.panels import ADVERSARIAL, ATTRIBUTES, ENCODER
from wrangan_cli.commands.shell import Results, progress, say, settings_options
from wrangan_cli.commands.training_runs import (
    Data,
    Device,
    DryRun,
    ModelOption,
    Out,
    advance,
    join_processes,
    load_images,
    no_images,
    print_plan,
    run_adversarial,
    run_sensitivity,
    stream,
)
from wrangan_cli.engine.base.choices import Perceptual
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.training.attribute_settings import AttributeSettings
from wrangan_cli.engine.training.settings import (
    EncoderSettings,
    GeneratorSettings,
    RandomizeSettings,
    SensitivitySettings,
)

StdOrigin = Literal["adversarial", "sensitivity"]
"""Where the σ of `train randomize` come from."""

app = typer.Typer(no_args_is_help=True, help="Train a generator, its σ, an encoder or an attribute net.")

app.callback()(join_processes)


@app.command("generator")
@settings_options(GeneratorSettings, panels=ADVERSARIAL)
def generator(
    data: Data,
    out: Out,
    settings: GeneratorSettings,
    device: Device = "auto",
    perceptual: Annotated[
        Literal[Perceptual, ""],
        typer.Option(
            metavar=choices_label(Perceptual),
            help="Perceptual distance to record in the finished model. Empty: that of --model, or lpips-vgg.",
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(help="Model to start from, with its weights and sizes. Empty: from scratch."),
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Train a StyleGAN2, from scratch or from another model; the result is RUN/model."""
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.perceptual import check_perceptual
    from wrangan_cli.engine.training.start import generator_trainer

    device_used = resolve_device(device)
    start = load_model(model, device_used) if model else None
    recorded = perceptual or ("lpips-vgg" if start is None else start.perceptual)
    check_perceptual(recorded)
    trainer = generator_trainer(settings, device_used, start)
    run_adversarial(trainer, data, out, settings, recorded, dry_run)


@app.command("randomize")
@settings_options(RandomizeSettings, panels=ADVERSARIAL)
@settings_options(SensitivitySettings, "sensitivity", panels=ADVERSARIAL)
def randomize(
    out: Out,
    settings: RandomizeSettings,
    sensitivity: SensitivitySettings,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder or zip of images; repeatable. Not used by --from sensitivity."),
    ] = None,
    origin: Annotated[
        StdOrigin,
        typer.Option(
            "--from",
            metavar=choices_label(StdOrigin),
            help="adversarial: train σ against the discriminator; sensitivity: take σ from how much the "
            "model's images change with each weight, which takes minutes.",
        ),
    ] = "adversarial",
    keep_std: Annotated[
        bool, typer.Option("--keep-std", help="Start from the model's σ instead of --initial-std.")
    ] = False,
    model: ModelOption = DEFAULT_MODEL,
    device: Device = "auto",
    dry_run: DryRun = False,
) -> None:
    """Make some layers random; the result is RUN/model.

    --from adversarial trains μ and σ (Algorithm 2). It needs --data and, unless
    --discriminator is projected, the model's discriminator (discriminator.safetensors). --from
    sensitivity needs neither.
    """
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.generator import parse_random_layers
    from wrangan_cli.engine.training.start import randomize_trainer

    start = load_model(model, resolve_device(device))
    layers = parse_random_layers(settings.layers, start.generator)
    if origin == "sensitivity":
        if data or keep_std or dry_run:
            raise UsageError("--from sensitivity accepts none of --data, --keep-std and --dry-run")
        run_sensitivity(start, layers, settings, sensitivity, out)
        return
    if not data:
        raise UsageError("--from adversarial needs --data")
    trainer = randomize_trainer(settings, resolve_device(device), start, layers, keep_std)
    run_adversarial(trainer, data, out, settings, start.perceptual, dry_run)


@app.command("encoder")
@settings_options(EncoderSettings, panels=ENCODER)
def encoder(
    out: Out,
    settings: EncoderSettings,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder, zip or LMDB of images; repeatable. Not needed with --batch 0."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pairs from `wrangan generate --pairs`, to use instead of newly rendered ones "
            "(not for kind hyperstyle)."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: Device = "auto",
    install: Annotated[
        bool, typer.Option("--install", help="Put the finished encoder into the model's folder.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Encoder of the same kind to start from (such as one for an earlier version of the model), "
            "with its sizes. "
            "e4e and restyle on efficientnet-lite0 may also start from an encoder into W."
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Train an encoder from photographs into W, or one of another --kind.

    The result in RUN is encoder.safetensors (w), encoder-e4e.safetensors,
    encoder-restyle.safetensors or hypernet.safetensors; hyperstyle needs the model's encoder into W.
    """
    import torch

    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.encoders import KINDS, save_encoder
    from wrangan_cli.engine.models.encoders.blocks import resized
    from wrangan_cli.engine.models.pairs import open_pairs
    from wrangan_cli.engine.models.perceptual import load_perceptual
    from wrangan_cli.engine.training.encoder import ImageTrainer
    from wrangan_cli.engine.training.encoder_kinds import encoder_trainer, record_of
    from wrangan_cli.engine.training.memory import encoder_memory
    from wrangan_cli.engine.training.record import RunRecord
    from wrangan_cli.engine.training.run import Report, train

    loaded = load_model(model, resolve_device(device))
    perceptual = load_perceptual(settings.perceptual or loaded.perceptual, loaded.device)
    known = open_pairs(pairs, loaded.generator) if pairs else None
    trainer = encoder_trainer(loaded, settings, perceptual, start, known)
    if settings.batch and not data:
        raise UsageError("--data is missing (it is optional only for --batch 0 with --pairs)")
    if dry_run:
        print_plan(settings, loaded.device, {"encoder": trainer.encoder}, encoder_memory(trainer))
        return
    if data and settings.batch:
        images = load_images(data, trainer.side, settings.resize_filter)
        examples = images.batch(range(min(16, len(images))))
        batches = stream(images, settings, trainer.rows)
    else:
        assert known is not None  # otherwise the trainer could not have been made
        examples = resized(known.images(range(min(16, len(known)))), trainer.side)
        batches = no_images(trainer.side)
    record = RunRecord(out, dataclasses.asdict(settings) | {"model": str(loaded.path), "pairs": str(pairs)})
    bar = progress("encoder", settings.images)

    def save(folder: Path) -> Path:
        about = record_of(trainer) | {"settings": dataclasses.asdict(settings)}
        return save_encoder(folder, trainer.ema, loaded, about)

    def on_step(trainer: ImageTrainer[Any], report: Report) -> None:
        record.step(trainer.images, report)
        advance(bar, trainer.images, report)

    def on_snapshot(trainer: ImageTrainer[Any]) -> None:
        if not is_main():
            return
        reconstructed = trainer.reconstructed(examples.to(loaded.device)).cpu()
        record.grid(trainer.images, torch.cat([examples, reconstructed]), columns=len(examples))
        save(out)

    with bar, record:
        train(trainer, batches, out, on_step, on_snapshot, say)
    if not is_main():
        return
    results = Results()
    if install:
        results.wrote(save(loaded.path))
    results.wrote(out / KINDS[settings.kind].file)


@app.command("attributes")
@settings_options(AttributeSettings, panels=ATTRIBUTES)
def attributes(
    data: Data,
    out: Out,
    settings: AttributeSettings,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with a column `file` and one column per attribute (0, 1 or empty); "
            "default: the name of the first --data with .csv."
        ),
    ] = None,
    held_out: Annotated[Path | None, typer.Option(help="Images to measure the accuracy on.")] = None,
    held_out_labels: Annotated[Path | None, typer.Option(help="CSV of the held-out images.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: Device = "auto",
    install: Annotated[
        bool, typer.Option("--install", help="Put the finished net into the model's folder.")
    ] = False,
) -> None:
    """Train a small net for yes/no attributes; the result is RUN/attributes.safetensors.

    With --held-out and --held-out-labels, print the accuracy on these images, one line per attribute.
    """
    from wrangan_cli.engine.base.files import replaced_atomically
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.base.tensorfile import read_tensors
    from wrangan_cli.engine.library import find_model
    from wrangan_cli.engine.training.attributes import read_labels, train_attributes
    from wrangan_cli.engine.training.record import RunRecord

    if (held_out is None) != (held_out_labels is None):
        raise UsageError("--held-out and --held-out-labels must be given together")
    beside = data[0].with_suffix(".csv")
    if labels is None and not beside.is_file():
        raise UsageError(f"no labels: give --labels, or a file {beside}")
    images = load_images(data, settings.resolution, settings.resize_filter)
    known = read_labels(labels or beside, images.names, settings)
    measured = None
    if held_out is not None and held_out_labels is not None:
        others = load_images([held_out], settings.resolution, settings.resize_filter)
        measured = (others, read_labels(held_out_labels, others.names, settings))
    target = find_model(model) if install else None
    record = RunRecord(out, dataclasses.asdict(settings))
    bar = progress("attributes", settings.images)

    def on_step(seen: int, report: dict[str, float]) -> None:
        record.step(seen, report)
        advance(bar, seen, report)

    with bar, record:
        train_attributes(settings, images, known, out, on_step, measured, resolve_device(device), say)
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
