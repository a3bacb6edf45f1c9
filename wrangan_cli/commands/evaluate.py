"""`wrangan evaluate`: metrics of codes against photographs, or of samples against real images."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.evaluation import Edits, Pairs, evaluate_edits, evaluate_pairs
from wrangan_cli.commands.evaluation_faces import People, evaluate_faces, evaluate_people
from wrangan_cli.commands.evaluation_samples import Samples, evaluate_samples
from wrangan_cli.commands.report import make_report
from wrangan_cli.commands.shell import Results, by_main
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError


def evaluate(
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. Of pairs: mse, psnr, ms-ssim, lpips-vgg, lpips-alex, st-lpips-vgg, "
            "st-lpips-alex, identity, seconds, peak-memory (default: mse, psnr, ms-ssim and the model's "
            "perceptual distance); edit-success. "
            "Of samples: fid, kid, precision, recall (on Inception features), precision-vgg16, recall-vgg16 "
            "(the authors'; with --reference) (default: fid). "
            "Of codes alone: corruption-kid, corruption-fid, corruption-pooled-kid, corruption-pooled-fid, "
            "corruption-face, lec, lec-image. "
            "Of a model's random layers: std-share, layer-influence. Of its attributes: separability."
        ),
    ] = None,
    codes: Annotated[Path | None, typer.Option(help="Codes: a folder of .st files, or one file.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="Photographs of the same stems: folder or file.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Codes of another method: how often those of --codes win, photograph by photograph."
        ),
    ] = None,
    metric_side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of pairs: larger photographs, and their images, are reduced to this side in px before they "
            "are compared, as published figures are (default: 256); 0: each at its own side.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the numbers of each pair (or code) here.")
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="Of lec and edit-success: the direction; empty: the model's first (lec), or all that a "
            "score belongs to (edit-success)."
        ),
    ] = "",
    strength: Annotated[
        float | None,
        typer.Option(
            help="Standard deviations of the edit: of lec both ways (default: 3), of edit-success towards "
            "what the photograph does not show (default: step by step, until the attribute has changed)."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Invert --photos with --methods; write tables, figures and a page into this folder."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of --report: all that the model has, or names with commas between.")
    ] = "all",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Of --report, repeatable: NAME=VALUE for all methods (steps=125), METHOD.NAME=VALUE for "
            "one, or one of the report's own (docs/report.md).",
        ),
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
    samples: Annotated[
        int, typer.Option(min=1, help="Number of generated images; of corruption, of all codes together.")
    ] = 2000,
    epsilon: Annotated[
        float, typer.Option(help="Scale of ε ~ N(0, 1), drawn for each generated image; 0: the mean weights.")
    ] = 0.0,
    model: Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")] = DEFAULT_MODEL,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at once; the numbers do not depend on it.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a metric and line.")] = False,
) -> None:
    """Measure codes against their photographs, or a model's samples against real images.

    With --codes and --photos: each photograph is compared with the image of its code, and
    the mean is printed with its 95 % bootstrap interval. Without: generated samples. With
    --codes alone: images at w moved at random, drawn with the codes' weights (corruption), or
    codes edited, inverted again and moved back (lec). With --report: all of the paper's tables.
    Under torchrun each process does its share, and the first one prints.
    """
    from wrangan_cli.engine.base.distributed import process_group
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.metrics import edit_success
    from wrangan_cli.engine.metrics.consistency import STRENGTH
    from wrangan_cli.engine.metrics.registry import (
        code_metrics,
        default_pair_metrics,
        pair_metrics,
        sample_metrics,
    )
    from wrangan_cli.engine.models.perceptual import METRIC_SIDE

    names = metric or []
    if report is not None:
        if photos is None:
            raise UsageError("--report needs --photos, a folder of photographs")
        _check_report(
            {
                "--metric": metric,
                "--against": against,
                "--metric-side": metric_side is not None,
                "--csv": csv_file,
                "--direction": direction,
                "--strength": strength,
                "--save-reference": save_reference,
                "--epsilon": epsilon,
            }
        )
        results = Results(as_json)
        with process_group():
            load = cache(lambda: load_model(model, resolve_device(device)))
            by_main(lambda: bool(load()))
            make_report(
                results,
                load(),
                report,
                photos,
                codes,
                methods,
                setting or [],
                reference,
                samples,
                seed,
                batch,
            )
            results.finish()
        return
    if methods != "all" or setting:
        raise UsageError("--methods and --set belong to --report")
    _check_options(names, codes, photos, csv_file, reference, save_reference, epsilon)
    people = edit_success.NAME in names
    if (direction or strength is not None) and not {"lec", "lec-image", edit_success.NAME} & set(names):
        raise UsageError("--direction and --strength belong to --metric lec and edit-success")
    if metric_side is not None and (photos is None or people):
        raise UsageError("--metric-side is of pairs: give --codes and --photos, and no --metric edit-success")
    if people and (len(set(names)) > 1 or against is not None):
        raise UsageError("edit-success is measured by itself: leave out other metrics and --against")
    if against is not None and photos is None:
        raise UsageError("--against compares pairs: give --codes and --photos")
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
        if codes is not None and photos is not None and people:
            evaluate_people(results, loaded, People(photos, codes, direction, strength, csv_file))
        elif codes is not None and photos is not None:
            names = names or default_pair_metrics(loaded)
            side = METRIC_SIDE if metric_side is None else metric_side
            evaluate_pairs(results, loaded, names, Pairs(photos, codes, against, csv_file, batch, side))
        else:
            names = names or ([] if save_reference else ["fid"])
            if codes is not None:
                edits = Edits(codes, direction, STRENGTH if strength is None else strength, csv_file, batch)
                evaluate_edits(results, loaded, names, edits)
            plan = Samples(codes, samples, seed, batch, epsilon)
            evaluate_faces(results, loaded, names, plan)
            evaluate_samples(results, loaded, names, reference, save_reference, plan)
        results.finish()


def _check_report(given: Mapping[str, object]) -> None:
    """UsageError for options that a report has no use for. given: option → what was given."""
    useless = [name for name, value in given.items() if value]
    if useless:
        raise UsageError(
            f"--report takes all measures: leave out {', '.join(useless)} (see --set for what it can vary)"
        )


def _check_options(
    names: Sequence[str],
    codes: Path | None,
    photos: Path | None,
    csv_file: Path | None,
    reference: Path | None,
    save_reference: Path | None,
    epsilon: float,
) -> None:
    from wrangan_cli.engine.metrics.registry import SAMPLE_METRICS

    if photos is not None and codes is None:
        raise UsageError("--photos needs --codes too")
    if codes is not None and photos is None and not names:
        raise UsageError("--codes needs --photos too, or --metric corruption-kid")
    if photos is not None and (reference is not None or save_reference is not None):
        raise UsageError("--reference belongs to samples, --codes and --photos to pairs: give one of them")
    if photos is None and csv_file is not None and not {"lec", "lec-image"} & set(names):
        raise UsageError("--csv writes the numbers of pairs: give --codes and --photos")
    of_vgg16 = [n for n in names if n in SAMPLE_METRICS and SAMPLE_METRICS[n].network == "vgg16"]
    if of_vgg16 and codes is None and reference is None:
        raise UsageError(
            f"{', '.join(of_vgg16)}: give --reference (images), for a model's own is of Inception features"
        )
    if save_reference is not None and reference is None:
        raise UsageError("--save-reference needs --reference")
    if codes is not None and epsilon:
        raise UsageError("--epsilon belongs to samples: codes have an ε of their own")
    if epsilon and names and not set(SAMPLE_METRICS) & set(names):
        raise UsageError(f"--epsilon belongs to {', '.join(SAMPLE_METRICS)}")
    if not math.isfinite(epsilon):
        raise UsageError(f"--epsilon {epsilon}: not a finite number")
