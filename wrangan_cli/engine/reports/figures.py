"""The figures of a report: grids of images, difference maps, distributions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.editing.interpolation import render_way
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.reports.edits import panels
from wrangan_cli.engine.reports.measured import Measured
from wrangan_cli.engine.reports.plots import DASHED, SOLID, Curve, bars, coloured, curves, histograms
from wrangan_cli.engine.reports.renderings import Renderings, stacked
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Table, Value

FIGURE_SIDE = 128
"""Small images are enlarged (nearest neighbour) to about this side."""
LARGEST_SIDE = 320
"""Larger images are reduced to this side, so that a grid and its labels stay legible."""
STRATEGIES = ("weight-tuning", "pti", "wrangan")
"""The three ways of regularising tuned weights (the paper's Figure 1)."""
STRATEGY_DIRECTIONS = 4
INTERPOLATION_STEPS = 7
"""Number of images from one photograph to the next, both included."""

Figure = tuple[Path, str]
"""File and caption."""


def draw_figures(subject: Subject, renderings: Renderings, measured: Measured) -> list[Figure]:
    """Draw all figures that the codes allow, and return them with their captions."""
    stems = subject.shared_stems[: subject.settings.shown]
    figures: list[Figure] = []
    if stems and subject.jobs:
        chosen = {
            method: [job for job in jobs if job.photo.stem in stems] for method, jobs in subject.jobs.items()
        }
        figures += _reconstructions(subject, renderings, chosen)
        figures += _edits(subject, renderings, chosen)
        figures += _strategies(subject, renderings, chosen, measured)
        figures += _interpolations(subject, renderings, chosen)
    figures += _std(subject, renderings)
    for method, jobs in subject.jobs.items():
        figures += _epsilon(subject, renderings, method, jobs)
    figures += _corruption(renderings, measured.corruption)
    figures += _edit_success(renderings, measured)
    figures += _sweep(renderings, measured.sweep)
    return figures


def _reconstructions(
    subject: Subject, renderings: Renderings, chosen: Mapping[str, Sequence[Job]]
) -> list[Figure]:
    methods = list(chosen)
    jobs = next(iter(chosen.values()))
    files = [[renderings.photo(job.photo) for job in jobs]]
    files += [[renderings.reconstruction(method, job) for job in chosen[method]] for method in methods]
    columns = [[path for path in column if path is not None] for column in files]
    key = {"columns": methods, "images": [[subject.sha(path) for path in column] for column in columns]}

    def rows(crop: bool = False) -> list[Tensor]:
        """For each photograph (1 + methods, 3, S, S), at the side at which the metrics are computed."""
        found = []
        for files in zip(*columns, strict=True):
            size = load_image(files[0]).shape[-1]
            middle = slice(size // 4, size - size // 4) if crop else slice(None)
            found.append(stacked(files, size)[..., middle, middle])
        return found

    def grid(images: Sequence[Tensor], titles: Sequence[str]) -> Tensor:
        rows = [sized(row) for row in one_side(images)]
        return labelled_grid(rows, [job.photo.stem for job in jobs], titles)

    def maps() -> Tensor:
        errors = [(row[1:] - row[:1]).abs().mean(dim=1) for row in rows()]
        top = difference_scale(torch.cat([error.flatten() for error in errors]))
        return grid([coloured(error, top) for error in errors], methods)

    titles = ["photograph", *methods]
    return [
        (
            renderings.figure("reconstructions", key, lambda: grid(rows(), titles)),
            "Photographs and their reconstructions (Figures 4, 5, 10, 11).",
        ),
        (
            renderings.figure("zooms", key, lambda: grid(rows(crop=True), titles)),
            "The middle of the same images.",
        ),
        (
            renderings.figure("differences", key, maps),
            "Absolute differences from the photograph, averaged over the colour channels (Figures 12, 13). "
            "Purple: none; yellow: the 99th percentile of all differences, or more.",
        ),
    ]


def _edits(subject: Subject, renderings: Renderings, chosen: Mapping[str, Sequence[Job]]) -> list[Figure]:
    figures = []
    strength = subject.settings.strength
    for direction in subject.directions:
        files = [
            [renderings.edit(method, job, direction, strength) for job in jobs]
            for method, jobs in chosen.items()
        ]
        names = [job.photo.stem for job in next(iter(chosen.values()))]
        key = {"columns": list(chosen), "images": [[subject.sha(path) for path in row] for row in files]}

        def draw(files: list[list[Path]] = files, names: list[str] = names) -> Tensor:
            images = torch.stack([stacked(column, subject.model.resolution) for column in files], dim=1)
            return labelled_grid([sized(row) for row in images], names, list(chosen))

        path = renderings.figure(f"edits-{direction.name}", key, draw)
        figures.append((path, f"{direction.name} {strength:+g} std, by method (Figures 6, 24–28)."))
    return figures


def _strategies(
    subject: Subject, renderings: Renderings, chosen: Mapping[str, Sequence[Job]], measured: Measured
) -> list[Figure]:
    there = [method for method in STRATEGIES if method in chosen]
    if not there:
        return []
    directions = subject.directions[:STRATEGY_DIRECTIONS]
    strength = subject.settings.strength
    files: list[list[Path]] = []
    titles = []
    for method in there:
        job = chosen[method][0]
        photo = renderings.photo(job.photo)
        moved = [renderings.edit(method, job, direction, strength) for direction in directions]
        files.append([*([photo] if photo else []), renderings.reconstruction(method, job), *moved])
        numbers = {
            "MSE": measured.photos.get(method, {}).get(job.photo.stem, {}).get("mse"),
            "KID": measured.corruption.get(method, {}).get(job.photo.stem),
        }
        told = [f"{name} {value:.3g}" for name, value in numbers.items() if value is not None]
        titles.append(", ".join([method, *told]))
    key = {"titles": titles, "images": [[subject.sha(path) for path in row] for row in files]}

    def draw() -> Tensor:
        rows = [sized(stacked(row, subject.model.resolution)) for row in files]
        heads = ["photograph", "inversion", *(f"{d.name} {strength:+g}" for d in directions)]
        return labelled_grid(rows, titles, heads)

    caption = (
        "Three regularisation strategies on one photograph, with edits (Figure 1). "
        "KID: of the code's moved images, as in Table 4."
    )
    return [(renderings.figure("strategies", key, draw), caption)]


def _interpolations(
    subject: Subject, renderings: Renderings, chosen: Mapping[str, Sequence[Job]]
) -> list[Figure]:
    count = min(subject.settings.interpolations, len(next(iter(chosen.values()))) - 1)
    if count < 1:
        return []
    ends, titles = [], []
    for pair in range(count):
        for method, jobs in chosen.items():
            ends.append((jobs[pair], jobs[pair + 1]))
            titles.append(f"{jobs[pair].photo.stem} – {jobs[pair + 1].photo.stem}, {method}")
    key = {"titles": titles, "codes": [[subject.sha(job.code) for job in both] for both in ends]}

    def draw() -> Tensor:
        paths = [
            render_way(subject.model, [subject.code(job) for job in both], INTERPOLATION_STEPS)
            for both in ends
        ]
        rows = [torch.stack(list(images)).clamp(-1, 1) for images in paths]
        return labelled_grid([sized(row) for row in rows], titles)

    caption = "Linear interpolation from one code to the next (Figure 7)."
    return [(renderings.figure("interpolations", key, draw), caption)]


def _std(subject: Subject, renderings: Renderings) -> list[Figure]:
    weights = subject.model.generator.random_weights()
    if not weights:
        return []

    def draw(path: Path) -> None:
        values = {n: w.std.detach().flatten() for n, w in weights.items() if w.std is not None}
        histograms(path, values, "σ")

    path = renderings.plot("std", {"model": subject.model.sha256}, draw)
    return [(path, "Distribution of σ in each random layer (Figures 8, 9).")]


def _epsilon(subject: Subject, renderings: Renderings, method: str, jobs: Sequence[Job]) -> list[Figure]:
    some = [job for job in jobs if job.photo.stem in subject.shared_stems[: subject.settings.shown]]
    if not some or not subject.code(some[0]).epsilon:
        return []

    def draw(path: Path) -> None:
        codes = [subject.code(job) for job in some]
        names = [name for name in subject.model.generator.random_weights() if name in codes[0].epsilon]
        values = {
            name: torch.cat([code.epsilon[name].float().flatten() for code in codes if name in code.epsilon])
            for name in names
        }
        histograms(path, values, "ε")

    key = {"codes": [subject.sha(job.code) for job in some]}
    path = renderings.plot(f"epsilon-{method}", key, draw)
    caption = f"Distribution of ε in each layer after {method}, {len(some)} photographs (Figures 14–23)."
    return [(path, caption)]


def _corruption(renderings: Renderings, corruption: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    found = {method: values for method, values in corruption.items() if values}
    if not found:
        return []
    baseline = next((m for m in ("pti", "encoder") if m in found), next(iter(found)))
    others = [method for method in found if method != baseline] or [baseline]

    def difference(method: str) -> list[float]:
        less = found[baseline] if method != baseline else {}
        return [value - less.get(stem, 0.0) for stem, value in found[method].items()]

    rows = {m if m == baseline else f"{m} − {baseline}": difference(m) for m in others}

    def draw(path: Path) -> None:
        bars(path, rows, "photograph", "KID")

    path = renderings.plot("corruption", {"rows": rows}, draw)
    return [
        (
            path,
            "Corruption of each photograph's generator: KID of its moved images, minus that of "
            f"{baseline} (Figure 2, there with FID). With few images each, only large differences are "
            "meaningful.",
        )
    ]


def _edit_success(renderings: Renderings, measured: Measured) -> list[Figure]:
    found = {title: lines for title, lines in panels(measured.edits).items() if lines}
    if not found:
        return []
    whole = {
        title: [(method, SOLID, points) for method, points in lines.items()] for title, lines in found.items()
    }
    across, up = "attribute changed", "a face of the same person"
    path = renderings.plot(
        "edit-success", {"panels": whole}, lambda path: curves(path, whole, across, up, fractions=True)
    )
    caption = (
        "The same person, edited: the fraction of edits that have changed the attribute (horizontal) and "
        "the fraction that still show the same person (vertical), from the unedited image at the left in "
        "equal steps to the end of each direction's range. Up and to the right is better."
    )
    return [(path, caption)]


def _sweep(renderings: Renderings, sweep: Table) -> list[Figure]:
    """One panel per measure, one curve per method and N."""
    alphas: dict[str, list[Curve]] = {}
    lines = list(dict.fromkeys((str(row["method"]), row["layers"]) for row in sweep.rows))
    for column in sweep.columns:
        if column.higher_is_better is None:
            continue  # it describes the points rather than their quality
        for method, layers in lines:
            cells = [
                (row["alpha"], row.get(column.key))
                for row in sweep.rows
                if (row["method"], row["layers"]) == (method, layers)
            ]
            points = [(float(a), c.value) for a, c in cells if isinstance(a, float) and isinstance(c, Value)]
            style = SOLID if method == "wrangan" else DASHED
            if points:
                alphas.setdefault(column.title, []).append((f"{method}, N = {layers}", style, sorted(points)))
    if not alphas:
        return []
    path = renderings.plot("sweep", {"panels": alphas}, lambda path: curves(path, alphas, "α", log=True))
    return [(path, "Distortion over the weight α of the penalty, by method and N (Figure 3).")]


def one_side(images: Sequence[Tensor]) -> list[Tensor]:
    """Batches (N, 3, S, S), all resized to the largest S."""
    side = max(batch.shape[-1] for batch in images)
    return [
        batch
        if batch.shape[-1] == side
        else F.interpolate(batch, size=(side, side), mode="bicubic").clamp(-1, 1)
        for batch in images
    ]


def sized(images: Tensor) -> Tensor:
    """(N, 3, H, W) resized for a figure: small images are enlarged by an integer factor (nearest neighbour),
    large ones reduced by area averaging."""
    if images.shape[-1] > LARGEST_SIDE:
        return F.interpolate(images, size=(LARGEST_SIDE, LARGEST_SIDE), mode="area")
    factor = max(1, FIGURE_SIDE // images.shape[-1])
    return F.interpolate(images, scale_factor=factor) if factor > 1 else images


def difference_scale(errors: Tensor) -> float:
    """The 99th percentile of all differences, the top of the colour scale of the maps."""
    # quantile() accepts at most 16 million numbers.
    flat = errors.flatten()
    return max(float(flat[:: max(1, len(flat) // 1_000_000)].quantile(0.99)), 1e-6)
