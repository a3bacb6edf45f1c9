"""Training snapshots: one file each, written atomically, read with `weights_only`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wrangan_cli.engine.base.errors import FileError, cause_of
from wrangan_cli.engine.base.tensorfile import write_torch

_NAME = re.compile(r"snapshot-(\d+)\.pt")


def save_snapshot(folder: Path, images: int, state: dict[str, Any], keep: int) -> Path:
    """Write `snapshot-<images>.pt` and delete all but the newest `keep`."""
    path = folder / f"snapshot-{images:010d}.pt"
    write_torch(path, state)
    for old in list_snapshots(folder)[:-keep]:
        old.unlink()
    return path


def list_snapshots(folder: Path) -> list[Path]:
    """Snapshots of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_snapshot(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; raises FileError if the file holds anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on broken files
        raise FileError(path, f"not a readable training snapshot ({cause_of(error)})") from error


def newest_state(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """State of the newest readable snapshot; None if there are no snapshots.

    Snapshots are written atomically, so a broken one means a broken disk: a message to `warn`
    names it and the older one that is used instead, and it is renamed to `broken-…`, out of
    the way of later snapshots. FileError if no older one is left.
    """
    present = list_snapshots(folder)
    while present:
        path = present.pop()
        try:
            return load_snapshot(path)
        except FileError as error:
            if not present:
                raise
            aside = path.replace(path.with_name(f"broken-{path.name}"))
            warn(f"{error}; kept as {aside.name}, continuing from {present[-1].name}")
    return None
