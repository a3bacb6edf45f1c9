"""Photographs compared with the images of their codes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.names import same_name
from wrangan_cli.engine.data.photo_files import images_by_stem
from wrangan_cli.engine.data.photographs import by_side, check_source, load_photograph
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric
from wrangan_cli.engine.models.codes import IMPORTED, SUFFIX, Code, find_codes, load_code, render
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import reduced
from wrangan_cli.engine.models.perceptual import METRIC_SIDE

Measure = Callable[[Tensor, Tensor], Tensor]
"""Two batches (B, 3, H, W) in [-1, 1] → (B,)."""


@dataclass(frozen=True)
class Pair:
    """A photograph and its code, of the same stem."""

    photo: Path
    code: Path


@dataclass(frozen=True)
class Compared:
    """The metrics of a pair: values by metric name, or why there are none."""

    pair: Pair
    values: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Metrics missing in the code's record: metric name → why."""
    error: WranganError | OSError | None = None
    side: int | None = None
    """Side in px at which the code was fitted to the photograph; both may be reduced further to compare."""


def side_note(side: int) -> str:
    """What a setting `metric_side` of `side` px means, as a note beside the numbers."""
    if not side:
        return "at the side of the photograph"
    return f"photographs of more than {side} px and their images reduced to {side} by area"


def pair_by_stem(photos: Path, codes: Path) -> tuple[list[Pair], list[FileError]]:
    """Photographs and codes of the same stem, and an error for each file with no partner or too many.

    Raises FileError for a folder without photographs or codes, and for a missing path.
    """
    if not codes.exists():
        raise FileError(codes, "no such file or folder")
    by_stem = images_by_stem(photos)
    pairs: list[Pair] = []
    left: list[FileError] = []
    code_of: dict[str, Path] = {}
    for code in find_codes(codes):
        first = code_of.setdefault(same_name(code.stem), code)
        if first != code:
            left.append(FileError(code, f"its name differs from {first} only in Unicode form"))
    for stem, candidates in by_stem.items():
        if len(candidates) > 1:
            left += [
                FileError(photo, f"shares its name with {_rest(photo, candidates)}") for photo in candidates
            ]
        elif stem in code_of:
            pairs.append(Pair(candidates[0], code_of[stem]))
        else:
            left.append(FileError(candidates[0], f"no code {stem}{SUFFIX} in {codes}"))
    left += [
        FileError(code, f"no photograph {stem}.* in {photos}")
        for stem, code in code_of.items()
        if stem not in by_stem
    ]
    return pairs, left


def load_metrics(
    metrics: Sequence[PairMetric], device: torch.device
) -> tuple[dict[str, Measure], list[WranganError]]:
    """The functions of `metrics` by name, and the errors of those that cannot be loaded."""
    measures: dict[str, Measure] = {}
    missing: list[WranganError] = []
    for metric in metrics:
        try:
            measures[metric.name] = metric.load(device)
        except WranganError as error:
            missing.append(error)
    return measures, missing


def compare_pairs(
    model: Model,
    pairs: Sequence[Pair],
    measures: Mapping[str, Measure],
    batch: int = 8,
    records: Sequence[RecordMetric] = (),
    metric_side: int = METRIC_SIDE,
) -> Iterator[Compared]:
    """Apply `measures` to each pair, in order, at the side at which the code was made: that of the
    photograph, at most the model's, or the setting `size` in the code's record. If this exceeds `metric_side`
    px (0: no limit), compare at `metric_side`.

    records: metrics that are also read from the codes' records.

    The image of the code is clipped to [-1, 1] and not rounded to 8 bits. The photograph is
    loaded as for inversion (central square, box filter), and the image reduced by area averaging to its side.
    Then both are reduced to `metric_side` by area averaging.
    A pair that cannot be read or rendered has an error and no values.
    """
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        outcome: list[Compared | None] = []
        photos: list[Tensor] = []
        codes: list[Code] = []
        for pair in part:
            try:
                code = load_code(pair.code, model)
                photo = load_photograph(pair.photo, model.resolution, size_of(code))
                check_source(pair.photo, pair.code, code.info)
            except (WranganError, OSError) as error:
                outcome.append(Compared(pair, error=error))
            else:
                codes.append(code)
                photos.append(photo)
                outcome.append(None)
        rows = iter(measured(model, photos, codes, measures, metric_side))
        told = iter([recorded(code, records) for code in codes])
        sides = iter([photo.shape[-1] for photo in photos])
        for pair, failed in zip(part, outcome, strict=True):
            yield failed or _checked(pair, next(rows), *next(told), next(sides))


def size_of(code: Code) -> int:
    """The setting `size` of its inversion; 0 if the record has none."""
    settings = code.info.get("settings")
    size = settings.get("size") if isinstance(settings, dict) else None
    return size if isinstance(size, int) and size > 0 else 0


def differing_sides(first: Sequence[Compared], second: Sequence[Compared]) -> dict[str, tuple[int, int]]:
    """The photographs, by stem, that were compared at different sides in `first` and `second`, with these."""
    sides = {row.pair.photo.stem: row.side for row in second}
    return {
        stem: (row.side, other)
        for row in first
        if (other := sides.get(stem := row.pair.photo.stem)) and row.side and row.side != other
    }


@torch.no_grad()
def measured(
    model: Model,
    photos: Sequence[Tensor],
    codes: Sequence[Code],
    measures: Mapping[str, Measure],
    metric_side: int = METRIC_SIDE,
) -> list[dict[str, float]]:
    """Photographs (3, S, S) in [-1, 1] against the images of their codes: metric → value, for each.

    Each at its side S, at most that of the model and `metric_side` (0: no limit); those of equal side
    together.
    """
    rows: list[dict[str, float]] = [{} for _ in codes]
    for chosen in by_side(photos):
        side = photos[chosen[0]].shape[-1]
        rendered = render(model, [codes[index] for index in chosen], side).clamp(-1, 1)
        targets = torch.stack([photos[index] for index in chosen]).to(model.device)
        rendered, targets = (reduced(images, metric_side or None) for images in (rendered, targets))
        for name, measure in measures.items():
            for index, value in zip(chosen, measure(rendered, targets).tolist(), strict=True):
                rows[index][name] = value
    return rows


def recorded(code: Code, records: Sequence[RecordMetric]) -> tuple[dict[str, float], dict[str, str]]:
    """The values of `records` in the code's record: metric → value, and metric → why there is none."""
    values, missing = {}, {}
    for metric in records:
        value = code.info.get(metric.key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            values[metric.name] = float(value)
        else:
            why = "imported" if code.info.get("method") == IMPORTED else "made by an older version"
            missing[metric.name] = f"its record has no {metric.key} ({why})"
    return values, missing


def _checked(
    pair: Pair, values: dict[str, float], told: dict[str, float], missing: dict[str, str], side: int
) -> Compared:
    for name, value in values.items():
        if not math.isfinite(value):
            return Compared(pair, error=FileError(pair.code, f"{name} is {value}"))
    return Compared(pair, {**values, **told}, missing, side=side)


def _rest(photo: Path, candidates: Sequence[Path]) -> str:
    return ", ".join(other.name for other in candidates if other != photo)
