"""A child process that runs command lines, one per line of stdin, and answers each with a JSON object."""

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.peak_memory import peak_memory, reset_peak
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot


def outcome_of(arguments: list[str], out: Path, given: Path) -> dict[str, Any]:
    """Run one command line, and describe its outcome."""
    before = os.fstat(2).st_size
    cpu = torch.device("cpu")
    fresh = reset_peak(cpu)
    started = time.perf_counter()
    result = CliRunner().invoke(app, arguments)
    seconds = time.perf_counter() - started
    error = result.exception
    unforeseen = error is not None and not isinstance(error, SystemExit)
    # A command that failed may leave a broken input unchanged.
    folders = {out, given} if result.exit_code == 0 else {out}
    written = sum(path.is_file() for path in out.rglob("*")) if out.is_dir() else given.is_dir()
    return {
        "exit": result.exit_code,
        "stderr": result.stderr,
        "traceback": "".join(traceback.format_exception(error)[-3:]) if unforeseen else "",
        "chatter": os.fstat(2).st_size - before,
        "written": int(written),
        "problems": [line for folder in folders for line in broken(folder)],
        "seconds": seconds,
        "peak": peak_memory(cpu, fresh).get("peak_memory_mib", 0),
    }


def broken(folder: Path) -> list[str]:
    """Files that were written but cannot be read, and temporary files that were left behind."""
    problems = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        try:
            if path.name.startswith(".") and path.name != ".lock":
                problems.append(f"left behind: {path}")
            elif path.suffix == ".st":
                load_code(path)
            elif path.name == "config.json":
                load_model(str(path.parent))
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.name.startswith("snapshot-") and path in list_snapshots(path.parent):
                load_snapshot(path)
        except (WranganError, OSError) as error:
            problems.append(str(error))
    return problems


def main() -> None:
    """Run the jobs. Only answers go to stdout: what a library prints there goes to stderr."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs = [json.loads(line) for line in sys.stdin]
    limited = False
    for job in jobs:
        outcome = outcome_of(job["arguments"], Path(job["out"]), Path(job["given"]))
        print(json.dumps(outcome), file=answers, flush=True)
        if not limited:
            # After the first case, when everything has been imported and mapped.
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            bound = pages * resource.getpagesize() + int(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
            limited = True


if __name__ == "__main__":
    main()
