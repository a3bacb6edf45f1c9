"""`wrangan evaluate`: metrics of codes against photographs, or of samples against real images."""

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrangan_cli.commands.shell import Results, by_main, progress
from wrangan_cli.engine.errors import UsageError, WranganError

if TYPE_CHECKING:
    from rich.progress import Progress

    from wrangan_cli.engine.metrics.pairs import Compared
    from wrangan_cli.engine.metrics.samples import Reference
    from wrangan_cli.engine.model_folder import Model


def evaluate(
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. Of pairs: mse, psnr, ms-ssim, lpips-vgg, lpips-alex, st-lpips-vgg, "
            "st-lpips-alex (default: mse, psnr, ms-ssim and the model's perceptual distance). "
            "Of samples: fid, kid, precision, recall (default: fid). "
            "Of codes alone: corruption-fid, corruption-kid. "
            "Of a model's random layers: std-share, layer-influence."
        ),
    ] = None,
    codes: Annotated[Path | None, typer.Option(help="Codes: a folder of .st files, or one file.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Photographs of the same stems: folder or file.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the numbers of each pair here.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Zip, folder or LMDB of real images; without it the features that travel with the model."
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            help="Write the features of --reference here (reference.safetensors in a model's folder)."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of generated images.")] = 2000,
    epsilon: Annotated[
        float, typer.Option(help="Scale of ε ~ N(0, 1), drawn for each generated image; 0: the mean weights.")
    ] = 0.0,
    model: Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")] = "faces-64",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; the numbers do not depend on it.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a metric and line.")] = False,
) -> None:
    """Measure codes against their photographs, or a model's samples against real images.

    With --codes and --photos: each photograph is compared with the image of its code, and
    the mean is printed with its 95 % bootstrap interval. Without: generated samples. With
    --codes alone: images at w moved at random, drawn with the codes' weights (corruption).
    Under torchrun each process does its share, and the first one prints.
    """
    from wrangan_cli.engine.distributed import process_group
    from wrangan_cli.engine.metrics.registry import code_metrics, pair_metrics, sample_metrics
    from wrangan_cli.engine.model_folder import load_model
    from wrangan_cli.engine.runtime import resolve_device

    names = metric or []
    _check_options(names, codes, photos, csv_file, reference, save_reference, epsilon)
    if codes is None:
        sample_metrics(names)
    else:
        _ = code_metrics(names) if photos is None else pair_metrics(names)
    with process_group():
        place = resolve_device(device)
        results = Results(as_json)
        load = cache(lambda: load_model(model, place))
        by_main(lambda: bool(load()))  # so that what is wrong with it is said once
        loaded = load()
        if codes is not None and photos is not None:
            names = names or ["mse", "psnr", "ms-ssim", loaded.perceptual]
            _evaluate_pairs(results, loaded, names, photos, codes, csv_file, batch)
        else:
            names = names or ([] if save_reference else ["fid"])
            plan = _Samples(codes, samples, seed, batch, epsilon)
            _evaluate_samples(results, loaded, names, reference, save_reference, plan)
        results.finish()


def _check_options(
    names: Sequence[str],
    codes: Path | None,
    photos: Path | None,
    csv_file: Path | None,
    reference: Path | None,
    save_reference: Path | None,
    epsilon: float,
) -> None:
    if photos is not None and codes is None:
        raise UsageError("--photos needs --codes too")
    if codes is not None and photos is None and not names:
        raise UsageError("--codes needs --photos too, or --metric corruption-kid")
    if photos is not None and (reference is not None or save_reference is not None):
        raise UsageError("--reference belongs to samples, --codes and --photos to pairs: give one of them")
    if photos is None and csv_file is not None:
        raise UsageError("--csv writes the numbers of pairs: give --codes and --photos")
    if save_reference is not None and reference is None:
        raise UsageError("--save-reference needs --reference")
    if codes is not None and epsilon:
        raise UsageError("--epsilon belongs to samples: codes have an ε of their own")
    if not math.isfinite(epsilon):
        raise UsageError(f"--epsilon {epsilon}: not a finite number")


def _evaluate_pairs(
    results: Results,
    model: "Model",
    names: Sequence[str],
    photos: Path,
    codes: Path,
    csv_file: Path | None,
    batch: int,
) -> None:
    from wrangan_cli.engine.distributed import gather_shares, is_main, own_share
    from wrangan_cli.engine.metrics.base import mean_interval
    from wrangan_cli.engine.metrics.pairs import compare_pairs, load_metrics, pair_by_stem
    from wrangan_cli.engine.metrics.registry import pair_metrics

    metrics = pair_metrics(names)
    pairs, left = by_main(lambda: pair_by_stem(photos, codes))
    measures, missing = load_metrics(metrics, model.device)
    own: list[Compared] = []
    if measures:
        share = own_share(pairs)
        with progress("comparing", len(share)) as bar:
            advance = _rated(bar)
            for count, compared in enumerate(compare_pairs(model, share, measures, batch), 1):
                own.append(compared)
                advance(count)
    whole = gather_shares(own)
    if not is_main():
        return
    for error in [*left, *missing]:
        results.failed(error)
    for compared in whole:
        if compared.error is not None:
            results.failed(compared.error, compared.pair.photo)
    done = [compared for compared in whole if compared.error is None]
    if not done:
        return
    for metric in metrics:
        if metric.name not in measures:
            continue
        mean, interval = mean_interval([compared.values[metric.name] for compared in done])
        spread = f"95 % [{interval[0]:.6g}, {interval[1]:.6g}]" if interval else "no interval"
        counted = "1 pair" if len(done) == 1 else f"{len(done)} pairs"
        results.record(
            f"{metric.name}  {mean:.6g}  {spread}  {counted}  ({metric.protocol})",
            metric=metric.name,
            value=mean,
            interval=interval,
            confidence=0.95,
            count=len(done),
            higher_is_better=metric.higher_is_better,
            protocol=metric.protocol,
            model=model.name,
        )
    if csv_file is not None:
        _write_csv(csv_file, list(measures), done)
        results.wrote(csv_file)


def _write_csv(path: Path, names: Sequence[str], rows: Sequence["Compared"]) -> None:
    from wrangan_cli.engine.files import replaced_atomically

    with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["photo", "code", *names])
        for row in rows:
            writer.writerow([row.pair.photo, row.pair.code, *(row.values[name] for name in names)])


@dataclass(frozen=True)
class _Samples:
    """Which images are generated: of random z, or of codes at moved w."""

    codes: Path | None
    count: int
    seed: int
    batch: int
    epsilon: float


def _evaluate_samples(
    results: Results,
    model: "Model",
    names: Sequence[str],
    reference: Path | None,
    save_reference: Path | None,
    plan: _Samples,
) -> None:
    from wrangan_cli.engine.codes import find_codes, load_code
    from wrangan_cli.engine.distributed import is_main, own_share
    from wrangan_cli.engine.metrics.corruption import moved_images
    from wrangan_cli.engine.metrics.inception import load_inception
    from wrangan_cli.engine.metrics.registry import code_metrics, sample_metrics
    from wrangan_cli.engine.metrics.samples import generated_features, model_reference, shared_features
    from wrangan_cli.engine.metrics.samples import save_reference as save

    metrics = sample_metrics(names) if plan.codes is None else code_metrics(names)
    if plan.codes is None:
        _evaluate_layers(results, model, names, plan)
        if not metrics and save_reference is None:
            return
    folder = plan.codes
    if folder is not None:
        found = by_main(lambda: [load_code(path, model) for path in find_codes(folder)])
    load = cache(lambda: load_inception(model.device, wanted_by=", ".join(names) or "reference features"))
    by_main(lambda: bool(load()))
    inception = load()
    if reference is None:
        real = by_main(lambda: model_reference(model))
    else:
        real = _reference_of(results, model, reference, inception, plan.batch)
        if save_reference is not None:
            by_main(lambda: save(save_reference, real))
            if is_main():
                results.wrote(save_reference, count=len(real.features), resolution=real.resolution)
    if not metrics:
        return
    share = own_share(range(plan.count))
    with progress("sampling", len(share)) as bar:
        if plan.codes is None:
            generated = generated_features(
                model, inception, plan.count, plan.seed, plan.batch, plan.epsilon, _rated(bar)
            )
        else:
            images = moved_images(model, found, share, plan.seed, plan.batch)
            generated = shared_features(inception, images, _rated(bar))
    if not is_main():
        return
    for metric in metrics:
        try:
            estimate = metric.compute(generated, real.features)
        except WranganError as error:
            results.failed(error)
            continue
        spread = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.2g}"
        counts = f"{plan.count} samples, {len(real.features)} of {real.source}"
        if plan.codes is not None:
            counts = f"{len(found)} codes, {counts}"
        results.record(
            f"{metric.name}  {estimate.value:.6g}{spread}  {counts}  ({metric.protocol})",
            metric=metric.name,
            value=estimate.value,
            standard_error=estimate.standard_error,
            samples=plan.count,
            reference_count=len(real.features),
            reference=real.source,
            resolution=model.resolution,
            **({"epsilon": plan.epsilon} if plan.codes is None else {"codes": len(found)}),
            seed=plan.seed,
            higher_is_better=metric.higher_is_better,
            protocol=metric.protocol,
            model=model.name,
        )


def _evaluate_layers(results: Results, model: "Model", names: Sequence[str], plan: _Samples) -> None:
    from wrangan_cli.engine.distributed import is_main
    from wrangan_cli.engine.metrics.registry import layer_metrics

    if not is_main():
        return
    for metric in layer_metrics(names):
        counts = f", {plan.count} samples" if metric.draws else ""
        for layer, value in metric.compute(model, plan.count, plan.seed, plan.batch).items():
            results.record(
                f"{metric.name}  {layer}  {value:.6g}  ({metric.protocol}{counts})",
                metric=metric.name,
                layer=layer,
                value=value,
                **({"samples": plan.count, "seed": plan.seed} if metric.draws else {}),
                protocol=metric.protocol,
                model=model.name,
            )


def _reference_of(results: Results, model: "Model", path: Path, inception: Any, batch: int) -> "Reference":
    from wrangan_cli.engine.distributed import is_main, own_share
    from wrangan_cli.engine.metrics.samples import Reference, image_set_features
    from wrangan_cli.engine.training.data import default_cache_dir, load_image_set

    load = cache(lambda: load_image_set([path], model.resolution, default_cache_dir()))
    by_main(lambda: bool(load()))
    images = load()
    if is_main():
        for name in images.broken:
            results.failed(f"{name}: cannot be read, left out of the reference", path)
    with progress("reference", len(own_share(images.names))) as bar:
        features = image_set_features(images, inception, batch, default_cache_dir(), _rated(bar), shared=True)
    return Reference(features, path.name, model.resolution)


def _rated(bar: "Progress") -> Callable[[int], None]:
    """A function of the number done that moves `bar` and shows images a second."""
    start = time.monotonic()

    def advance(done: int) -> None:
        rate = done / max(time.monotonic() - start, 1e-9)
        bar.update(bar.task_ids[0], completed=done, rate=f"{rate:.1f} images/s")

    return advance
