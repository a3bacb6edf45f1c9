"""`kill -9` at random times: the results must be, bit for bit, those of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.stress.samples import SIDE, TRAIN, tiny_model
from tests.conftest import write_photo
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.tensorfile import read_tensors
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot

PHOTOS = 20
OF_THE_RUN = ("seconds", "batch", "peak_memory_mib", "peak_memory_of")
"""Entries of a code's record that differ between two runs of the same work."""
LIMIT = 600


def run(work: Path, kills: int, seed: int, only: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row each for `invert` one by one, `invert` in batches, and `train generator`."""
    photos = work / "photos"
    for number in range(PHOTOS):
        write_photo(photos / f"{number:02d}.png", SIDE, seed=seed + number)
    model = tiny_model(work / "tiny").path
    invert = ["invert", str(photos), "--model", str(model), "--init", "mean", "--steps", "10"]
    invert += ["--perceptual-weight", "0", "--device", "cpu"]
    train = ["train", "generator", "--data", str(photos), *TRAIN, "--images", "160"]
    train += ["--snapshot-images", "8", "--augment", "ada", "--augment-target", "-0.9"]
    rows = []
    for name, command, compare in (
        ("invert --batch 1", [*invert, "--batch", "1"], _codes_differ),
        ("invert --batch 4", [*invert, "--batch", "4"], _codes_differ),
        ("train generator", train, _runs_differ),
    ):
        if only not in name:
            continue
        rng = random.Random(f"{seed}:{name}")
        rows.append(_killed(name, command, work / name.replace(" ", ""), kills, rng, compare))
        say(f"{name}: {rows[-1]}")
    return rows


def _killed(
    name: str,
    command: list[str],
    work: Path,
    kills: int,
    rng: random.Random,
    compare: Callable[[Path, Path], Iterator[str]],
) -> dict[str, Any]:
    """Kill runs this many times; whenever the work is complete, compare the results and start again."""
    started = time.perf_counter()
    _run([*command, "--out", str(work / "whole")])
    whole = time.perf_counter() - started
    faults: list[str] = []
    done = between = half_written = left = rounds = 0
    out = work / "parts-0"
    while done < kills:
        process = _started([*command, "--out", str(out)])
        before = _progress(out)
        if done % 2:
            # While a file is being written, or right after.
            _wait_for(out, rng.randint(1, 4), process)
            time.sleep(rng.choice([0, 0, 0.01]))
        else:
            time.sleep(rng.uniform(0.3, 1.0) * whole)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            done += 1
            between += _progress(out) != before
            half_written += len(_temporaries(out)) > left
            left = len(_temporaries(out))
            faults += [f"after kill {done}: {line}" for line in _unreadable(out)]
        elif process.returncode:
            faults.append(f"exit code {process.returncode} after {done} kills")
            break
        else:
            faults += compare(work / "whole", out)
            rounds += 1
            left = 0
            out = work / f"parts-{rounds}"
    _run([*command, "--out", str(out)])
    faults += compare(work / "whole", out)
    return {
        "command": name,
        "kills": done,
        "with progress": between,
        "in a writing": half_written,
        "complete runs": rounds + 1,
        "faults": [{"fault": "kill", "said": line} for line in faults],
    }


def _started(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "wrangan_cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _run(arguments: list[str]) -> None:
    process = _started(arguments)
    if process.wait(LIMIT):
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(arguments)}")


def _wait_for(out: Path, changes: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the folder of results has changed this many times, or the process has ended."""
    for _ in range(changes):
        before = _progress(out)
        while process.poll() is None and _progress(out) == before:
            time.sleep(0.002)


def _progress(out: Path) -> frozenset[str]:
    """The names in a folder of results, except the lock."""
    names = (path.name for path in out.rglob("*")) if out.is_dir() else ()
    return frozenset(name for name in names if name != ".lock")


def _temporaries(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.name != ".lock"] if out.is_dir() else []


def _unreadable(out: Path) -> Iterator[str]:
    """Errors of files that have the name of a result but cannot be read."""
    for path in sorted(out.rglob("[!.]*")) if out.is_dir() else []:
        try:
            if path.suffix in (".st", ".safetensors"):
                read_tensors(path)
            elif path.suffix == ".pt":
                load_snapshot(path)
        except WranganError as error:
            yield str(error)


def _codes_differ(whole: Path, parts: Path) -> Iterator[str]:
    names = sorted(path.name for path in whole.glob("[!.]*"))
    if names != sorted(path.name for path in parts.glob("[!.]*")) or len(names) != PHOTOS:
        yield f"{parts}: other codes than {names}"
        return
    for name in names:
        one, two = load_code(whole / name), load_code(parts / name)
        tensors, others = read_tensors(whole / name)[0], read_tensors(parts / name)[0]
        # A batch that was interrupted is smaller after the kill, and sums then round differently.
        same = one.info["batch"] == two.info["batch"]
        if not (_equal(tensors, others) if same else _close(tensors, others)):
            yield f"{parts / name}: other numbers than without a kill"
        apart = OF_THE_RUN if same else (*OF_THE_RUN, "distortion")
        records = [{k: v for k, v in code.info.items() if k not in apart} for code in (one, two)]
        if records[0] != records[1]:
            yield f"{parts / name}: another record than without a kill"


def _runs_differ(whole: Path, parts: Path) -> Iterator[str]:
    models = [read_tensors(run / "model" / "model.safetensors")[0] for run in (whole, parts)]
    if not _equal(*models):
        yield f"{parts}: other weights than without a kill"
    for run in (whole, parts):
        load_model(str(run / "model"))
    states = [load_snapshot(list_snapshots(run)[-1]) for run in (whole, parts)]
    if not _equal(*states):
        yield f"{parts}: another state of the training than without a kill"


def _close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether they are equal up to the rounding of the file's half precision."""
    return one.keys() == two.keys() and all(
        torch.allclose(v.float(), two[k].float(), rtol=2e-3, atol=1e-3 * float(v.abs().max()))
        for k, v in one.items()
    )


def _equal(one: Any, two: Any) -> bool:
    """Whether they are equal bit for bit, including nested dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return (
            isinstance(two, dict)
            and one.keys() == two.keys()
            and all(_equal(v, two[k]) for k, v in one.items())
        )
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(_equal, one, two))
    return bool(one == two)
