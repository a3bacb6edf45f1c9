"""`python -m tests.benchmarks.stress --out stress.json`: print a table; exit code 1 if there are faults."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.stress import folder, headers, kills
from wrangan_cli.engine.base.files import replaced_atomically

PARTS = ("headers", "folder", "kills")


def main() -> None:
    """Run the parts, print the results, and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stress", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures and every fault")
    parser.add_argument("--part", choices=PARTS, help="run only one part; default: all")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the damage and of the times of the kills"
    )
    parser.add_argument("--count", type=int, default=300, help="headers: damaged files per format")
    parser.add_argument(
        "--only", default="", help="only formats (headers) and commands (kills) whose name contains this"
    )
    parser.add_argument("--kills", type=int, default=20, help="kills: number of kills per command")
    parser.add_argument("--work", type=Path, help="folder for the files; default: a temporary folder")
    given = parser.parse_args()
    os.environ["WRANGAN_OFFLINE"] = "1"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="wrangan-stress-") as temporary:
        work = given.work or Path(temporary)
        os.environ["WRANGAN_CACHE"] = str(work / "cache")
        figures: dict[str, list[dict[str, Any]]] = {}
        for part in [given.part] if given.part else PARTS:
            (work / part).mkdir(parents=True)
            if part == "headers":
                figures[part] = headers.run(work / part, given.count, given.seed, given.only, _say)
            elif part == "folder":
                figures[part] = folder.run(work / part, given.seed)
            else:
                figures[part] = kills.run(work / part, given.kills, given.seed, given.only, _say)
    for part, rows in figures.items():
        _print(part, rows)
    faults = sum(len(row["faults"]) for rows in figures.values() for row in rows)
    print(f"{faults} faults, {time.perf_counter() - started:.0f} s")
    with replaced_atomically(given.out) as temporary_file:
        record = {"seed": given.seed, "faults": faults, **figures}
        temporary_file.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(1 if faults else 0)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(part: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=part)
    for row in rows:
        cells = {name: len(value) if name == "faults" else value for name, value in row.items()}
        table.add_row(*(str(cells.get(name, "")) for name in names))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
