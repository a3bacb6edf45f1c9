"""Edit success by method: the table, and the curves of preserved identity against changed attributes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.editing.directions import Direction, load_directions
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.metrics import edit_success
from wrangan_cli.engine.metrics.edit_success import SAME_PERSON, STEPS, Judge, Point, Trial
from wrangan_cli.engine.models.attributes import FILE_NAME as ATTRIBUTES
from wrangan_cli.engine.reports.reconstruction import about_job, mean_value
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Cell, Column, Table

Found = dict[str, dict[str, list[Trial]]]
"""Method → stem of the photograph → its trials."""
ALL = "all"


def measure_edits(subject: Subject) -> tuple[Table, Found]:
    """The table, and the underlying trials for the figure; the table lists what could not be measured."""
    missing: list[str] = []
    found: Found = {}
    names: list[str] = []
    count = min(subject.settings.edit_success, len(subject.shared_stems))
    try:
        if not count:
            raise WranganError("edit_success=0, or no photograph has a code of every method")
        judge = edit_success.load_judge(subject.model, _directions(subject), only_scored=True)
    except WranganError as error:
        # Readers of the report do not need the path at which a file was expected.
        why = error.cause if isinstance(error, FileError) else str(error)
        missing.append(subject.leave_out("edit success", why))
    else:
        names = list(judge.directions)
        stems = subject.shared_stems[:count]
        for method, jobs in subject.jobs.items():
            found[method] = _of_method(subject, judge, method, [j for j in jobs if j.photo.stem in stems])
    return _table(found, names, missing), found


def _directions(subject: Subject) -> Iterable[Direction]:
    return subject.directions if subject.settings.directions else load_directions(subject.model).values()


def _of_method(subject: Subject, judge: Judge, method: str, jobs: Sequence[Job]) -> dict[str, list[Trial]]:
    keys = {
        (job, name): {
            "model": subject.model.sha256,
            "code": subject.sha(job.code),
            "photo": subject.sha(job.photo),
            "net": _net(subject),
            "vector": direction.vector.tolist(),
            "layers": direction.layers,
            "steps": [direction.std * end for end in direction.range],
            "protocol": edit_success.PROTOCOL,
        }
        for job in jobs
        for name, direction in judge.directions.items()
    }
    known = {at: subject.cache.get("edits", key) for at, key in keys.items()}
    todo = [job for job in jobs if any(known[job, name] is None for name in judge.directions)]
    with subject.track(f"edit success: {method}", len(todo)) as advance:
        for count, job in enumerate(todo, 1):
            try:
                some = edit_success.trials(
                    subject.model, judge, subject.load_photo(job.photo), subject.code(job)
                )
                made = {trial.direction: [asdict(point) for point in trial.points] for trial in some}
            except (WranganError, OSError) as error:
                subject.failures.append(about_job(job, error))
                continue
            for name in judge.directions:
                # Without points, the score of the photograph is undecided.
                known[job, name] = made.get(name, [])
                subject.cache.put("edits", keys[job, name], known[job, name])
            advance(count)
    return {
        job.photo.stem: [
            Trial(name, [Point(**point) for point in points])
            for name in judge.directions
            if (points := known[job, name])
        ]
        for job in jobs
    }


def _net(subject: Subject) -> str:
    return sha256(subject.model.companion(ATTRIBUTES) or subject.model.path / ATTRIBUTES)


def _table(found: Found, names: Sequence[str], missing: Sequence[str]) -> Table:
    rows: list[dict[str, Cell]] = []
    for method, of_stem in found.items():
        row: dict[str, Cell] = {"method": method, "count": sum(bool(some) for some in of_stem.values())}
        for name in [ALL, *names]:
            some = {s: [t for t in tried if name in (ALL, t.direction)] for s, tried in of_stem.items()}
            values = list(edit_success.by_photograph(some).values())
            if values:
                row[name] = mean_value(values)
        trials = [trial for tried in of_stem.values() for trial in tried]
        rows.append(row | (dict(edit_success.parts(trials)) if trials else {}))
    parts = {
        "reached": "reached %",
        "face": "of these, face %",
        "same person": "of these, same person %",
        "unedited same person": "unedited, same person %",
    }
    return Table(
        "edit-success",
        "Edit success by method",
        [
            Column("method", "method"),
            Column("count", "photographs"),
            Column(ALL, "all %", True, percent=True),
            *(Column(name, f"{name} %", True, percent=True) for name in names),
            *(Column(part, title, None, percent=True) for part, title in parts.items()),
        ],
        rows,
        f"{edit_success.PROTOCOL}{edit_success.BY_STEPS}. Mean and 95 % bootstrap interval over the "
        "photographs. The last columns are over all directions.",
        missing,
    )


def changed_and_same_person(found: Found, direction: str) -> Mapping[str, list[tuple[float, float]]]:
    """Method → for each step (attribute changed, face of the same person), as fractions of the trials of one
    direction, or of all directions."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for method, of_stem in found.items():
        some = [t for tried in of_stem.values() for t in tried if direction in (ALL, t.direction)]
        points: list[tuple[float, float]] = []
        for step in range(STEPS + 1 if some else 0):
            here = [trial.points[step] for trial in some]
            same = [point.face and point.identity < SAME_PERSON for point in here]
            points.append((edit_success.fraction([p.reached for p in here]), edit_success.fraction(same)))
        if points:
            lines[method] = points
    return lines


def panels(found: Found) -> dict[str, Any]:
    """The panels of the figure: title → lines of `changed_and_same_person`."""
    names = dict.fromkeys(
        t.direction for of_stem in found.values() for tried in of_stem.values() for t in tried
    )
    return {name: changed_and_same_person(found, name) for name in [ALL, *names]}
