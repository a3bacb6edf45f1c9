"""All measurements of a report."""

from collections.abc import Mapping
from dataclasses import dataclass

from wrangan_cli.engine.reports import generators, reconstruction
from wrangan_cli.engine.reports.edits import Found, measure_edits
from wrangan_cli.engine.reports.samples import Samples
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.sweep import sweep_table
from wrangan_cli.engine.reports.tables import Table


@dataclass(frozen=True)
class Measured:
    """The tables, and what else the figures and the page need."""

    tables: list[Table]
    """All tables, in the order of the page."""
    photos: reconstruction.PerPhoto
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
    sweep = sweep_table(subject, samples)
    tables = [
        generators.cost_table(subject),
        reconstruction.reconstruction_table(subject, photos),
        reconstruction.comparison_table(subject, photos),
        generators.sample_table(subject, samples),
        corruption,
        generators.drift_table(subject),
        generators.separability_table(subject),
        generators.std_table(subject),
        generators.influence_table(subject),
        edits,
        reconstruction.consistency_table(subject),
        sweep,
    ]
    return Measured(tables, photos, each, trials, sweep)
