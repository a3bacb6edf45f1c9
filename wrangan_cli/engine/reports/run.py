"""Make a report from existing codes: measurements, tables, figures, the page."""

from dataclasses import dataclass
from pathlib import Path

from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.reports.figures import draw_figures
from wrangan_cli.engine.reports.measured import measure
from wrangan_cli.engine.reports.page import write_page
from wrangan_cli.engine.reports.plots import require_matplotlib
from wrangan_cli.engine.reports.renderings import Renderings
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Table, markdown, write_table

TABLES = "tables"
ALL_TABLES = "tables.md"


@dataclass(frozen=True)
class Report:
    """The files written, and what had to be computed for them."""

    tables: list[Table]
    files: list[Path]
    """Tables (CSV, Markdown, JSON), `tables.md`, figures, the page last."""
    computed: list[str]
    """The kind of every measurement and rendering made in this run."""


def write_report(subject: Subject) -> Report:
    """Measure and render what is missing in `out/cache` and `out/images`, and write everything.

    Problems with single photographs, codes or metrics are added to `subject.failures` and
    `subject.remarks`. Raises WranganError without matplotlib, FileError if nothing can
    be written.
    """
    require_matplotlib()
    try:
        return _written(subject)
    finally:
        subject.cache.flush()


def _written(subject: Subject) -> Report:
    measured = measure(subject)
    tables = measured.tables
    folder = subject.out / TABLES
    files = [path for table in tables for path in write_table(folder, table)]
    files += write_table(folder, measured.every)
    with replaced_atomically(subject.out / ALL_TABLES) as temporary:
        temporary.write_text("\n".join(map(markdown, tables)), encoding="utf-8", errors="surrogateescape")
    files.append(subject.out / ALL_TABLES)
    renderings = Renderings(subject)
    figures = draw_figures(subject, renderings, measured)
    files += [path for path, _ in figures]
    files.append(write_page(subject, renderings, measured, figures))
    return Report(tables, files, subject.cache.computed)
