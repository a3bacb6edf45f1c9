"""All measurements of a report."""

from collections.abc import Mapping
from dataclasses import dataclass

from wrangan_cli.engine.metrics import drift, edit_success
from wrangan_cli.engine.reports import generators, reconstruction
from wrangan_cli.engine.reports.edits import Found, measure_edits
from wrangan_cli.engine.reports.photographs import (
    CORRUPTION,
    PerPhoto,
    comparison_table,
    photographs_table,
    with_measures,
)
from wrangan_cli.engine.reports.samples import Samples
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.sweep import sweep_table
from wrangan_cli.engine.reports.tables import Table


@dataclass(frozen=True)
class Measured:
    """The tables, and what else the figures and the page need."""

    tables: list[Table]
    """All tables, in the order of the page."""
    every: Table
    """Every value of every photograph; not on the page."""
    photos: PerPhoto
    corruption: Mapping[str, Mapping[str, float]]
    """Method → stem of the photograph → KID of its moved images."""
    edits: Found
    """The trials of edit success, of every method."""
    sweep: Table
    """Figure 3; the last of `tables`."""


def measure(subject: Subject) -> Measured:
    """Measure what is not in the cache; problems are added to `subject.failures` and `.remarks`."""
    photos = reconstruction.measure_photos(subject)
    samples = Samples(subject)
    corruption, each = generators.corruption_table(subject, samples)
    edits, trials = measure_edits(subject)
    drifts, drift_of_each = generators.drift_table(subject)
    sweep = sweep_table(subject, samples)
    side = reconstruction.about_side(subject)
    others = {
        CORRUPTION: each,
        drift.NAME: drift_of_each,
        edit_success.NAME: {m: edit_success.by_photograph(of_stem) for m, of_stem in trials.items()},
    }
    every = with_measures(photos, others)
    first = "wrangan" if "wrangan" in every else next(iter(every), "")
    tables = [
        generators.cost_table(subject),
        reconstruction.reconstruction_table(subject, photos),
        comparison_table(every, side, first),
        generators.sample_table(subject, samples),
        corruption,
        drifts,
        generators.separability_table(subject),
        generators.std_table(subject),
        generators.influence_table(subject),
        edits,
        reconstruction.consistency_table(subject),
        sweep,
    ]
    return Measured(tables, photographs_table(every, side), photos, each, trials, sweep)
