"""The tables of the generator itself (1, 3, 5, 6, 7) and of the effect of inversion on it (4)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.inversion.folder import Job
from wrangan_cli.engine.metrics import fid, kid, precision, recall
from wrangan_cli.engine.metrics.base import Estimate, mean_interval
from wrangan_cli.engine.metrics.corruption import FACE, face_fraction, mean_of, moved_images, one_code
from wrangan_cli.engine.metrics.drift import NAME as DRIFT
from wrangan_cli.engine.metrics.drift import PROTOCOL as DRIFT_PROTOCOL
from wrangan_cli.engine.metrics.drift import drift
from wrangan_cli.engine.metrics.layer_influence import METRIC as INFLUENCE
from wrangan_cli.engine.metrics.samples import generated_images
from wrangan_cli.engine.metrics.separability import METRIC as SEPARABILITY
from wrangan_cli.engine.metrics.separability import Separability, separability
from wrangan_cli.engine.metrics.std_share import METRIC as STD_SHARE
from wrangan_cli.engine.models.attributes import FILE_NAME as ATTRIBUTES
from wrangan_cli.engine.models.attributes import load_attributes
from wrangan_cli.engine.models.randomized import num_randomized
from wrangan_cli.engine.reports.samples import Samples
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Cell, Column, Table, Value

FACES = 256
"""Number of moved images in which faces are detected: about a minute on one CPU core."""
LAYER_COUNTS = (4, 6, 8)
"""N of the paper's Table 1."""
OF_ONE_CODE = replace(
    kid.METRIC, compute=lambda moved, reference: Estimate(one_code(kid.METRIC, moved, reference))
)


def cost_table(subject: Subject) -> Table:
    """Table 1: how many weights are random if the last N convolutions are."""
    generator = subject.model.generator
    layers, random = generator.layer_names(), generator.random_weights()
    total = sum(p.numel() for p in generator.parameters()) - num_randomized(generator)
    present = len({weight.layer for weight in random.values()})
    rows: list[dict[str, Cell]] = []
    for count in sorted({n for n in (*LAYER_COUNTS, present) if 0 < n <= len(layers)}):
        some = {name: w for name, w in generator.weights().items() if w.layer in layers[-count:]}
        weights = sum(weight.shape.numel() for weight in some.values())
        rows.append(
            {
                "layers": count,
                "weights": weights,
                "share": weights / total,
                "own": "yes" if some.keys() == random.keys() else "",
            }
        )
    return Table(
        "table-1-cost",
        "Table 1. Cost of randomising the last N convolutions",
        [
            Column("layers", "N"),
            Column("weights", "random weights"),
            Column("share", "% more parameters", None, percent=True),
            Column("own", "this model"),
        ],
        rows,
        f"The generator has {total:,} parameters without σ; {num_randomized(generator):,} of this model's "
        "are random.",
    )


def sample_table(subject: Subject, samples: Samples) -> Table:
    """Table 3: the generator against real images, at the mean weights and with random ε."""
    settings = subject.settings
    metrics = (fid.METRIC, kid.METRIC, precision.METRIC, recall.METRIC)
    rows: list[dict[str, Cell]] = []
    missing: list[str] = []
    about = ""
    for epsilon, name in ((0.0, "mean weights (ε = 0)"), (1.0, "ε ~ N(0, 1) for each image")):
        if epsilon and not subject.model.generator.random_weights():
            missing.append(subject.leave_out("Table 3 with ε", "the model has no random layers"))
            continue
        if not settings.samples:
            missing.append(subject.leave_out("Table 3", "samples=0"))
            break
        try:
            reference = samples.reference()
            key = {"seed": settings.seed, "epsilon": epsilon}
            features = samples.features("generated", key, partial(_generated, subject, epsilon))
            rows.append({"weights": name, **samples.estimates("generated", features, metrics)})
            about = f"{settings.samples} samples against {len(reference.features)} of {reference.source}; "
        except WranganError as error:
            missing.append(subject.leave_out("Table 3", error))
            break
    return Table(
        "table-3-samples",
        "Table 3. The generator",
        [
            Column("weights", "weights"),
            *(Column(metric.name, metric.column, metric.higher_is_better) for metric in metrics),
        ],
        rows,
        f"{about}± is one standard error. " + " ".join(f"{m.name}: {m.protocol}." for m in metrics),
        missing,
    )


def _generated(subject: Subject, epsilon: float, numbers: Sequence[int]) -> Iterator[Tensor]:
    settings = subject.settings
    return generated_images(subject.model, settings.samples, settings.seed, subject.batch, epsilon, numbers)


def corruption_table(subject: Subject, samples: Samples) -> tuple[Table, dict[str, dict[str, float]]]:
    """Table 4, and for each method the KID of the images of each photograph, by stem (Figure 2)."""
    settings = subject.settings
    rows: list[dict[str, Cell]] = []
    missing: list[str] = []
    each: dict[str, dict[str, float]] = {}
    about = ""
    # The same photographs for every method, so that each gets the same directions.
    count = len(subject.shared_stems)
    try:
        if not settings.samples:
            raise WranganError("samples=0")
        if not count:
            raise WranganError("no photograph has a code of every method")
        reference = samples.reference()
    except WranganError as error:
        missing.append(subject.leave_out("Table 4", error))
    else:
        about = f"{settings.samples} images against {len(reference.features)} of {reference.source}; "
        for method, jobs in subject.jobs.items():
            shared = [job for job in jobs if job.photo.stem in subject.shared_stems]
            try:
                cells, each[method] = _corruption(subject, samples, shared)
            except WranganError as error:
                missing.append(subject.leave_out(f"Table 4, {method}", error))
            else:
                each_has = settings.samples // count
                rows.append({"method": method, "codes": count, "each": each_has, **cells})
    table = Table(
        "table-4-corruption",
        "Table 4. Corruption by method",
        [
            Column("method", "method"),
            Column("codes", "codes"),
            Column("each", "images of each"),
            Column("kid", "corruption-kid", False),
            Column("pooled-kid", "corruption-pooled-kid", False),
            Column("pooled-fid", "corruption-pooled-fid", False),
            *([Column("face", f"{FACE} %", True, percent=True)] if subject.of_faces else []),
        ],
        rows,
        f"{about}w moved by the size of W in random directions, the same for every method, and rendered with "
        "the weights of each code. corruption-kid: KID of the images of each code, mean over the codes ± one "
        "standard error of that mean. Pooled: over the images of all codes together. FID of so few images is "
        "strongly biased."
        + (
            f" {FACE}: fraction of the first {min(FACES, settings.samples)} images with a detected face."
            if subject.of_faces
            else ""
        ),
        missing,
    )
    return table, each


def _corruption(
    subject: Subject, samples: Samples, jobs: Sequence[Job]
) -> tuple[dict[str, Value], dict[str, float]]:
    """The cells of a method, and the KID of the images of each photograph, by stem."""
    key = {"codes": [subject.sha(job.code) for job in jobs], "seed": subject.settings.seed}
    features = samples.features("moved", key, partial(_moved, subject, jobs))
    pooled = samples.estimates("moved", features, (kid.METRIC, fid.METRIC))
    cells = {f"pooled-{name}": value for name, value in pooled.items()}
    each = {}
    if len(features) >= kid.LEAST * len(jobs):
        for number, job in enumerate(jobs):
            moved = features[number :: len(jobs)]  # image i belongs to code i mod n
            each[job.photo.stem] = samples.estimates("moved-one", moved, (OF_ONE_CODE,))["kid"].value
        mean = mean_of(list(each.values())) if len(jobs) > 1 else None
        # With a single code, all images belong to it.
        alone = pooled["kid"]
        cells["kid"] = alone if mean is None else Value(mean.value, standard_error=mean.standard_error)
    else:
        subject.leave_out(
            "corruption of each code", f"{len(features)} images of {len(jobs)} codes are too few"
        )
    cells |= _faces(subject, jobs)
    return cells, each


def _faces(subject: Subject, jobs: Sequence[Job]) -> dict[str, Value]:
    """The fraction of the first moved images that show a face; empty for models without edits of faces."""
    if not subject.of_faces:
        return {}
    count = min(FACES, subject.settings.samples)
    key = {
        "model": subject.model.sha256,
        "codes": [subject.sha(job.code) for job in jobs],
        "seed": subject.settings.seed,
        "count": count,
    }

    def make() -> float:
        with subject.track("looking for faces", count) as advance:
            codes = [subject.code(job) for job in jobs]
            return face_fraction(subject.model, codes, count, subject.settings.seed, advance)

    try:
        fraction = float(subject.cache.get_or_make("faces", key, make))
    except WranganError as error:
        subject.leave_out(FACE, error)
        return {}
    return {"face": Value(fraction, standard_error=(fraction * (1 - fraction) / count) ** 0.5)}


def _moved(subject: Subject, jobs: Sequence[Job], numbers: Sequence[int]) -> Iterator[Tensor]:
    codes = [subject.code(job) for job in jobs]
    return moved_images(subject.model, codes, numbers, subject.settings.seed, subject.batch)


def drift_table(subject: Subject) -> tuple[Table, dict[str, dict[str, float]]]:
    """How far each method changes the generator's other images (needs no reference), and for each method the
    drift of each photograph's code, by stem."""
    rows: list[dict[str, Cell]] = []
    missing: list[str] = []
    each: dict[str, dict[str, float]] = {}
    if not subject.shared_stems:
        missing.append(subject.leave_out(DRIFT, "no photograph has a code of every method"))
    for method, jobs in subject.jobs.items():
        shared = [job for job in jobs if job.photo.stem in subject.shared_stems]
        if shared:
            each[method] = _drifts(subject, method, shared)
            mean, interval = mean_interval(list(each[method].values()))
            rows.append({"method": method, "codes": len(shared), DRIFT: Value(mean, *(interval or ()))})
    table = Table(
        "drift",
        "Drift: how far a fit changes other images",
        [Column("method", "method"), Column("codes", "codes"), Column(DRIFT, DRIFT, False)],
        rows,
        f"{DRIFT_PROTOCOL}. Mean over the codes with its 95 % interval.",
        missing,
    )
    return table, each


def _drifts(subject: Subject, method: str, jobs: Sequence[Job]) -> dict[str, float]:
    model, seed = subject.model, subject.settings.seed
    values = {}
    with subject.track(f"drift of {method}", len(jobs)) as advance:
        for count, job in enumerate(jobs, 1):
            key = {
                "model": model.sha256,
                "code": subject.sha(job.code),
                "seed": seed,
                "protocol": DRIFT_PROTOCOL,
            }
            measured = partial(drift, model, subject.code(job), seed)
            values[job.photo.stem] = float(subject.cache.get_or_make("drift", key, measured))
            advance(count)
    return values


def separability_table(subject: Subject) -> Table:
    """Table 5: accuracy of hyperplanes in W, at the mean weights and with random ε."""
    count = subject.settings.separability_samples
    missing: list[str] = []
    cells: dict[str, dict[str, Cell]] = {}
    scales: tuple[float, ...] = (0.0, 1.0) if subject.model.generator.random_weights() else (0.0,)
    if not count or not subject.has_attributes:
        why = "the model has no attribute net" if count else "separability_samples=0"
        missing.append(subject.leave_out("Table 5", why))
        scales = ()
    for epsilon in scales:
        settings = replace(LearnSettings(), samples=count, seed=subject.settings.seed, epsilon=epsilon)
        key = {
            "model": subject.model.sha256,
            "net": sha256(subject.model.companion(ATTRIBUTES) or subject.model.path / ATTRIBUTES),
            "settings": asdict(settings),
        }
        try:
            found = subject.cache.get_or_make("separability", key, partial(_separability, subject, settings))
        except WranganError as error:
            missing.append(subject.leave_out("Table 5", error))
            break
        for name, values in found.items():
            if "error" in values:
                missing.append(subject.leave_out(f"Table 5, {name}, ε = {epsilon:g}", values["error"]))
                continue
            row = cells.setdefault(name, {"attribute": name, "held out": values["held_out"]})
            row |= {f"{part} {epsilon:g}": values[part] for part in ("test", "moved", "rest")}
    parts = {"test": "held out", "moved": "moved", "rest": "in between"}
    columns = [
        Column(f"{part} {epsilon:g}", f"{title} %, {'ε ~ N' if epsilon else 'ε = 0'}", None, percent=True)
        for epsilon in scales
        for part, title in parts.items()
    ]
    return Table(
        "table-5-separability",
        "Table 5. Accuracy of hyperplanes in W",
        [Column("attribute", "attribute"), Column("held out", "samples held out"), *columns],
        list(cells.values()),
        f"{count} samples. {SEPARABILITY.protocol}.",
        missing,
    )


def _separability(subject: Subject, settings: LearnSettings) -> dict[str, dict[str, Any]]:
    with subject.track("separability", settings.samples) as advance:
        found = separability(subject.model, load_attributes(subject.model), settings, advance)
    return {n: asdict(v) if isinstance(v, Separability) else {"error": str(v)} for n, v in found.items()}


def std_table(subject: Subject) -> Table:
    """Table 6: fraction of each layer's weights whose σ is negligible."""
    rows: list[dict[str, Cell]] = [
        {"layer": name, "share": fraction}
        for name, fraction in STD_SHARE.compute(subject.model, 0, 0, 1).items()
    ]
    missing = [] if rows else [subject.leave_out("Table 6", "the model has no random layers")]
    columns = [Column("layer", "layer"), Column("share", "fraction %", None, percent=True)]
    title = "Table 6. Fraction of weights with small σ"
    return Table("table-6-std-share", title, columns, rows, STD_SHARE.protocol, missing)


def influence_table(subject: Subject) -> Table:
    """Table 7: error of the image when only one layer's ε is sampled."""
    missing: list[str] = []
    found: dict[str, float] = {}
    settings = subject.settings
    if subject.model.generator.random_weights():
        key = {
            "model": subject.model.sha256,
            "samples": settings.influence_samples,
            "seed": settings.seed,
        }

        def make() -> dict[str, float]:
            return INFLUENCE.compute(subject.model, settings.influence_samples, settings.seed, subject.batch)

        found = subject.cache.get_or_make("influence", key, make)
    else:
        missing.append(subject.leave_out("Table 7", "the model has no random layers"))
    rows: list[dict[str, Cell]] = [{"layer": name, "mse": value} for name, value in found.items()]
    columns = [Column("layer", "layer"), Column("mse", "MSE")]
    note = f"{INFLUENCE.protocol}; {settings.influence_samples} samples. all: every random layer is sampled."
    title = "Table 7. Influence of each layer"
    return Table("table-7-layer-influence", title, columns, rows, note, missing)
