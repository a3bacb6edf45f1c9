"""Every value of every photograph, and the paired comparisons that follow from them."""

from collections.abc import Mapping, Sequence

from wrangan_cli.engine.metrics import drift, edit_success, kid
from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric
from wrangan_cli.engine.metrics.comparison import compare_paired
from wrangan_cli.engine.metrics.registry import PAIR_METRICS, RECORD_METRICS
from wrangan_cli.engine.reports.tables import Cell, Column, Table, Value

PerPhoto = dict[str, dict[str, dict[str, float]]]
"""Method → stem of the photograph → measure → value."""
CORRUPTION = f"corruption-{kid.METRIC.name}"


def _pair_column(metric: PairMetric | RecordMetric) -> Column:
    return Column(metric.name, metric.column, metric.higher_is_better)


RECORDED = {metric.name: _pair_column(metric) for metric in RECORD_METRICS.values()}
"""Seconds and memory: the photographs of a batch share one value."""
COLUMNS = {
    **{metric.name: _pair_column(metric) for metric in PAIR_METRICS.values()},
    CORRUPTION: Column(CORRUPTION, CORRUPTION, False),
    drift.NAME: Column(drift.NAME, drift.NAME, False),
    edit_success.NAME: Column(edit_success.NAME, edit_success.NAME, True),
    **RECORDED,
}
"""The measures of a photograph, in the order of the tables."""


def with_measures(photos: PerPhoto, others: Mapping[str, Mapping[str, Mapping[str, float]]]) -> PerPhoto:
    """`photos` with more measures. others: measure → method → stem → value."""
    merged = {
        method: {stem: dict(values) for stem, values in of_stem.items()} for method, of_stem in photos.items()
    }
    for name, of_method in others.items():
        for method, of_stem in of_method.items():
            for stem, value in of_stem.items():
                merged.setdefault(method, {}).setdefault(stem, {})[name] = value
    return merged


def photographs_table(every: PerPhoto, note: str) -> Table:
    """All individual values, by method and photograph."""
    rows: list[dict[str, Cell]] = [
        {"method": method, "photo": stem, **values}
        for method, found in every.items()
        for stem, values in found.items()
    ]
    present = [COLUMNS[name] for name in _present(every)]
    columns = [Column("method", "method"), Column("photo", "photograph"), *present]
    return Table("photographs", "Every photograph", columns, rows, note)


def comparison_table(every: PerPhoto, note: str, first: str) -> Table:
    """How often the method `first` beats each of the others, photograph by photograph."""
    names = [name for name in _present(every) if name not in RECORDED]
    rows: list[dict[str, Cell]] = []
    for other in every:
        row: dict[str, Cell] = {"methods": f"against {other}"}
        for name in names:
            mine, theirs = (
                {stem: values[name] for stem, values in every[m].items() if name in values}
                for m in (first, other)
            )
            if other == first or not mine.keys() & theirs.keys():
                continue
            found = compare_paired(mine, theirs, bool(COLUMNS[name].higher_is_better))
            row[name] = Value(found.fraction_won, *found.interval)
            row["count"] = max(found.count, int(row.get("count") or 0))  # type: ignore[arg-type]
        if len(row) > 1:
            rows.append(row)
    present = [name for name in names if any(name in row for row in rows)]
    return Table(
        "table-2-wins",
        f"Photographs that {first} wins",
        [
            Column("methods", ""),
            Column("count", "photographs"),
            *(Column(name, f"{COLUMNS[name].title} %", None, percent=True) for name in present),
        ],
        rows,
        "Fraction of the photographs on which the first method is better, with its 95 % Wilson interval; "
        f"ties count half. If the interval contains 50, the comparison is undecided. {note}",
    )


def _present(every: PerPhoto) -> Sequence[str]:
    found = {name for of_stem in every.values() for values in of_stem.values() for name in values}
    return [name for name in COLUMNS if name in found]
