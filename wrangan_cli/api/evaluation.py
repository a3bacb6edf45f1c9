"""Compare codes with their photographs."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from wrangan_cli.api.codes import CodeLike, loaded_codes
from wrangan_cli.api.models import ModelLike, model_of
from wrangan_cli.api.pictures import Picture, Progress, as_list, photograph, warn_of_range
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric, mean_interval
from wrangan_cli.engine.metrics.pairs import load_metrics, measured, recorded, side_note, size_of
from wrangan_cli.engine.metrics.registry import (
    check_pair_metrics,
    default_pair_metrics,
    pair_metrics,
    record_metrics,
)
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.perceptual import METRIC_SIDE

logger = logging.getLogger("wrangan")


class Scores(TypedDict):
    """The values of a metric for pairs of a code and its photograph."""

    values: list[float]
    """One per pair, in the given order."""
    mean: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the mean; None for a single pair, and for seconds and peak-memory."""
    higher_is_better: bool
    protocol: str
    """Ranges, sizes and constants, in one line."""


def evaluate(
    codes: CodeLike | Sequence[CodeLike],
    photos: Picture | Sequence[Picture],
    metrics: str | Sequence[str] | None = None,
    model: ModelLike | None = None,
    *,
    metric_side: int = METRIC_SIDE,
    batch: int = 16,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Measure how close the images of codes come to their photographs, as `wrangan evaluate` does.

    codes and photos: one of each, or lists of the same length; photographs as `invert` takes them, each
    compared at the side at which it was inverted. metrics: a name, or several, among mse, psnr, ms-ssim,
    lpips-vgg, lpips-alex, st-lpips-vgg, st-lpips-alex, identity, seconds and peak-memory; None: mse, psnr,
    ms-ssim and the model's perceptual distance. model: None: the one with which the codes were made.
    metric_side: first reduce larger photographs and their images to this side in px; 0: do not reduce. batch:
    number of pairs at a time; does not change the results. progress: called with the number of pairs done,
    and the total.

    Returns metric → `Scores`: `result["mse"]["mean"]`. Raises WranganError for unknown metrics, those whose
    packages are missing, and pairs that cannot be compared. Warns in the log `wrangan` if the error of a pair
    is far larger than after the inversion: the photograph may be a different one.
    """
    loaded, _ = loaded_codes(codes)
    pictures, _ = as_list(photos)
    warn_of_range(pictures)
    if len(pictures) != len(loaded):
        raise UsageError(f"{len(loaded)} codes and {len(pictures)} photographs: expected one of each")
    if metric_side < 0 or batch < 1:
        raise UsageError(f"metric_side {metric_side}, batch {batch}: expected 0 or more, and 1 or more")
    resolved = model_of(model, loaded)
    chosen = default_pair_metrics(resolved) if metrics is None else metrics
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    check_pair_metrics(names)
    of_images, of_records = pair_metrics(names), record_metrics(names)
    measures, lacking = load_metrics(of_images, resolved.device)
    if lacking:
        raise lacking[0]
    requested = set(measures)
    measures |= load_metrics(pair_metrics([_ERROR]), resolved.device)[0]  # to tell photographs apart
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
            _warn_if_unlike(code, pictures[len(rows)], values[_ERROR], len(rows) + 1)
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
        of_pairs = metric.name in requested
        scores[metric.name] = Scores(
            values=column,
            mean=mean,
            interval=interval if of_pairs else None,
            higher_is_better=metric.higher_is_better,
            protocol=f"{metric.protocol}; {side_note(metric_side)}" if of_pairs else metric.protocol,
        )
    return scores


_ERROR = "mse"
_UNLIKE = (4.0, 0.05)
"""Factor and offset: warn above factor · (error recorded by inversion) + offset. Among 26,000 pairs of
aligned photographs of different faces none differ by less than .068, and the same photograph, compressed to
JPEG quality 60 and reduced to half its side, differs by .02 at most."""


def _warn_if_unlike(code: Code, picture: Picture, error: float, number: int) -> None:
    """Warn if a photograph differs from the image of its code far more than the inverted one did.

    The sha256 of its file does not decide: the same photograph may be given as a tensor, in another size or
    format.
    """
    distortion = code.info.get("distortion")
    after = distortion.get("after") if isinstance(distortion, dict) else None
    before = after.get(_ERROR) if isinstance(after, dict) else None
    if not isinstance(before, int | float) or not error > _UNLIKE[0] * before + _UNLIKE[1]:
        return
    if isinstance(picture, str | Path) and sha256(Path(picture)) == code.info.get("source_sha256"):
        return  # the code was changed, not the photograph
    logger.warning(
        "pair %d: mse %.3g, and %.3g after the inversion: is it the photograph that was inverted?",
        *(number, error, before),
    )
