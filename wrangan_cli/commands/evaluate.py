"""`wrangan evaluate`: metrics of codes against photographs, or of samples against real images."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import typer

from wrangan_cli.commands.evaluation import (
    ConsistencyInputs,
    PairInputs,
    evaluate_consistency,
    evaluate_drift,
    evaluate_pairs,
)
from wrangan_cli.commands.evaluation_faces import (
    EditSuccessInputs,
    evaluate_edit_success,
    evaluate_face_fraction,
)
from wrangan_cli.commands.evaluation_samples import SampleInputs, evaluate_samples
from wrangan_cli.commands.panels import EVALUATE
from wrangan_cli.commands.report import BATCH, SAMPLES, ReportRequest, run_report
from wrangan_cli.commands.shell import Results, by_main, in_panels
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError


@in_panels(EVALUATE)
def evaluate(
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable. For pairs of code and photograph: mse, psnr, ms-ssim, lpips-vgg, lpips-alex, "
            "st-lpips-vgg, st-lpips-alex, identity, seconds, peak-memory (default: mse, psnr, ms-ssim and "
            "the model's perceptual distance); edit-success. "
            "For samples: fid (default), kid, precision, recall (on Inception features), precision-vgg16, "
            "recall-vgg16 (the authors' protocol; needs --reference). "
            "For codes alone: corruption-kid, corruption-fid, corruption-pooled-kid, corruption-pooled-fid, "
            "corruption-face, drift, lec, lec-image. "
            "For a model's random layers: std-share, layer-influence. For its attributes: separability."
        ),
    ] = None,
    codes: Annotated[Path | None, typer.Option(help="A folder of codes (.st), or one code.")] = None,
    photos: Annotated[
        Path | None, typer.Option(help="The photographs, matched to codes by name: a folder or a file.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Codes of another method: count the photographs on which --codes do better."),
    ] = None,
    metric_side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Reduce larger photographs and their images to this side in px before comparing them, "
            "as published figures do (default: 256); 0: do not reduce.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write the values for each pair (or code) to this file.")
    ] = None,
    direction: Annotated[
        str,
        typer.Option(
            help="The direction; empty: the model's first (lec), or all directions that have a score "
            "(edit-success)."
        ),
    ] = "",
    strength: Annotated[
        float | None,
        typer.Option(
            help="In standard deviations. lec: both ways (default: 3). edit-success: away from what the "
            "photograph shows (default: step by step, until the attribute has changed)."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a report, as `wrangan report PHOTOS --out FOLDER` does; takes --methods and --set."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(hidden=True)] = "all",
    setting: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Zip, folder or LMDB of real images; default: the features stored with the model."),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            help="Write the features of --reference to this file (reference.safetensors in a model's folder)."
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Number of generated images; for corruption, over all codes together.")
    ] = SAMPLES,
    epsilon: Annotated[
        float,
        typer.Option(help="Scale of ε ~ N(0, 1), sampled for each generated image; 0: the mean weights."),
    ] = 0.0,
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = DEFAULT_MODEL,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    batch: Annotated[
        int, typer.Option(min=1, help="Number of images at a time; does not change the results.")
    ] = BATCH,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per metric, one per line.")
    ] = False,
) -> None:
    """Measure codes against their photographs, or a model's samples against real images.

    With --codes and --photos: compare each photograph with the image of its code, and print
    the mean with its 95 % bootstrap interval. With --codes alone: render images at randomly moved w
    with the codes' weights (corruption), or edit the codes, re-invert them and move them back
    (lec). With neither: measure generated samples. Under torchrun each process does a part, and the
    first one prints. For all of the paper's tables at once, use `wrangan report`.
    """
    from wrangan_cli.engine.base.distributed import process_group
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.metrics.consistency import STRENGTH
    from wrangan_cli.engine.metrics.registry import default_pair_metrics
    from wrangan_cli.engine.metrics.sampling import Samples
    from wrangan_cli.engine.models.perceptual import METRIC_SIDE

    names = metric or []
    given = {
        "--metric": metric,
        "--against": against,
        "--metric-side": metric_side is not None,
        "--csv": csv_file,
        "--direction": direction,
        "--strength": strength is not None,
        "--reference": reference,
        "--save-reference": save_reference,
        "--epsilon": epsilon,
        "--methods": methods != "all",
        "--set": setting,
    }
    mode = _mode(names, codes, photos, report)
    _check_applicable(mode, [option for option, value in given.items() if value])
    results = Results(as_json)
    if mode == "report":
        assert photos is not None  # or _mode would have refused
        assert report is not None
        request = ReportRequest(
            photos, report, codes, methods, setting or [], reference, samples, seed, batch
        )
        run_report(results, request, model, device)
        return
    _check_metrics(mode, names, reference, save_reference, epsilon)
    if csv_file is not None and mode == "lec" and "drift" in names:
        raise UsageError("--csv can hold the values of lec or of drift, not of both: measure one at a time")
    with process_group():
        place = resolve_device(device)
        load = cache(lambda: load_model(model, place))
        by_main(lambda: bool(load()))  # so that an error is reported only once
        loaded = load()
        if codes is not None and photos is not None and mode == "edit-success":
            plan = EditSuccessInputs(photos, codes, direction, strength, csv_file)
            evaluate_edit_success(results, loaded, plan)
        elif codes is not None and photos is not None:
            names = names or default_pair_metrics(loaded)
            side = METRIC_SIDE if metric_side is None else metric_side
            pairs = PairInputs(photos, codes, against, csv_file, batch, side)
            evaluate_pairs(results, loaded, names, pairs)
        else:
            names = names or ([] if save_reference else ["fid"])
            if codes is not None:
                size = STRENGTH if strength is None else strength
                edits = ConsistencyInputs(codes, direction, size, csv_file, batch)
                evaluate_consistency(results, loaded, names, edits)
                evaluate_drift(results, loaded, names, codes, csv_file, seed)
            sampling = Samples(samples, seed, batch, epsilon)
            evaluate_face_fraction(results, loaded, names, codes, sampling)
            files = SampleInputs(codes, reference, save_reference)
            evaluate_samples(results, loaded, names, files, sampling)
        results.finish()


Mode = Literal["report", "pairs", "edit-success", "lec", "drift", "codes", "samples"]
_APPLIES: dict[str, tuple[tuple[Mode, ...], str]] = {
    "--metric": (
        ("pairs", "edit-success", "lec", "drift", "codes", "samples"),
        "cannot be used with --report",
    ),
    "--against": (("pairs",), "compares pairs: give --codes and --photos, and no --metric edit-success"),
    "--metric-side": (
        ("pairs",),
        "applies to pairs: give --codes and --photos, and no --metric edit-success",
    ),
    "--csv": (
        ("pairs", "edit-success", "lec", "drift"),
        "applies to pairs (give --codes and --photos), and to --metric edit-success, lec and drift",
    ),
    "--direction": (("edit-success", "lec"), "applies to --metric lec and edit-success"),
    "--strength": (("edit-success", "lec"), "applies to --metric lec and edit-success"),
    "--reference": (
        ("samples", "codes", "lec", "drift", "report"),
        "applies to samples, --codes and --photos to pairs: give one or the other",
    ),
    "--save-reference": (("samples", "codes", "lec", "drift"), "needs --reference, and no --photos"),
    "--epsilon": (("samples",), "applies to samples: codes contain their ε"),
    "--methods": (("report",), "applies to --report"),
    "--set": (("report",), "applies to --report"),
}
"""Option → the modes to which it applies, and the error in any other mode."""


def _mode(names: Sequence[str], codes: Path | None, photos: Path | None, report: Path | None) -> Mode:
    """The mode that the options select; UsageError if there is none."""
    if report is not None:
        if photos is None:
            raise UsageError("--report needs --photos, a folder of photographs")
        return "report"
    if photos is not None and codes is None:
        raise UsageError("--photos needs --codes too")
    if codes is None:
        return "samples"
    if photos is not None:
        return "edit-success" if "edit-success" in names else "pairs"
    if not names:
        raise UsageError("--codes needs --photos too, or --metric corruption-kid")
    if {"lec", "lec-image"} & set(names):
        return "lec"
    return "drift" if "drift" in names else "codes"


def _check_applicable(mode: Mode, given: Sequence[str]) -> None:
    """UsageError for options that do not apply to the mode."""
    useless = [option for option in given if mode not in _APPLIES[option][0]]
    if useless and mode == "report":
        raise UsageError(
            f"--report measures everything: leave out {', '.join(useless)} (see --set for what can vary)"
        )
    if useless:
        raise UsageError(f"{useless[0]} {_APPLIES[useless[0]][1]}")


def _check_metrics(
    mode: Mode, names: Sequence[str], reference: Path | None, save_reference: Path | None, epsilon: float
) -> None:
    """UsageError for metrics that the mode does not have, and for options that they lack."""
    from wrangan_cli.engine.metrics.registry import SAMPLE_METRICS, code_metrics, pair_metrics, sample_metrics

    if mode == "edit-success" and len(set(names)) > 1:
        raise UsageError("edit-success cannot be combined with other metrics: give it alone")
    check: Callable[[Sequence[str]], object] = pair_metrics
    if mode in ("lec", "drift", "codes"):
        check = code_metrics
    elif mode == "samples":
        check = sample_metrics
    check(names)
    if save_reference is not None and reference is None:
        raise UsageError("--save-reference needs --reference")
    if not math.isfinite(epsilon):
        raise UsageError(f"--epsilon {epsilon}: not a finite number")
    if epsilon and names and not set(SAMPLE_METRICS) & set(names):
        raise UsageError(f"--epsilon applies to {', '.join(SAMPLE_METRICS)}")
    of_vgg16 = [n for n in names if n in SAMPLE_METRICS and SAMPLE_METRICS[n].network == "vgg16"]
    if of_vgg16 and reference is None:
        raise UsageError(
            f"{', '.join(of_vgg16)}: give --reference (images): the model stores only Inception features"
        )
