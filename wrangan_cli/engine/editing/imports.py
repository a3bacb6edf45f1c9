"""Import of published directions: `.npy`, `.npz` and `.pt` files of vectors in W or W+, and GANSpace's
components.

Row n of a W+ vector in the file is row n of the model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.checkpoints.array_files import TORCH_SUFFIXES, numbers, read_numpy
from wrangan_cli.engine.checkpoints.detect import read_data
from wrangan_cli.engine.editing.directions import Direction, check_name, parse_layers, row_norm, std_along
from wrangan_cli.engine.models.folder import Model, sample_w

SUFFIXES = (".npy", ".npz", ".pt")
W_SAMPLES = 10_000
COMPONENTS = 10

_COMPONENT_KEYS = (("comp", "std"), ("lat_comp", "lat_stdev"))
"""Keys of the components and their standard deviations: in PTI's copy, and in GANSpace's files."""
_SAME = 1e-5
"""Rows count as equal up to this fraction of their largest entry."""


@dataclass(frozen=True)
class _Found:
    """One array of a file."""

    name: str
    """Name of the direction that it becomes."""
    array: Tensor
    """float64, of any shape."""
    key: str = ""
    """Its name in the file."""
    about: Mapping[str, Any] | None = None
    """Further entries of the direction's source."""


def import_directions(
    model: Model,
    path: Path,
    name: str,
    key: str | None = None,
    layers: str = "all",
    components: int = COMPONENTS,
) -> list[Direction]:
    """The directions of a file, of unit norm, with the spread of the model's w along them.

    path: a .npy, .npz or .pt file with an array (style_dim,), (1, style_dim), (num_latents,
    style_dim) or (1, num_latents, style_dim), or several by name, which become `name`-KEY;
    key selects a single one, which becomes `name`. A GANSpace file yields its first `components` as
    `name`-0 …; there key is the number of one component. layers: as returned by `parse_layers`; rows that
    are zero in the file are left out. Equal rows give a direction in W for these layers,
    different rows a direction with a vector for each.

    Nothing in the file is executed. Raises FileError for any other file, UsageError for
    a name, a key or layers that do not fit.
    """
    check_name(name)
    config = model.generator.config
    wanted = parse_layers(layers, config.num_latents)
    if components < 1:
        raise UsageError(f"components {components}: expected 1 or more")
    found = _select(path, _read(path), name, key, components)
    w = sample_w(model.generator, W_SAMPLES, seed=0).cpu()
    about = {"method": "import", "file": path.name, "file_sha256": sha256(path)}
    return [_direction(path, item, model, wanted, w, about) for item in found]


def _direction(
    path: Path, item: _Found, model: Model, wanted: tuple[int, ...] | None, w: Tensor, about: dict[str, Any]
) -> Direction:
    config = model.generator.config
    label = f"{item.key}: " if item.key else ""
    shape, array = tuple(item.array.shape), item.array
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.shape not in ((config.style_dim,), (config.num_latents, config.style_dim)):
        raise FileError(
            path,
            f"{label}shape {shape}; {model.name} needs ({config.style_dim},) "
            f"or ({config.num_latents}, {config.style_dim})",
        )
    if not array.isfinite().all():
        raise FileError(path, f"{label}values that are not finite")
    if not array.any():
        raise FileError(path, f"{label}all zero")
    rows = wanted
    if array.ndim == 2:
        every = range(config.num_latents)
        asked = every if wanted is None else wanted
        moved = [row for row in asked if array[row].any()]
        if not moved:
            raise FileError(path, f"{label}all zero in the requested layers")
        rows = None if moved == list(every) else tuple(moved)
        array, own = torch.zeros_like(array), array[moved]
        if (own - own[0]).abs().max() <= _SAME * own.abs().max():
            array = own[0]
        else:
            array[moved] = own
    active = array[None] if array.ndim == 1 else array[list(rows or range(len(array)))]
    norm = row_norm(active)
    std = std_along(w, active / norm)
    source = {
        **about,
        "shape": list(shape),
        "norm": norm,
        # The strength that equals adding the original vector once: its authors count in these.
        "strength_of_file_unit": norm / std,
        **({"key": item.key} if item.key else {}),
        **(item.about or {}),
    }
    return Direction(item.name, (array / norm).float(), std, rows, source=source)


def _select(
    path: Path, arrays: dict[str, Tensor], name: str, key: str | None, components: int
) -> list[_Found]:
    for comp, std in _COMPONENT_KEYS:
        if comp in arrays:
            return _components(path, arrays[comp], arrays.get(std), name, key, components)
    if key is not None:
        if key not in arrays:
            known = ", ".join(arrays) if list(arrays) != [""] else "one array without a name"
            raise UsageError(f"key {key!r} is not in {path}; there are: {known}")
        return [_Found(name, arrays[key], key)]
    if list(arrays) == [""]:
        return [_Found(name, arrays[""])]
    names = {key: f"{name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', key)}" for key in arrays}
    if len(set(names.values())) < len(names):
        raise FileError(path, "the names of the arrays differ only in punctuation: select one with --key")
    return [_Found(names[key], array, key) for key, array in arrays.items()]


def _components(
    path: Path, comp: Tensor, std: Tensor | None, name: str, key: str | None, components: int
) -> list[_Found]:
    """Directions from components (N, 1, style_dim) or (N, style_dim) and standard deviations (N,)."""
    if comp.ndim not in (2, 3) or not len(comp):
        raise FileError(path, f"components of shape {tuple(comp.shape)}: expected (N, 1, style_dim)")
    if std is not None and std.numel() != len(comp):
        raise FileError(path, f"{len(comp)} components and {std.numel()} standard deviations")
    numbers = range(min(components, len(comp)))
    if key is not None:
        if not key.isdigit() or int(key) >= len(comp):
            raise UsageError(f"key {key!r}: expected the number of a component, 0…{len(comp) - 1}")
        numbers = range(int(key), int(key) + 1)
    found = []
    for number in numbers:
        about = {} if std is None else {"file_std": float(std.flatten()[number])}
        own_name = name if key is not None else f"{name}-{number}"
        found.append(_Found(own_name, comp[number], str(number), {"method": "GANSpace import", **about}))
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name, float64; an unnamed single array has the name ""."""
    if path.suffix not in SUFFIXES:
        raise FileError(path, f"not a file of directions: expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileError(path, "no such file")
    held = _read_torch(path) if path.suffix in TORCH_SUFFIXES else read_numpy(path)
    found = {key: numbers(path, value, key or "its content").double() for key, value in held.items()}
    if not found:
        raise FileError(path, "holds no array")
    return found


def _read_torch(path: Path) -> dict[str, Any]:
    loaded = read_data(path)
    if isinstance(loaded, dict):
        return {str(key): value for key, value in loaded.items()}
    return {"": loaded}
