"""Figure 3: the effect of the weight α of the penalty, for each number N of random layers.

Protocol: the first `sweep` photographs are re-inverted for each α, with all other settings of the method
unchanged: `wrangan` (α‖ε‖²) and `weight-tuning` (α‖θ − θ₀‖²). Distortion is measured as in Table 2. With
`sweep_samples`, corruption is measured as in Table 4, with this number of moved images. At the model's N its
σ and the report's codes are used. For any other N, σ is computed by sensitivity (as by `wrangan train
randomize --from sensitivity`, with the settings of the model's σ if that was computed by sensitivity), so
that all N use the same generator.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, WranganError, cause_of
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.inversion.inverter import Inverter, resolved
from wrangan_cli.engine.inversion.settings import TuningSettings
from wrangan_cli.engine.metrics import kid
from wrangan_cli.engine.metrics.corruption import mean_over_codes, moved_images
from wrangan_cli.engine.metrics.inception import extract_features
from wrangan_cli.engine.metrics.pairs import Measure, load_metrics, measured, side_note
from wrangan_cli.engine.metrics.registry import CODE_METRICS, PAIR_METRICS
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import CONFIG, Model, read_config
from wrangan_cli.engine.models.perceptual import load_perceptual
from wrangan_cli.engine.models.randomized import tunable_weights
from wrangan_cli.engine.reports.reconstruction import mean_value
from wrangan_cli.engine.reports.samples import Samples
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Cell, Column, Table, Value
from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity
from wrangan_cli.engine.training.settings import SensitivitySettings

METHODS = ("wrangan", "weight-tuning")
"""The methods whose penalty has a weight α."""
CORRUPTION = "corruption-kid"


@dataclass(frozen=True)
class Point:
    """One fit of the photographs."""

    method: str
    layers: int
    """N."""
    is_models_n: bool
    """Whether N is that of the model itself."""
    settings: TuningSettings


class Sweep:
    """Fits and measures points that are not in the cache."""

    def __init__(self, subject: Subject, samples: Samples) -> None:
        self.subject, self.samples = subject, samples
        stems = subject.shared_stems[: subject.settings.sweep]
        jobs = next(iter(subject.jobs.values()), [])
        self.jobs = [job for job in jobs if job.photo.stem in stems]
        self.metrics = [PAIR_METRICS[name] for name in dict.fromkeys(("mse", subject.model.perceptual))]
        self.sensitivity = sensitivity_of(subject.model)
        self.measures = cache(self._measures)
        self.randomized = cache(self._randomized)

    def points(self) -> Iterator[Point]:
        """All points, by method, then N, then α in ascending order."""
        present = len({weight.layer for weight in tunable_weights(self.subject.model.generator).values()})
        for method in METHODS:
            if method not in self.subject.jobs:
                continue
            wanted = self.subject.wanted[method]
            assert isinstance(wanted, TuningSettings)
            for layers in self.subject.settings.layer_counts or (present,):
                for alpha in self.subject.settings.alpha_values:
                    settings = dataclasses.replace(wanted, alpha=alpha)
                    if layers != present and method == "wrangan" and settings.epsilon_lr is None:
                        settings = dataclasses.replace(settings, epsilon_lr=self.sensitivity.epsilon_lr)
                    yield Point(method, layers, layers == present, resolved(settings, self.subject.model))

    def row(self, point: Point) -> dict[str, Cell]:
        """A row of the table; photographs that cannot be fitted are added to the report's failures."""
        found = self.subject.cache.get("sweep", self._key(point))
        if found is None:
            found = self._measured(point)
            if len(found["values"]) == len(self.jobs):
                self.subject.cache.put("sweep", self._key(point), found)
        row: dict[str, Cell] = {
            "method": point.method,
            "layers": point.layers,
            "alpha": point.settings.alpha,
            "count": len(found["values"]),
        }
        if found["values"]:
            for metric in self.metrics:
                row[metric.name] = mean_value([values[metric.name] for values in found["values"]])
        if found[CORRUPTION]:
            row[CORRUPTION] = Value(**found[CORRUPTION])
        return row

    def _key(self, point: Point) -> dict[str, Any]:
        report = self.subject.settings
        return {
            "model": self.subject.model.sha256,
            "photos": [self.subject.sha(job.photo) for job in self.jobs],
            "settings": asdict(point.settings),
            "side": "the photographs' own",  # earlier versions enlarged them to the model's side
            "layers": None if point.is_models_n else {"count": point.layers, **asdict(self.sensitivity)},
            "metrics": [metric.protocol for metric in self.metrics],
            "samples": report.sweep_samples,
            "corruption": CODE_METRICS[CORRUPTION].protocol,
            "seed": report.seed,
            "reference": self.samples.reference_key() if report.sweep_samples else "",
            **self.subject.metric_side_key,
        }

    def _measured(self, point: Point) -> dict[str, Any]:
        """The distortion of each photograph that could be fitted, and the corruption over all of them."""
        model = self.subject.model if point.is_models_n else self.randomized(point.layers)
        values: list[dict[str, float]] = []
        codes: list[Code] = []
        for jobs, images, fitted in self._fitted(point, model):
            good = []
            for row, (job, code) in enumerate(zip(jobs, fitted, strict=True)):
                if isinstance(code, Code):
                    good.append(row)
                    codes.append(code)
                else:
                    what = f"{point.method} at N = {point.layers}, α = {point.settings.alpha:g}"
                    self.subject.failures.append(FileError(job.photo, f"{what}: {code}"))
            if good:
                photos, side = [images[row] for row in good], self.subject.settings.metric_side
                values += measured(model, photos, codes[-len(good) :], self.measures(), side)
        return {"values": values, CORRUPTION: self._corruption(model, codes) if codes else None}

    def _fitted(
        self, point: Point, model: Model
    ) -> Iterator[tuple[Sequence[Job], list[Tensor], Sequence[Code | WranganError]]]:
        subject = self.subject
        same = point.is_models_n and point.settings == resolved(subject.wanted[point.method], subject.model)
        inverter = None if same else Inverter.load(model, point.settings)
        of = {job.photo: job for job in subject.jobs[point.method]}
        what = f"{point.method}, N = {point.layers}, α = {point.settings.alpha:g}"
        with subject.track(what, len(self.jobs)) as advance:
            for start in range(0, len(self.jobs), subject.batch):
                jobs = self.jobs[start : start + subject.batch]
                images = [subject.load_photo(job.photo) for job in jobs]
                if inverter is None:
                    yield jobs, images, [subject.code(of[job.photo]) for job in jobs]
                else:
                    yield jobs, images, inverter.invert_each(images)
                advance(start + len(jobs))

    def _corruption(self, model: Model, codes: Sequence[Code]) -> dict[str, float | None] | None:
        report = self.subject.settings
        if not report.sweep_samples:
            return None
        images = moved_images(model, codes, range(report.sweep_samples), report.seed, self.subject.batch)
        with self.subject.track("corruption of these", report.sweep_samples) as advance:
            features = extract_features(self.samples.inception(), images, advance)
        return asdict(mean_over_codes(kid.METRIC, features, self.samples.reference().features, len(codes)))

    def _measures(self) -> dict[str, Measure]:
        measures, missing = load_metrics(self.metrics, self.subject.model.device)
        if missing:
            raise missing[0]
        return measures

    def _randomized(self, layers: int) -> Model:
        """The report's model with σ in the last `layers` convolutions; mapping and means are unchanged."""
        model = self.subject.model
        if layers > (most := len(model.generator.layer_names())):
            raise WranganError(f"N = {layers}: the model has {most} layers")
        perceptual = load_perceptual(model.perceptual, model.device)
        with self.subject.track(f"σ by sensitivity, N = {layers}", self.sensitivity.probes) as advance:
            generator = randomize_by_sensitivity(
                model.generator, perceptual, layers, self.sensitivity, on_image=advance
            )
        return dataclasses.replace(model, generator=generator)


def sensitivity_of(model: Model) -> SensitivitySettings:
    """The settings with which the model's σ was computed, if by sensitivity; otherwise the defaults.

    Raises FileError if its config.json names invalid settings.
    """
    source = read_config(model.path).get("source")
    known = source.get("settings") if isinstance(source, dict) else None
    # An adversarial training does not have these settings.
    if not isinstance(known, dict) or not {"probes", "distortion"} <= set(known):
        return SensitivitySettings()
    names = {field.name for field in dataclasses.fields(SensitivitySettings)}
    try:
        return SensitivitySettings(**{name: value for name, value in known.items() if name in names})
    except (TypeError, ValueError) as error:
        raise FileError(model.path / CONFIG, f"bad settings of σ ({cause_of(error)})") from error


def sweep_table(subject: Subject, samples: Samples) -> Table:
    """Figure 3 in numbers: distortion and corruption of each method, N and α."""
    sweep = Sweep(subject, samples)
    rows: list[dict[str, Cell]] = []
    missing: list[str] = []
    if not subject.settings.sweep:
        missing.append(subject.leave_out("Figure 3", "sweep=0"))
    elif sweep.jobs:
        for point in sweep.points():
            try:
                rows.append(sweep.row(point))
            except WranganError as error:
                missing.append(subject.leave_out(f"Figure 3, {point.method}, N = {point.layers}", error))
    present = [metric for metric in sweep.metrics if any(metric.name in row for row in rows)]
    columns = [
        Column("method", "method"),
        Column("layers", "N"),
        Column("alpha", "α"),
        Column("count", "photographs"),
        *(Column(metric.name, metric.column, metric.higher_is_better) for metric in present),
    ]
    if any(CORRUPTION in row for row in rows):
        columns.append(Column(CORRUPTION, CORRUPTION, False))
    note = (
        "The same photographs, re-inverted with each weight α of the penalty. For an N other than the "
        "model's, σ is computed by sensitivity. Mean and 95 % bootstrap interval; corruption as in Table 4, "
        "± one standard error. "
        f"Compared: {side_note(subject.settings.metric_side)} (metric_side)."
    )
    return Table(
        "figure-3-sweep", "Figure 3. Weight of the penalty", columns, rows, note, list(dict.fromkeys(missing))
    )
