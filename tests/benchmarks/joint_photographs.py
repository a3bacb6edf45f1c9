"""Join the tables of photographs of several reports, and print what follows from all photographs together.

    python -m tests.benchmarks.joint_photographs first/tables/photographs.csv second/tables/photographs.csv \
        [--out photographs.csv] [--first wrangan]

For reports made on different photographs by the same protocol, where one run on all would take too long.
Prints three tables: the mean of each measure by method with its 95 % bootstrap interval; the fraction of the
photographs on which --first is better; and the mean of each method divided by that of --first over the
photographs that both have, with the 95 % interval of a paired bootstrap.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wrangan_cli.engine.metrics.base import CONFIDENCE, RESAMPLES
from wrangan_cli.engine.reports.photographs import COLUMNS, PerPhoto, comparison_table, photographs_table
from wrangan_cli.engine.reports.reconstruction import mean_value
from wrangan_cli.engine.reports.tables import Cell, Column, Table, Value, markdown, write_csv


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="file for the joint table")
    parser.add_argument("--first", default="wrangan", help="method with which the others are compared")
    arguments = parser.parse_args()
    try:
        every = read_tables(arguments.tables)
        every = {arguments.first: every.pop(arguments.first), **every}
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"joint_photographs: {error}")
    for table in (means_table(every), comparison_table(every, "", arguments.first), ratios_table(every)):
        print(markdown(table))
    if arguments.out is not None:
        write_csv(arguments.out, photographs_table(every, ""))


def read_tables(paths: Sequence[Path]) -> PerPhoto:
    """Method → stem → measure → value of all tables; ValueError if a photograph occurs in two of them."""
    every: PerPhoto = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                method, photo = row.pop("method"), row.pop("photo")
                of_method = every.setdefault(method, {})
                if photo in of_method:
                    raise ValueError(f"{path}: {photo} of {method} occurs twice")
                of_method[photo] = {name: float(text) for name, text in row.items() if text}
    return every


def means_table(every: PerPhoto) -> Table:
    """The mean of each measure by method."""
    rows: list[dict[str, Cell]] = []
    for method, of_stem in every.items():
        row: dict[str, Cell] = {"method": method, "count": len(of_stem)}
        for name in COLUMNS:
            values = [found[name] for found in of_stem.values() if name in found]
            if values:
                row[name] = mean_value(values)
        rows.append(row)
    return _table("means", "Mean and 95 % interval", rows)


def ratios_table(every: PerPhoto) -> Table:
    """The mean of each method divided by that of the first, over the photographs that both have."""
    first, *others = every
    rows: list[dict[str, Cell]] = []
    for other in others:
        row: dict[str, Cell] = {"method": other, "count": len(every[first].keys() & every[other].keys())}
        for name in COLUMNS:
            pairs = [
                (found[name], every[other][stem][name])
                for stem, found in every[first].items()
                if name in found and name in every[other].get(stem, {})
            ]
            if len(pairs) > 1:
                row[name] = ratio_of_means(np.array(pairs, dtype=np.float64))
        rows.append(row)
    table = _table("ratios", f"Mean divided by that of {first}", rows)
    # A ratio is no better for being large or small: nothing in bold.
    return replace(table, columns=[replace(column, higher_is_better=None) for column in table.columns])


def ratio_of_means(pairs: np.ndarray) -> Value:
    """Mean of the second column of (N, 2) over that of the first; the interval is of a bootstrap of rows."""
    draws = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    means = pairs[draws].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means[:, 1] / means[:, 0], (tail, 1 - tail))
    return Value(float(pairs[:, 1].mean() / pairs[:, 0].mean()), float(low), float(high))


def _table(name: str, title: str, rows: Sequence[dict[str, Cell]]) -> Table:
    present = [column for key, column in COLUMNS.items() if any(key in row for row in rows)]
    heads = [Column("method", "method"), Column("count", "photographs"), *present]
    return Table(name, title, heads, rows)


if __name__ == "__main__":
    main()
