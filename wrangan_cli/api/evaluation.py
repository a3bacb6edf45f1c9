"""Compare codes with their photographs."""

import math
from collections.abc import Sequence
from typing import TypedDict

from wrangan_cli.api.codes import CodeLike, loaded_codes
from wrangan_cli.api.models import ModelLike, model_of
from wrangan_cli.api.pictures import Picture, Progress, as_list, photograph
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric, mean_interval
from wrangan_cli.engine.metrics.pairs import load_metrics, measured, recorded, side_note, size_of
from wrangan_cli.engine.metrics.registry import default_pair_metrics, pair_metrics, record_metrics
from wrangan_cli.engine.models.perceptual import METRIC_SIDE


class Scores(TypedDict):
    """The values of a metric for pairs of a code and its photograph."""

    values: list[float]
    """One per pair, in the given order."""
    mean: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the mean; None for a single pair, and for values recorded by inversion."""
    higher_is_better: bool
    protocol: str
    """Ranges, sizes and constants, in one line."""


def evaluate(
    codes: CodeLike | Sequence[CodeLike],
    photos: Picture | Sequence[Picture],
    metrics: Sequence[str] | None = None,
    model: ModelLike | None = None,
    *,
    metric_side: int = METRIC_SIDE,
    batch: int = 16,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Measure how close the images of codes come to their photographs, as `wrangan evaluate` does.

    codes and photos: one of each, or lists of the same length; photographs as `invert` takes them, each
    compared at the side at which it was inverted. metrics: names among mse, psnr, ms-ssim, lpips-vgg,
    lpips-alex, st-lpips-vgg, st-lpips-alex, identity, seconds and peak-memory; None: mse, psnr, ms-ssim
    and the model's perceptual distance. model: None: the one with which the codes were made. metric_side:
    first reduce larger photographs and their images to this side in px; 0: do not reduce. batch: number of
    pairs at a time; does not change the results. progress: called with the number of pairs done, and the
    total.

    Returns metric → `Scores`: `result["mse"]["mean"]`. Raises WranganError for unknown metrics, those whose
    packages are missing, and pairs that cannot be compared.
    """
    loaded, _ = loaded_codes(codes)
    pictures, _ = as_list(photos)
    if len(pictures) != len(loaded):
        raise UsageError(f"{len(loaded)} codes and {len(pictures)} photographs: expected one of each")
    if metric_side < 0 or batch < 1:
        raise UsageError(f"metric_side {metric_side}, batch {batch}: expected 0 or more, and 1 or more")
    resolved = model_of(model, loaded)
    names = list(metrics) if metrics is not None else default_pair_metrics(resolved)
    of_images, of_records = pair_metrics(names), record_metrics(names)
    measures, lacking = load_metrics(of_images, resolved.device)
    if lacking:
        raise lacking[0]
    rows: list[dict[str, float]] = []
    for start in range(0, len(loaded), batch):
        part = loaded[start : start + batch]
        images = [
            photograph(picture, resolved.resolution, size_of(code), f"photo {number}")
            for number, (picture, code) in enumerate(zip(pictures[start:], part, strict=False), start + 1)
        ]
        for values, code in zip(measured(resolved, images, part, measures, metric_side), part, strict=True):
            known, missing = recorded(code, of_records)
            for why in missing.values():
                raise WranganError(f"code {len(rows) + 1}: {why}")
            rows.append({**values, **known})
        if progress is not None:
            progress(len(rows), len(loaded))
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if not math.isfinite(value):
                raise WranganError(f"pair {number}: {name} is {value}")
    scores: dict[str, Scores] = {}
    everything: list[PairMetric | RecordMetric] = [*of_images, *of_records]
    for metric in everything:
        column = [row[metric.name] for row in rows]
        mean, interval = mean_interval(column)
        of_pairs = metric.name in measures
        scores[metric.name] = Scores(
            values=column,
            mean=mean,
            interval=interval if of_pairs else None,
            higher_is_better=metric.higher_is_better,
            protocol=f"{metric.protocol}; {side_note(metric_side)}" if of_pairs else metric.protocol,
        )
    return scores
