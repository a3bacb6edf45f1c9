"""A clip's codes on disk: a folder with a record, the shared ε, and a small code for each frame."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.data.ffmpeg import ClipFacts
from wrangan_cli.engine.faces.alignment import Points, quad_side

FORMAT = "wrangan-clip"
FILE = "clip.json"
SUFFIX = ".st"
QUAD_DIGITS = 3
"""Decimals, in px, to which a frame's corners are stored."""


@dataclass
class ClipRecord:
    """What is stored about a clip besides its codes."""

    source: str
    """File name of the clip, without folders."""
    sha256: str
    facts: ClipFacts
    model: str
    model_sha256: str
    settings: dict[str, Any]
    frames: str = ""
    """The requested frames, such as 0-99; empty: all."""
    found: dict[int, list[list[float]] | None] = field(default_factory=dict)
    """Detected landmarks (5, 2) by number of the frame; None: no face."""
    numbers: list[int] = field(default_factory=list)
    """Frames to invert, in order; empty until all have been searched."""
    quads: Points = field(default_factory=lambda: np.zeros((0, 4, 2)))
    """Corners of the aligned frame of each of `numbers`, px of the clip: (N, 4, 2)."""
    side: int = 0
    """Side of the aligned frames in px."""
    ended: str = ""
    """Why the inversion ends before the clip does; empty: it does not."""
    key_frames: list[int] = field(default_factory=list)
    flicker: dict[str, float] | None = None
    """`input`, `output` and `flicker` (flicker.py), once all frames are done."""
    edits: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same for edits, by their label (such as `smile+3`)."""


def frame_file(folder: Path, number: int) -> Path:
    """The code of a frame by its number in the clip, from 0."""
    return folder / f"frame-{number:06d}{SUFFIX}"


def check_finished(folder: Path, record: ClipRecord) -> None:
    """FileError if a frame has no code yet."""
    done = sum(frame_file(folder, number).is_file() for number in record.numbers)
    if done < len(record.numbers) or not record.numbers:
        state = (
            f"{done} of {len(record.numbers)} frames" if record.numbers else "the face has not been found yet"
        )
        raise FileError(folder, f"inversion not finished ({state}): run `wrangan video invert` again")


def save_record(folder: Path, record: ClipRecord) -> None:
    """Write clip.json, atomically."""
    values = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    values["facts"] = {**dataclasses.asdict(record.facts), "fps": str(record.facts.fps)}
    values["quads"] = record.quads.round(QUAD_DIGITS).tolist()
    values["found"] = {str(number): points for number, points in sorted(record.found.items())}
    text = json.dumps({"format": FORMAT, "version": 1, **values})
    with replaced_atomically(folder / FILE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def load_record(folder: Path) -> ClipRecord:
    """Read clip.json. Raises FileError: not there, or not what `save_record` wrote."""
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(folder, "not the codes of a clip (made by `wrangan video invert`)") from error
    except (OSError, ValueError) as error:
        raise FileError(path, f"not readable as JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise FileError(path, "not the record of a clip (made by `wrangan video invert`)")
    try:
        return _record_of(values)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise FileError(path, f"broken record ({type(error).__name__}: {error})") from error


def _record_of(values: dict[str, Any]) -> ClipRecord:
    facts = values["facts"]
    numbers = [int(number) for number in values["numbers"]]
    quads = np.array(values["quads"], dtype=np.float64).reshape(-1, 4, 2)
    if len(quads) != len(numbers) or not np.isfinite(quads).all():
        raise ValueError("quads are not four corners for each frame")
    if (
        any(quad_side(quad) < 1 for quad in quads)
        or sorted(set(numbers)) != numbers
        or min(numbers, default=0) < 0
    ):
        raise ValueError("frames are out of order, or have no area")
    fps, side = Fraction(facts["fps"]), int(values["side"])
    if fps <= 0 or side < 0:
        raise ValueError("fps and side are numbers above 0")
    found = {int(n): None if p is None else _landmarks(p) for n, p in values["found"].items()}
    flicker = values["flicker"]
    edits = {str(label): _figures(figures) for label, figures in values["edits"].items()}
    return ClipRecord(
        source=str(values["source"]),
        sha256=str(values["sha256"]),
        facts=ClipFacts(
            int(facts["width"]),
            int(facts["height"]),
            fps,
            str(facts["matrix"]),
            bool(facts["tagged"]),
            bool(facts["sound"]),
        ),
        model=str(values["model"]),
        model_sha256=str(values["model_sha256"]),
        settings=dict(values["settings"]),
        frames=str(values["frames"]),
        found=found,
        numbers=numbers,
        quads=quads,
        side=side,
        ended=str(values["ended"]),
        key_frames=[int(number) for number in values["key_frames"]],
        flicker=None if flicker is None else _figures(flicker),
        edits=edits,
    )


def _figures(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(values[key]) for key in ("input", "output", "flicker")}


def _landmarks(points: Any) -> list[list[float]]:
    rows = [[float(x), float(y)] for x, y in points]
    if len(rows) != 5 or not all(math.isfinite(value) for row in rows for value in row):
        raise ValueError("landmarks are not five points")
    return rows
