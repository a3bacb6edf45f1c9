"""Damaged headers: files of every format, read by a command, in child processes that may crash or hang."""

import collections
import json
import os
import random
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.stress.samples import Format, copied, formats

LONGEST = 30.0
"""Seconds after which a case counts as hanging."""
MEMORY = 3 << 30
"""Bytes of address space that a case may use in addition to those of the process."""
WIDEST = 400
"""Maximum length of a readable line in characters, without the path."""


def damaged(data: bytes, regions: Sequence[int], rng: random.Random) -> tuple[str, bytes]:
    """Damage a file within one kilobyte; returns the kind of damage and the new content."""
    start = rng.choice(regions)
    start = max(0, len(data) + start) if start < 0 else min(start, len(data) - 1)
    end = min(start + 1024, len(data))
    kind = rng.choice(["bits", "bytes", "zeros", "cut", "lost"])
    changed = bytearray(data)
    at = rng.randrange(start, end)
    run = rng.randint(1, min(64, end - at))
    if kind == "bits":
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        changed[at : at + run] = rng.randbytes(run)
    elif kind == "zeros":
        changed[at : at + run] = bytes(run)
    elif kind == "cut":
        del changed[at:]
    else:
        del changed[at : at + run]
    return kind, bytes(changed)


@dataclass
class Case:
    """One damaged file."""

    format: Format
    kind: str
    path: Path
    given: Path
    arguments: list[str]
    out: Path


def run(work: Path, count: int, seed: int, only: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per format: how many files were read, how many reported, and all faults."""
    rows = []
    for form in formats(work / "valid"):
        if only and only.lower() not in form.name.lower():
            continue
        cases = list(_cases(form, work / "cases", count, seed))
        row = _row(form, cases, list(_outcomes(cases, work)))
        rows.append(row)
        say(f"{form.name}: " + ", ".join(f"{row[key]} {key}" for key in ("tried", "read", "named")))
        for fault in row["faults"]:
            say(f"  {fault['fault']}: {fault['kind']} {fault['path']}: {fault['said']}")
        kept = {Path(fault["path"]).parent for fault in row["faults"]}
        for case in cases:
            if case.path.parent not in kept:
                shutil.rmtree(case.path.parent, ignore_errors=True)
                shutil.rmtree(case.out, ignore_errors=True)
    return rows


def _cases(form: Format, work: Path, count: int, seed: int) -> Iterator[Case]:
    rng = random.Random(f"{seed}:{form.name}")
    for number in range(count):
        valid = form.valid[number % len(form.valid)]
        folder = work / f"{form.name.replace(' ', '-')}-{number:04d}"
        path, given = copied(form, valid, folder)
        whole = path.read_bytes()
        kind, content = damaged(whole, form.regions, rng)
        path.write_bytes(content)
        out = work / f"{folder.name}-out"
        yield Case(form, kind, path, given, form.command(given, out), out)


def _row(form: Format, cases: list[Case], outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    for case, outcome in zip(cases, outcomes, strict=True):
        verdict = judged(case, outcome)
        counts[verdict] += 1
        if verdict not in ("read", "named"):
            said = outcome.get("traceback") or "; ".join(outcome.get("problems", [])) or outcome["stderr"]
            where = {"kind": case.kind, "path": str(case.path), "command": case.arguments}
            faults.append({"fault": verdict, **where, "said": said})
    return {
        "format": form.name,
        "tried": len(cases),
        "read": counts["read"],
        "named": counts["named"],
        "slowest_s": round(max(o["seconds"] for o in outcomes), 2),
        "peak_mib": round(max(o.get("peak", 0) for o in outcomes)),
        "faults": faults,
    }


def judged(case: Case, outcome: dict[str, Any]) -> str:
    """`read`, `named`, or the fault."""
    if "fault" in outcome:
        return str(outcome["fault"])
    if outcome["traceback"]:
        return "traceback"
    if outcome["problems"]:
        return "broken output"
    if outcome["chatter"]:
        return "library output"
    lines = outcome["stderr"].splitlines()
    if any(not line.isprintable() for line in lines):
        return "unprintable"
    if any(len(line.replace(str(case.given), "")) > WIDEST for line in lines):
        return "line too long"
    if outcome["exit"] == 0 and case.format.inner and case.format.inner != _accounted(lines):
        return "images lost"
    if outcome["exit"] == 0:
        return "read" if outcome["written"] else "nothing written"
    if outcome["exit"] not in (1, 2):
        return f"exit code {outcome['exit']}"
    if not case.path.exists():
        return "input lost"
    naming = [line for line in lines if str(case.given) in line]
    if not naming and not (case.format.inner and any(line.endswith("left out") for line in lines)):
        return "unnamed"
    # Images in a data set may also be named, and so may metadata that was ignored.
    if len(naming) > 1:
        return "named twice"
    return "named"


def _accounted(lines: list[str]) -> int:
    """The number of images of a data set that were read, left out by name, or skipped; 0 if not stated."""
    read = sum(int(found[1]) for line in lines if (found := re.match(r"(\d+) images? of \d+ px", line)))
    passed = sum(int(found[1]) for line in lines if (found := re.search(r": (\d+) files? that", line)))
    return read + passed + sum(line.endswith("left out") for line in lines)


def _outcomes(cases: list[Case], work: Path) -> Iterator[dict[str, Any]]:
    """The outcome of each case, in order; after a crash or a hang a new child continues."""
    done = 0
    while done < len(cases):
        for outcome in _batch(cases[done:], work):
            done += 1
            yield outcome


def _batch(cases: list[Case], work: Path) -> Iterator[dict[str, Any]]:
    environment = os.environ | {
        "WRANGAN_CACHE": str(work / "cache"),
        "WRANGAN_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    jobs = "".join(
        json.dumps({"arguments": case.arguments, "out": str(case.out), "given": str(case.given)}) + "\n"
        for case in cases
    )
    with tempfile.TemporaryFile("w+b") as lines, tempfile.TemporaryFile("w+b") as given:
        given.write(jobs.encode())
        given.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.stress.batch", str(MEMORY)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=lines,
            env=environment,
        )
        assert child.stdout is not None
        with child, selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            pending = b""
            # The first answer includes the time for imports.
            patience = LONGEST + 120
            while True:
                if not selector.select(patience):
                    child.kill()
                    yield {"fault": "hang", "stderr": "", "seconds": patience}
                    return
                patience = LONGEST
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                *whole, pending = (pending + chunk).split(b"\n")
                yield from map(json.loads, whole)
            if child.wait():
                lines.seek(0, os.SEEK_END)
                lines.seek(max(0, lines.tell() - 2000))
                last = lines.read().decode(errors="replace")
                yield {"fault": f"crash ({child.returncode})", "stderr": last, "seconds": 0.0}
