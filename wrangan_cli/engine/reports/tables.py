"""Tables: rows of values with their intervals, written as CSV, Markdown and JSON, and shown on the page."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wrangan_cli.engine.base.files import replaced_atomically

SUFFIXES = (".csv", ".md", ".json")


@dataclass(frozen=True)
class Value:
    """A number with its error, if known: a 95 % interval, or a standard error."""

    value: float
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None


Cell = Value | float | int | str | None


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    """Key in the rows; also the heading of the CSV column."""
    title: str
    higher_is_better: bool | None = None
    """None: neither is better, and no value is set in bold."""
    percent: bool = False
    """Whether to show values multiplied by 100; they are stored unchanged."""


@dataclass(frozen=True)
class Table:
    """A named table."""

    name: str
    """Name of its files, such as `table-2-reconstruction`."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Cell]]
    note: str = ""
    """Protocol and counts, needed to interpret the numbers."""
    missing: Sequence[str] = field(default=())
    """What could not be measured, one line each."""


def write_table(folder: Path, table: Table) -> list[Path]:
    """Write `<name>.csv`, `.md` and `.json`, each atomically; returns their paths."""
    paths = [folder / f"{table.name}{suffix}" for suffix in SUFFIXES]
    for path, write in zip(paths, (write_csv, _write_markdown, _write_json), strict=True):
        with replaced_atomically(path) as temporary:
            write(temporary, table)
    return paths


def write_csv(path: Path, table: Table) -> None:
    """Write the rows, unrounded; an interval or standard error gets columns of its own."""
    extras = {
        column.key: [
            part
            for part in ("low", "high", "standard_error")
            if any(getattr(row.get(column.key), part, None) is not None for row in table.rows)
        ]
        for column in table.columns
    }
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            name for c in table.columns for name in (c.key, *(f"{c.key} {part}" for part in extras[c.key]))
        )
        for row in table.rows:
            line: list[Any] = []
            for column in table.columns:
                cell = row.get(column.key)
                line.append(cell.value if isinstance(cell, Value) else "" if cell is None else cell)
                parts = [getattr(cell, part, None) for part in extras[column.key]]
                line += ["" if part is None else part for part in parts]
            writer.writerow(line)


def _write_markdown(path: Path, table: Table) -> None:
    path.write_text(markdown(table), encoding="utf-8", errors="surrogateescape")


def _write_json(path: Path, table: Table) -> None:
    path.write_text(json.dumps(to_json(table), indent=1) + "\n", encoding="utf-8")


def to_json(table: Table) -> dict[str, Any]:
    """Plain values: intervals as objects with value, low, high, standard_error."""

    def plain(cell: Cell) -> Any:
        if not isinstance(cell, Value):
            return cell
        return {name: part for name, part in vars(cell).items() if part is not None}

    return {
        "name": table.name,
        "title": table.title,
        "note": table.note,
        "missing": list(table.missing),
        "columns": [vars(column) for column in table.columns],
        "rows": [{key: plain(cell) for key, cell in row.items()} for row in table.rows],
    }


def markdown(table: Table) -> str:
    """The title, the table with the best value of each column in bold, the note, and what is missing."""
    best = _best(table)
    lines = [f"## {table.title}", ""]
    lines.append("| " + " | ".join(column.title for column in table.columns) + " |")
    lines.append("|" + "---|" * len(table.columns))
    for index, row in enumerate(table.rows):
        cells = []
        for column in table.columns:
            text = cell_text(row.get(column.key), column).replace("|", "\\|")
            cells.append(f"**{text}**" if index in best.get(column.key, ()) else text)
        lines.append("| " + " | ".join(cells) + " |")
    if table.note:
        lines += ["", table.note]
    if table.missing:
        lines += ["", *(f"- {line}" for line in table.missing)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class PageCell:
    """A cell as the page shows it."""

    text: str
    error: str
    """Its interval or standard error; empty if there is none."""
    best: bool
    """Whether it is the best of its column."""


def page_rows(table: Table) -> list[list[PageCell]]:
    """The cells of a table as the page shows them, row by row."""
    best = _best(table)

    def cell(row: dict[str, Cell], index: int, column: Column) -> PageCell:
        found = row.get(column.key)
        plain = Value(found.value) if isinstance(found, Value) else found
        error = _error(found, column) if isinstance(found, Value) else ""
        return PageCell(cell_text(plain, column), error, index in best.get(column.key, ()))

    return [[cell(row, index, column) for column in table.columns] for index, row in enumerate(table.rows)]


def cell_text(cell: Cell, column: Column) -> str:
    """A cell as text: three significant digits, and its interval."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Value):
        return f"{_number(cell.value, column)} {_error(cell, column)}".rstrip()
    if isinstance(cell, int) and not column.percent:
        return f"{cell:,}"
    return f"{100 * cell if column.percent else cell:.3g}"


def _error(cell: Value, column: Column) -> str:
    parts = []
    if cell.low is not None and cell.high is not None:
        parts.append(f"[{_number(cell.low, column)}, {_number(cell.high, column)}]")
    if cell.standard_error is not None:
        parts.append(f"± {_number(cell.standard_error, column, 2)}")
    return " ".join(parts)


def _number(value: float, column: Column, digits: int = 3) -> str:
    value *= 100 if column.percent else 1
    # Keep trailing zeros, so that 18.0 aligns with 15.6. Large numbers get all digits instead of an exponent.
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e+" in text else text


def _best(table: Table) -> dict[str, list[int]]:
    """The rows with the best value of each column, if it has a better direction and two or more values."""
    found = {}
    for column in table.columns:
        if column.higher_is_better is None:
            continue
        cells = [row.get(column.key) for row in table.rows]
        values = {
            index: cell.value if isinstance(cell, Value) else float(cell)
            for index, cell in enumerate(cells)
            if cell is not None and not isinstance(cell, str)
        }
        if len(values) > 1:
            top = (max if column.higher_is_better else min)(values.values())
            found[column.key] = [index for index, value in values.items() if value == top]
    return found
