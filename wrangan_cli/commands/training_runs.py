"""What the training commands share: options, data, the training of G and D, the dry run."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrangan_cli.commands.shell import Results, progress, say
from wrangan_cli.engine.base.choices import ResizeFilter
from wrangan_cli.engine.base.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wrangan_cli.engine.data.image_sets import ImageSet
    from wrangan_cli.engine.models.folder import Model
    from wrangan_cli.engine.models.generator import Generator, RandomLayers
    from wrangan_cli.engine.training.adversarial import AdversarialTrainer
    from wrangan_cli.engine.training.memory import Memory
    from wrangan_cli.engine.training.quality import KidMonitor
    from wrangan_cli.engine.training.settings import (
        AdversarialSettings,
        RandomizeSettings,
        SensitivitySettings,
    )

Data = Annotated[list[Path], typer.Option(help="Folder, zip or LMDB of images; repeatable.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; an existing run is resumed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")]
ModelOption = Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the settings, the networks' sizes and the memory needed, and exit."
    ),
]


def join_processes(context: typer.Context) -> None:
    """Under torchrun, join its process group until the command ends."""
    import os

    if "WORLD_SIZE" not in os.environ:  # so that `--help` does not import torch
        return
    from wrangan_cli.engine.base.distributed import process_group, world_size

    context.with_resource(process_group())
    if world_size() > 1 and context.invoked_subcommand == "attributes":
        raise UsageError("train attributes does not support torchrun: start it as one process")


def remark(message: str) -> None:
    """`say`, from one process only."""
    from wrangan_cli.engine.base.distributed import is_main

    if is_main():
        say(message)


def load_images(data: list[Path], resolution: int, resize_filter: ResizeFilter) -> "ImageSet":
    """The training images; broken ones are reported."""
    from wrangan_cli.engine.data.image_sets import default_cache_dir, load_image_set

    bar = progress("decoding", None)
    with bar:
        images = load_image_set(data, resolution, default_cache_dir(), _advancing(bar), resize_filter)
    for name, cause in zip(images.broken, images.causes, strict=True):
        remark(f"wrangan: {name}: {cause}; left out")
    remark(images.summary())
    return images


def stream(images: "ImageSet", settings: Any, rows: list[int]) -> "Callable[[int], Iterator[Tensor]]":
    """A function from the count of images seen to the batches that follow, cut to the given rows."""
    from wrangan_cli.engine.data.image_sets import batches

    return lambda start: batches(images, settings.batch, settings.seed, start, settings.flip, rows)


def no_images(side: int) -> "Callable[[int], Iterator[Tensor]]":
    """`stream` for training without images: empty batches."""
    import itertools

    import torch

    return lambda _: itertools.repeat(torch.empty(0, 3, side, side))


def run_adversarial(
    trainer: "AdversarialTrainer",
    data: list[Path],
    out: Path,
    settings: "AdversarialSettings",
    perceptual: str,
    dry_run: bool,
) -> None:
    """Train G and D into `out`, and print the finished model's folder."""
    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.training.finished import NEWEST_MODEL, keep_best, save_trained
    from wrangan_cli.engine.training.memory import adversarial_memory
    from wrangan_cli.engine.training.quality import kid_monitor
    from wrangan_cli.engine.training.record import RunRecord, fixed_samples
    from wrangan_cli.engine.training.run import Report, train

    if dry_run:
        networks: dict[str, nn.Module] = {"generator": trainer.generator}
        if trainer.discriminator:
            networks["discriminator"] = trainer.discriminator
        print_plan(settings, trainer.device, networks, adversarial_memory(trainer))
        return
    images = load_images(data, trainer.generator.config.resolution, settings.resize_filter)
    waiting = progress("reference", None)
    with waiting:
        resolution = trainer.generator.config.resolution
        monitor = kid_monitor(settings, resolution, trainer.device, _advancing(waiting))
    config = trainer.generator.config
    about = {"architecture": config.architecture, "network": config.to_json()}
    record = RunRecord(out, {"settings": dataclasses.asdict(settings), **about})
    bar = progress("training", settings.images)

    def measure(monitor: "KidMonitor") -> None:
        found = monitor.measure(trainer.ema)
        error = found.standard_error or 0.0
        record.note(trainer.images, {"kid": found.value, "kid/standard_error": error})
        remark(f"image {trainer.images}: KID {found.value:.5f} ± {error:.5f} ({monitor.samples} samples)")
        if is_main():
            keep_best(out, trainer, perceptual, found)

    def on_step(trainer: "AdversarialTrainer", report: Report) -> None:
        record.step(trainer.images, report)
        advance(bar, trainer.images, report)
        if monitor and monitor.due(trainer.images, settings.batch, settings.images):
            measure(monitor)

    def on_snapshot(trainer: "AdversarialTrainer") -> None:
        if is_main():
            record.grid(trainer.images, fixed_samples(trainer), columns=8)
            save_trained(out, trainer, perceptual)

    with bar, record:
        train(trainer, stream(images, settings, trainer.shards.rows.tolist()), out, on_step, on_snapshot, say)
    if is_main():
        print_small_std(trainer.ema)
        Results().wrote(out / NEWEST_MODEL)


def run_sensitivity(
    start: "Model",
    layers: "RandomLayers",
    settings: "RandomizeSettings",
    sensitivity: "SensitivitySettings",
    out: Path,
) -> None:
    """Compute σ of `layers` by sensitivity into `out`, and print the finished model's folder."""
    from wrangan_cli.engine.base.distributed import world_size
    from wrangan_cli.engine.models.perceptual import load_perceptual
    from wrangan_cli.engine.training.finished import NEWEST_MODEL, save_sensitivity_model
    from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity

    if world_size() > 1:
        raise UsageError("--from sensitivity does not support torchrun: start it as one process")
    perceptual = load_perceptual(start.perceptual, start.device)
    bar = progress("sensitivity", sensitivity.probes)
    with bar:
        random = randomize_by_sensitivity(
            start.generator,
            perceptual,
            layers,
            sensitivity,
            settings.batch,
            settings.seed,
            lambda done: bar.update(bar.task_ids[0], completed=done),
        )
    for path in save_sensitivity_model(out, start, random, layers, settings, sensitivity):
        say(f"{path.name}: copied unchanged, since the same w gives the same image")
    print_small_std(random)
    Results().wrote(out / NEWEST_MODEL)


def print_small_std(generator: "Generator") -> None:
    """Print the fraction of |σ| < 10⁻³ in each random weight (the paper's Table 6)."""
    from wrangan_cli.engine.models.randomized import small_std_fraction

    for name, fraction in small_std_fraction(generator).items():
        say(f"{name}: {fraction:.2%} of |σ| below 0.001")


def print_plan(settings: Any, device: object, networks: "dict[str, nn.Module]", memory: "Memory") -> None:
    """Print the output of --dry-run: settings, one per line, sizes, and the memory of one process."""
    from wrangan_cli.engine.base.distributed import is_main, world_size
    from wrangan_cli.engine.training.memory import parameter_count

    if not is_main():
        return
    results = Results()
    values = dataclasses.asdict(settings) | {"device": device, "processes": world_size()}
    for name, value in values.items():
        results.record(f"{name}: {value}")
    for name, network in networks.items():
        results.record(f"{name}: {parameter_count(network):,} parameters")
    sizes = {"weights": memory.weights, "gradients": memory.gradients, "Adam": memory.optimisers}
    sizes |= {f"activations ({name})": size for name, size in memory.activations.items()}
    for name, size in sizes.items():
        results.record(f"memory, {name}: {_gigabytes(size)}")
    results.record(
        f"memory, estimate for one process: {_gigabytes(memory.total)}, "
        "not counting workspace and gradients of activations: allow twice as much"
    )


def advance(bar: Any, images: int, report: dict[str, float]) -> None:
    """Advance the progress bar of a training."""
    rate = f"{report['images_per_second']:.1f} images/s"
    bar.update(bar.task_ids[0], completed=images, rate=rate)


def _advancing(bar: Any) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
