"""Directions in W, their file, and edits along them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, cause_of
from wrangan_cli.engine.base.number_lists import parse_numbers
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.models.codes import Code, as_w_plus
from wrangan_cli.engine.models.folder import Model

FILE_NAME = "directions.safetensors"
SENSIBLE_RANGE = (-3.0, 3.0)
"""Strengths that InterFaceGAN shows, at which images usually stay good."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction along which to move w of one model."""

    name: str
    """Letters, digits, `-`, `_`, `.`: it becomes part of file names."""
    vector: Tensor = field(repr=False)
    """float32 on the CPU: a unit vector in W (style_dim,), or, if the rows differ, vectors in
    W+ (num_latents, style_dim): zero outside `layers`, with norms of root mean square 1 inside."""
    std: float
    """Standard deviation of w along the vector, over random z (`std_along`)."""
    layers: tuple[int, ...] | None = None
    """Rows of W+ that it moves, counted from 0; None means all."""
    range: tuple[float, float] = SENSIBLE_RANGE
    """Lowest and highest sensible strength, in standard deviations."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where it came from: JSON values (method, attribute, samples, accuracy …)."""

    def __post_init__(self) -> None:
        check_name(self.name)

    @property
    def per_row(self) -> bool:
        """Whether each row of W+ has a separate vector."""
        return self.vector.ndim == 2


@dataclass(frozen=True)
class Move:
    """A step along a direction."""

    direction: Direction
    strength: float
    """Standard deviations of w along the direction: 3 means the same on every model."""

    def __post_init__(self) -> None:
        check_strength(self.strength, self.direction.name)
        if not isinstance(self.strength, int | float):  # NumPy's, which JSON cannot hold
            object.__setattr__(self, "strength", float(self.strength))

    @property
    def label(self) -> str:
        """Such as `smile+3` or `age-2.5`: part of file names."""
        return f"{self.direction.name}{self.strength:+g}"

    @property
    def outside_range(self) -> bool:
        """Whether the strength is outside the sensible range of the direction."""
        low, high = self.direction.range
        return not low <= self.strength <= high


def check_name(name: str) -> None:
    """UsageError for a name that could not be part of a file name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"direction name {name!r}: expected letters, digits, '-', '_' and '.'")


def check_strength(strength: float, name: str) -> None:
    """UsageError for a strength that is not a finite number."""
    if not isinstance(strength, Real) or isinstance(strength, bool) or not math.isfinite(strength):
        raise UsageError(f"strength {strength!r} of {name}: expected a finite number")


def check_requests(names: Sequence[str], strengths: Sequence[float]) -> None:
    """UsageError when there is no name, the counts differ, or a strength is not finite."""
    if not names:
        raise UsageError("no direction given: name one with --direction")
    if len(names) != len(strengths):
        counts = f"{len(names)} × --direction, {len(strengths)} × --strength"
        raise UsageError(f"{counts}: give one strength for each direction")
    for name, strength in zip(names, strengths, strict=True):
        check_strength(strength, name)


def find_direction(directions: Mapping[str, Direction], name: str, where: Path | str) -> Direction:
    """A direction by name; a UsageError lists those that exist."""
    if name not in directions:
        known = ", ".join(directions) or "none"
        raise UsageError(f"direction {name!r} is not in {where}; there are: {known}")
    return directions[name]


def edit_code(code: Code, moves: Sequence[Move], num_latents: int) -> Code:
    """w' = w + Σ strength · std · vector; all offsets are kept.

    code.w: (style_dim,) or (num_latents, style_dim). It stays in W when every direction
    moves all layers equally, otherwise the result is in W+. The info of the new code has a list
    `edits`, and no `distortion`, since the code no longer represents the photograph.
    """
    w = code.w
    for move in moves:
        step = move.strength * move.direction.std * move.direction.vector.to(w)
        layers = move.direction.layers
        if move.direction.per_row:
            if len(step) != num_latents:
                raise UsageError(
                    f"direction {move.direction.name}: {len(step)} rows, and w has {num_latents}"
                )
            w = as_w_plus(w, num_latents) + step
            continue
        if layers is None:
            w = w + step
            continue
        if max(layers) >= num_latents:
            raise UsageError(
                f"direction {move.direction.name}: layer {max(layers)} is beyond the {num_latents} rows of w"
            )
        w = as_w_plus(w, num_latents).clone()
        w[list(layers)] += step
    info = {key: value for key, value in code.info.items() if key != "distortion"}
    done = [{"direction": move.direction.name, "strength": move.strength} for move in moves]
    info["edits"] = [*info.get("edits", []), *done]
    return replace(code, w=w, info=info)


def directions_file(model: Model) -> Path:
    """The file to which new directions of a model are written; `load_directions` also reads others."""
    return model.path / FILE_NAME


def load_directions(model: Model, path: Path | None = None) -> dict[str, Direction]:
    """The directions of a model by name, in the order in which they were stored.

    path: a file to read in place of the model's directions; it must exist. The model's directions are
    those that ship with it or its parent, and those that the user made, which take precedence;
    there may be none. Raises FileError for a file that is broken or belongs to another model.
    """
    if path is not None:
        return _read_directions(model, path)
    found: dict[str, Direction] = {}
    for file in reversed(model.companions(FILE_NAME)):
        found |= _read_directions(model, file)
    return found


def _read_directions(model: Model, path: Path) -> dict[str, Direction]:
    tensors, record = read_tensors(path)
    if record.get("kind") != "directions":
        raise FileError(path, "not a file of directions (made by `wrangan directions`)")
    if not model.accepts(record.get("model_sha256")):
        raise FileError(
            path,
            f"made for another model ({record.get('model', 'unknown')}, "
            f"sha256 {str(record.get('model_sha256'))[:12]}…), not for {model.name} ({model.sha256[:12]}…)",
        )
    try:
        entries = [_from_json(entry, tensors) for entry in record["directions"]]
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise FileError(path, f"broken record of directions ({cause_of(error)})") from error
    for entry in entries:
        check_fit(path, entry, model)
    return {entry.name: entry for entry in entries}


def save_directions(path: Path, model: Model, directions: Iterable[Direction]) -> None:
    """Write `directions`, tied to `model`, to `path`, replacing the file atomically."""
    listed = list(directions)
    record = {
        "kind": "directions",
        "model": model.name,
        "model_sha256": model.sha256,
        "directions": [_to_json(direction) for direction in listed],
    }
    write_tensors(path, {d.name: d.vector.float() for d in listed}, record)


def add_directions(path: Path, model: Model, directions: Iterable[Direction]) -> dict[str, Direction]:
    """Add `directions` to the file; new ones replace those of the same name.

    Returns all directions of the file. Raises FileError if the existing file belongs to
    another model.
    """
    held = load_directions(model, path) if path.exists() else {}
    held |= {direction.name: direction for direction in directions}
    save_directions(path, model, held.values())
    return held


def parse_layers(text: str, num_latents: int) -> tuple[int, ...] | None:
    """`all` → None; `0-3,7` → (0, 1, 2, 3, 7); UsageError for anything else or beyond the model."""
    if text.strip() == "all":
        return None
    example = f"all, or numbers in 0…{num_latents - 1} such as 0-3,7"
    numbers = parse_numbers(text, "layers", 0, num_latents - 1, 100 * num_latents, example)
    return tuple(sorted(set(numbers)))


def unit(vector: Tensor) -> Tensor:
    """The vector scaled to length 1: float32 on the CPU."""
    double = vector.detach().double().cpu()
    return (double / double.norm()).float()


def _to_json(direction: Direction) -> dict[str, Any]:
    return {
        "name": direction.name,
        "std": direction.std,
        "layers": None if direction.layers is None else list(direction.layers),
        "range": list(direction.range),
        "source": direction.source,
    }


def _from_json(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Direction:
    low, high = map(float, entry["range"])
    layers = entry["layers"]
    return Direction(
        name=str(entry["name"]),
        vector=tensors[entry["name"]].float(),
        std=float(entry["std"]),
        layers=None if layers is None else tuple(int(layer) for layer in layers),
        range=(low, high),
        source=dict(entry["source"]),
    )


def check_fit(path: Path, direction: Direction, model: Model) -> None:
    """FileError about `path` for a direction that does not fit the model."""
    config = model.generator.config
    rows, length = config.num_latents, config.style_dim
    if direction.vector.shape not in ((length,), (rows, length)):
        raise FileError(
            path,
            f"{direction.name} has shape {tuple(direction.vector.shape)}, "
            f"expected ({length},) or ({rows}, {length})",
        )
    if not direction.vector.isfinite().all() or not math.isfinite(direction.std):
        raise FileError(path, f"{direction.name} has values that are not finite")
    if direction.layers is not None and not all(0 <= i < rows for i in direction.layers):
        raise FileError(path, f"{direction.name} moves layers that {model.name} does not have")
    if direction.layers == ():
        raise FileError(path, f"{direction.name} moves no layer")
    moved = direction.vector[moved_rows(direction)] if direction.per_row else direction.vector[None]
    if abs(row_norm(moved) - 1) > 1e-3:
        raise FileError(path, f"{direction.name} is not a unit vector")
    if direction.per_row and moved.count_nonzero() != direction.vector.count_nonzero():
        raise FileError(path, f"{direction.name} has values in rows that it does not move")


def moved_rows(direction: Direction) -> list[int]:
    """Indices of the rows of W+ that a direction with a vector for each row moves."""
    return list(range(len(direction.vector)) if direction.layers is None else direction.layers)


def row_norm(vectors: Tensor) -> float:
    """Root mean square of the norms of rows (K, style_dim)."""
    return float(vectors.double().norm(dim=1).square().mean().sqrt())


def std_along(w: Tensor, vector: Tensor) -> float:
    """Standard deviation of samples w (N, style_dim) along a unit vector (style_dim,).

    vector (K, style_dim), the rows that a direction moves: the root mean square over them, without
    normalising each; for K equal rows it equals that of one row.
    """
    along = w.double().cpu() @ torch.atleast_2d(vector.double().cpu()).T
    return float(along.var(dim=0).mean().sqrt())
