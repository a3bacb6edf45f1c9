"""Table 2, the distortion of each method, and the latent editing consistency."""

from collections.abc import Mapping
from typing import Any

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.metrics import consistency
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric, mean_interval
from wrangan_cli.engine.metrics.pairs import Compared, compare_pairs, load_metrics, side_note
from wrangan_cli.engine.metrics.registry import PAIR_METRICS, RECORD_METRICS, pair_metrics
from wrangan_cli.engine.reports.photographs import PerPhoto
from wrangan_cli.engine.reports.settings import split_names
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Cell, Column, Table, Value

Metric = PairMetric | RecordMetric
OTHER_SCALE = "st-LPIPS is not comparable with LPIPS; published values, including the paper's, are LPIPS."


def wanted_metrics(subject: Subject) -> list[PairMetric]:
    """The metrics named in the settings; by default all, but identity only if the directions are of faces."""
    names = split_names(subject.settings.metrics)
    if names:
        return pair_metrics(names)
    return [metric for metric in PAIR_METRICS.values() if metric.name != "identity" or subject.of_faces]


def measure_photos(subject: Subject) -> PerPhoto:
    """Every metric of every photograph and method, from the cache or measured now."""
    metrics = wanted_metrics(subject)
    known = {
        method: {job: _known(subject, job, metrics) for job in jobs} for method, jobs in subject.jobs.items()
    }
    lacking = [
        metric
        for metric in metrics
        if any(metric.name not in values for rows in known.values() for values in rows.values())
    ]
    measures, missing = load_metrics(lacking, subject.model.device) if lacking else ({}, [])
    for error in missing:
        # Readers of the report do not need the places that were searched.
        subject.leave_out("a metric", str(error).partition(";")[0])
    records = list(RECORD_METRICS.values())
    for method, rows in known.items():
        todo = [job for job, values in rows.items() if not values.keys() >= measures.keys()]
        jobs = {job.code: job for job in todo}
        with subject.track(f"measuring {method}", len(todo)) as advance:
            pairs = [subject.pair(job) for job in todo]
            compared = compare_pairs(
                subject.model, pairs, measures, subject.batch, records, subject.settings.metric_side
            )
            for count, one in enumerate(compared, 1):
                job = jobs[one.pair.code]
                rows[job] = {**rows[job], **_stored(subject, job, one, metrics, measures)}
                advance(count)
    return {
        method: {job.photo.stem: values for job, values in rows.items() if values}
        for method, rows in known.items()
    }


def _all(metrics: list[PairMetric]) -> list[Metric]:
    return [*metrics, *RECORD_METRICS.values()]


def _key(subject: Subject, job: Job, metric: Metric) -> dict[str, Any]:
    # The code's file determines the model, the method, its settings and the photograph.
    return {
        "model": subject.model.sha256,
        "code": subject.sha(job.code),
        "photo": subject.sha(job.photo),
        "size": subject.size,
        "metric": metric.name,
        "protocol": metric.protocol,
        **subject.metric_side_key,
    }


def _known(subject: Subject, job: Job, metrics: list[PairMetric]) -> dict[str, float]:
    found = {}
    for metric in _all(metrics):
        value = subject.cache.get("pairs", _key(subject, job, metric))
        if value is not None:
            found[metric.name] = value
    return found


def _stored(
    subject: Subject, job: Job, one: Compared, metrics: list[PairMetric], measures: Mapping[str, object]
) -> dict[str, float]:
    if one.error is not None:
        subject.failures.append(about_job(job, one.error))
        return {}
    for metric in _all(metrics):
        if metric.name in one.values and (metric.name in measures or metric.name in RECORD_METRICS):
            subject.cache.put("pairs", _key(subject, job, metric), one.values[metric.name])
    return dict(one.values)


def about_job(job: Job, error: WranganError | OSError) -> WranganError | OSError:
    """The error, made to name the code if it names no file."""
    return error if isinstance(error, FileError) else FileError(job.code, str(error))


def reconstruction_table(subject: Subject, photos: PerPhoto) -> Table:
    """Table 2: the mean of each metric by method, with its interval."""
    metrics = _all(wanted_metrics(subject))
    present = [
        m for m in metrics if any(m.name in values for rows in photos.values() for values in rows.values())
    ]
    rows: list[dict[str, Cell]] = []
    for method, values in photos.items():
        failed = len(subject.photos) - len(values)
        row: dict[str, Cell] = {"method": method, "count": len(values), "failed": failed}
        for metric in present:
            column = [one[metric.name] for one in values.values() if metric.name in one]
            if column:
                # The photographs of a batch share one cost, so an interval over them is meaningless.
                shared = isinstance(metric, RecordMetric)
                row[metric.name] = Value(sum(column) / len(column)) if shared else mean_value(column)
        rows.append(row)
    return Table(
        "table-2-reconstruction",
        "Table 2. Reconstruction by method",
        [
            Column("method", "method"),
            Column("count", "photographs"),
            Column("failed", "failed"),
            *(Column(m.name, m.column, m.higher_is_better) for m in present),
        ],
        rows,
        "Mean and 95 % bootstrap interval over the photographs that did not fail (for seconds and memory, "
        "which are measured per batch, only the mean). "
        f"{about_side(subject)} "
        + " ".join(f"{metric.column}: {metric.protocol}." for metric in present)
        + (f" {OTHER_SCALE}" if any(metric.name.startswith("st-") for metric in present) else ""),
        _lines_about(subject, "a metric"),
    )


def about_side(subject: Subject) -> str:
    """The side at which photographs are compared, as a sentence."""
    return f"Compared: {side_note(subject.settings.metric_side)} (metric_side)."


def consistency_table(subject: Subject) -> Table:
    """Latent editing consistency of each method, on the first photographs."""
    direction = next(iter(subject.directions), None)
    columns = [
        Column("method", "method"),
        Column("count", "photographs"),
        *(Column(name, name, False) for name in consistency.NAMES),
    ]
    name, title = "editing-consistency", "Latent editing consistency"
    missing: list[str] = []
    if direction is None or not subject.settings.consistency:
        why = "consistency=0" if direction else "the model has no directions"
        return Table(name, title, columns, [], "", [subject.leave_out("latent editing consistency", why)])
    rows: list[dict[str, Cell]] = []
    stems = subject.shared_stems[: subject.settings.consistency]
    for method, jobs in subject.jobs.items():
        some = [job for job in jobs if job.photo.stem in stems]
        try:
            found = _consistency_of(subject, method, some, direction)
        except UsageError as error:  # the model no longer has what the method needs
            missing.append(subject.leave_out(f"latent editing consistency of {method}", error))
            continue
        if found:
            cells = {part: mean_value([values[part] for values in found]) for part in consistency.NAMES}
            rows.append({"method": method, "count": len(found), **cells})
    note = consistency.PROTOCOL.format(strength=subject.settings.strength, direction=direction.name)
    note += ". " + "; ".join(f"{part}: {what}" for part, what in consistency.NAMES.items()) + "."
    return Table(name, title, columns, rows, note, missing)


def _consistency_of(
    subject: Subject, method: str, jobs: list[Job], direction: Direction
) -> list[dict[str, float]]:
    keys = {
        job: {
            "model": subject.model.sha256,
            "code": subject.sha(job.code),
            "vector": direction.vector.tolist(),
            "layers": direction.layers,
            "step": subject.settings.strength * direction.std,
        }
        for job in jobs
    }
    known = {job: subject.cache.get("consistency", key) for job, key in keys.items()}
    todo = [job for job in jobs if known[job] is None]
    with subject.track(f"editing and re-inverting: {method}", len(todo)) as advance:
        codes = [subject.code(job) for job in todo]
        found = consistency.codes_consistency(
            subject.model, codes, direction, subject.settings.strength, subject.batch
        )
        for count, (job, one) in enumerate(zip(todo, found, strict=True), 1):
            if isinstance(one, WranganError):
                subject.failures.append(FileError(job.code, f"editing consistency: {one}"))
            else:
                known[job] = one.values
                subject.cache.put("consistency", keys[job], one.values)
            advance(count)
    return [values for values in known.values() if values is not None]


def mean_value(values: list[float]) -> Value:
    """The mean with its bootstrap interval; no interval for one value."""
    mean, interval = mean_interval(values)
    return Value(mean, *(interval or (None, None)))


def _lines_about(subject: Subject, what: str) -> list[str]:
    return [line for line in subject.remarks if line.startswith(f"{what}:")]
