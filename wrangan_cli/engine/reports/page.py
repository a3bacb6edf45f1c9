"""The page of a report: an `index.html` that works offline, with the images in files beside it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric
from wrangan_cli.engine.metrics.registry import PAIR_METRICS, RECORD_METRICS
from wrangan_cli.engine.reports.figures import Figure
from wrangan_cli.engine.reports.measured import Measured
from wrangan_cli.engine.reports.photographs import PerPhoto
from wrangan_cli.engine.reports.renderings import Renderings
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import page_rows

NAME = "index.html"


def write_page(
    subject: Subject,
    renderings: Renderings,
    measured: Measured,
    figures: Sequence[Figure],
) -> Path:
    """Render the images that the page shows, write the page, and return its path."""
    data = gallery(subject, renderings, measured.photos)
    model, count = subject.model, len(data["photos"])
    failed = dict.fromkeys([*subject.reported, *map(str, subject.failures)])
    text = _template().render(
        title=f"{model.name}: {len(subject.codes)} methods, {count} photographs",
        about=(
            f"Model {model.name}, {model.resolution} px, sha256 {model.sha256[:12]}…. "
            f"Methods: {', '.join(subject.codes) or 'none'}."
        ),
        failed=len(failed),
        left_out=len(subject.remarks),
        remarks=[*(f"failed: {line}" for line in failed), *subject.remarks],
        tables=[(table, page_rows(table)) for table in measured.tables],
        figures=[(address(path, subject.out), caption) for path, caption in figures],
        data=data,
    )
    path = subject.out / NAME
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def _template() -> Template:
    """The template page.html, which escapes everything inserted into it."""
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # methods and edits have an order
    return environment.get_template("page.html")


def gallery(subject: Subject, renderings: Renderings, photos: PerPhoto) -> dict[str, Any]:
    """The data for the page's script: photographs with the images and values of each method.

    Addresses are relative to the page.
    """
    strength = subject.settings.strength
    moves = [(d, s) for d in subject.directions for s in (-strength, strength) if s]
    edited = set(subject.shared_stems[: subject.settings.edited])
    jobs = {method: {job.photo.stem: job for job in some} for method, some in subject.jobs.items()}
    entries = []
    for photo in subject.photos:
        target = renderings.photo(photo)
        if target is None:
            continue
        methods: dict[str, Any] = {}
        for method, some in jobs.items():
            job = some.get(photo.stem)
            if job is None:
                continue
            edits = {}
            for direction, step in moves if photo.stem in edited else ():
                image = renderings.edit(method, job, direction, step)
                edits[f"{direction.name} {step:+g}"] = address(image, subject.out)
            methods[method] = {
                "image": address(renderings.reconstruction(method, job), subject.out),
                "values": photos.get(method, {}).get(photo.stem, {}),
                "edits": edits,
            }
        entries.append({"name": photo.stem, "image": address(target, subject.out), "methods": methods})
    metrics: dict[str, PairMetric | RecordMetric] = {**PAIR_METRICS, **RECORD_METRICS}
    shown = [
        name
        for name in metrics
        if any(name in values for rows in photos.values() for values in rows.values())
    ]
    return {
        "methods": list(subject.codes),
        "first": "wrangan" if "wrangan" in subject.codes else next(iter(subject.codes), ""),
        "edits": [f"{direction.name} {step:+g}" for direction, step in moves],
        "metrics": [
            {"name": name, "title": metrics[name].column, "higher": metrics[name].higher_is_better}
            for name in shown
        ],
        "photos": entries,
    }


def address(path: Path, base: Path) -> str:
    """The address of a file relative to the page."""
    return quote(os.fsencode(path.relative_to(base).as_posix()))
