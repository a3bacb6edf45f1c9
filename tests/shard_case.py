"""`wrangan` command lines as tests/test_sharding.py runs them: alone, and in each of two processes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from tests.forked import ranks
from wrangan_cli.app import app
from wrangan_cli.engine.metrics import inception

FEATURES = 8


def load_projection(*_arguments: object, **_options: object) -> Any:
    """A fixed projection of the pixels in place of Inception."""
    matrix = torch.randn(3 * 16 * 16, FEATURES, generator=torch.Generator().manual_seed(7)) / 16
    return lambda images: images.clamp(-1, 1).flatten(1) @ matrix


def run_command(arguments: list[str], stdin: str = "") -> dict[str, Any]:
    """Exit code and lines of one command line; `{ranks}` in it becomes the number of processes."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    result = CliRunner().invoke(app, [text.replace("{ranks}", ranks) for text in arguments], input=stdin)
    return {
        "code": result.exit_code,
        "stdout": result.stdout.splitlines(),
        "stderr": result.stderr.splitlines(),
    }


def main(plan: dict[str, Any], out: Path, rank: int) -> None:
    outcomes = {}
    for name, case in plan.items():
        os.environ["MASTER_PORT"] = str(case["port"])
        # What torchrun's processes have in common is one stdin: the first one reads it.
        outcomes[name] = run_command(case["arguments"], case["stdin"] if rank == 0 else "")
    (out / f"{rank}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    inception.load_inception = load_projection
    read = json.loads(Path(sys.argv[1]).read_text())
    ranks(2, lambda rank: main(read, Path(sys.argv[2]), rank))
