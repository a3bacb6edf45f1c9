"""Read other tools' latents, check them against a model, make codes of them; and write codes as latents.

Reads the files of NVIDIA's and rosinality's projectors, PTI's pivots, e4e's `latents.pt`, the
`latents.npy` of ReStyle and HyperStyle, and plain arrays; docs/latents.md says what each tool writes.
"""

import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.choices import LatentFormat, LatentSpace
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import replaced_atomically, sha256
from wrangan_cli.engine.base.names import same_name
from wrangan_cli.engine.base.tensorfile import clear_write_errors
from wrangan_cli.engine.checkpoints.array_files import (
    TORCH_SUFFIXES,
    is_array,
    numbers,
    read_numpy,
    read_pickled_numpy,
)
from wrangan_cli.engine.checkpoints.detect import read_data
from wrangan_cli.engine.checkpoints.records import listed
from wrangan_cli.engine.checkpoints.restricted_unpickler import printable
from wrangan_cli.engine.data.photo_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from wrangan_cli.engine.models.codes import IMPORTED, Code, as_w_plus
from wrangan_cli.engine.models.folder import Model, sample_w
from wrangan_cli.engine.models.rendering import active_noise

logger = logging.getLogger("wrangan")

SUFFIXES = (".npz", ".npy", *TORCH_SUFFIXES)
REACH_SAMPLES = 2000

_NAMED_BY_FOLDER = ("projected_w.npz", "0.pt")
"""File names that NVIDIA's projector and PTI use for every image, each in a separate folder."""
_NO_NAMES = ("w", "ws", "w_plus", "z", "latent", "latents", "arr_0")
"""Keys that describe an array, and do not name its image."""
_NOT_IN_NAMES = '<>:"|?*' if os.name == "nt" else ""
_BEYOND_W = {
    "epsilon": "ε",
    "delta": "tuned weights",
    "noise": "noise maps",
    "parameters": "tuned parameters",
}
"""What a code may hold besides w: field of Code → its name in messages."""


@dataclass(frozen=True)
class Latent:
    """One latent of a file, in the form of a model's codes."""

    name: str
    """Name of its code, without suffix or path: its name in the file, or the file's stem."""
    key: str
    """Its name in the file; "" if it has none."""
    shape: tuple[int, ...]
    """Shape of the array in the file."""
    w: Tensor
    """float32 (style_dim,) in W or (num_latents, style_dim) in W+, finite; if all rows are equal, W."""
    noise: tuple[Tensor, ...] = ()
    """Its noise maps, float64 (1, 1, side, side), in the order of rosinality's layers."""


@dataclass(frozen=True)
class _Found:
    """An array of a file, with its context."""

    key: str
    array: object
    noise: object = None


def find_latents(path: Path) -> list[Path]:
    """The files of latents in a folder, sorted by name, or the single file; FileError if there are none."""
    if not path.is_dir():
        return [path]
    inside = sorted(path.iterdir())
    found = [p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise FileError(path, f"no latents ({', '.join(SUFFIXES)}) in it")
    return found


def read_latents(path: Path, model: Model, space: LatentSpace = "w") -> list[Latent]:
    """The latents of a file, in order; nothing in the file is executed.

    space: "w" for arrays (C,), (L, C), (1, L, C) and (N, L, C), with C = style_dim and L = num_latents of the
    model, or L = 1 for latents in W; "z" for (C,) and (N, C), which the model's mapping network
    maps to w. Raises FileError: unreadable, refused, of another form or another model's size, not finite.
    """
    found = list(_contents(path))
    if not found:
        raise FileError(path, "holds no latents")
    stem = path.stem
    if path.name in _NAMED_BY_FOLDER:
        stem = path.absolute().parent.name or stem
    parts = [(item, _split(path, item, model, space)) for item in found]
    # Keep the names in the file if each belongs to one image.
    unnamed = sum(len(rows) for item, rows in parts if not item.key)
    latents: list[Latent] = []
    count = 0
    for item, rows in parts:
        shape = tuple(numbers(path, item.array, _label(item)).shape)
        noise = _noise(path, item)
        for number, row in enumerate(rows):
            base = safe_name(item.key) or stem
            whole, place = (len(rows), number) if item.key else (unnamed, count)
            count += not item.key
            name = base if whole == 1 else f"{base}-{place:0{len(str(whole - 1))}d}"
            latents.append(Latent(name, item.key, shape, row, noise))
    return latents


def safe_name(key: str) -> str:
    """The stem of an image's name or path, as a file name; "" if nothing is left.

    Folders and an image's suffix are dropped; unprintable characters become `_`, and so does a leading dot,
    which would hide the file.
    """
    name = re.split(r"[\\/]", key)[-1]
    if Path(name).suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
        name = Path(name).stem
    name = "".join(c if c.isprintable() and c not in _NOT_IN_NAMES else "_" for c in name)
    return re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), name).strip()


def w_reach(model: Model) -> float:
    """The largest mean squared distance from the mean of W, in units of W's variance, of 2,000 random w."""
    return float(_distance(sample_w(model.generator, REACH_SAMPLES, seed=0), model).max())


def warn_far_from_w(read: Mapping[Path, Sequence[Latent]], model: Model) -> None:
    """Warn in the log, once for all files, about latents farther from the mean of W than any random w.

    This happens for latents of another network, and for some that were optimised without regularisation.
    """
    far: dict[str, float] = {}
    reach = w_reach(model) if read else 0.0
    for path, latents in read.items():
        for item in latents:
            distance = float(_distance(item.w.to(model.device), model).mean())
            if distance > reach:
                far[f"{path} ({item.name})" if len(latents) > 1 else str(path)] = distance
    if far:
        logger.warning(
            "these do not look like latents of %s, or were optimised far away from its W: %s; their "
            "squared distance from the mean of W is up to %.3g times its variance, that of random w at most "
            "%.3g times",
            model.name,
            listed(far),
            max(far.values()),
            reach,
        )


def warn_unused_noise(read: Mapping[Path, Sequence[Latent]], model: Model) -> None:
    """Warn in the log, once for each reason, about latents whose noise maps are not used."""
    left: dict[str, dict[str, None]] = {}
    inputs = [given.map for given in model.generator.noise_inputs().values()]
    for path, latents in read.items():
        for item in latents:
            if item.noise and not fitting_noise(item, model):
                why = f"their sides are {_sides(item.noise)}, those of {model.name} {_sides(inputs)}"
                if not active_noise(model.generator):
                    why = f"{model.name} does not use noise"
                left.setdefault(why, {})[str(path)] = None
    for why, paths in left.items():
        logger.warning("noise maps of %s are left out: %s", listed(paths), why)


def fitting_noise(latent: Latent, model: Model) -> dict[str, Tensor]:
    """The latent's noise maps as in a code: by number, float32 (side, side), minus the model's map.

    {} unless there is one of the right shape for each of the model's noise inputs; those that do not affect
    the image are left out.
    """
    inputs = model.generator.noise_inputs()
    if [tuple(noise.shape) for noise in latent.noise] != [tuple(n.map.shape) for n in inputs.values()]:
        return {}
    active = active_noise(model.generator)
    return {
        number: (noise - given.map.cpu().double())[0, 0].float()
        for (number, given), noise in zip(inputs.items(), latent.noise, strict=True)
        if number in active
    }


def photograph_of(latent: Latent, photos: Mapping[str, Sequence[Path]]) -> Path | None:
    """The photograph with the latent's name among `photos` (images_by_stem), if there is one.

    FileError if several have that name.
    """
    candidates = photos.get(same_name(latent.name), [])
    if len(candidates) > 1:
        others = ", ".join(other.name for other in candidates[1:])
        raise FileError(candidates[0], f"shares its name with {others}: which one belongs to {latent.name}?")
    return candidates[0] if candidates else None


def code_of(
    latent: Latent, path: Path, file_sha256: str, model: Model, space: LatentSpace, photo: Path | None
) -> Code:
    """The code for a latent of the file at `path`. photo: the photograph from which it was made, if known."""
    about: dict[str, Any] = {"file": path.name, "file_sha256": file_sha256, "shape": list(latent.shape)}
    about |= {"space": space, **({"key": latent.key} if latent.key else {})}
    info = {
        "model": model.name,
        "model_sha256": model.sha256,
        "method": IMPORTED,
        "imported": about,
        "source": photo.name if photo else None,
        **({"source_sha256": sha256(photo)} if photo else {}),
    }
    return Code(latent.w, noise=fitting_noise(latent, model), info=info)


def left_out(code: Code) -> list[str]:
    """What a code holds besides w that affects its image: `ε`, `noise maps` …"""
    return [
        said
        for group, said in _BEYOND_W.items()
        if any(bool(value.any()) for value in getattr(code, group).values())
    ]


def encoded(w: Tensor, num_latents: int, form: LatentFormat) -> bytes:
    """The content of a file with a code's w, one row per layer: float32.

    w: (style_dim,) or (num_latents, style_dim). npz: `w` (1, L, C), as NVIDIA's projector writes it. npy:
    (L, C). pt: only the tensor (1, L, C), as for PTI's pivots, for `torch.load(weights_only=True)`.
    """
    rows = as_w_plus(w.detach().cpu().float(), num_latents).contiguous()
    stream = io.BytesIO()
    if form == "npz":
        np.savez(stream, w=rows[None].numpy())
    elif form == "npy":
        np.save(stream, rows.numpy())
    else:
        torch.save(rows[None].clone(), stream)
    return stream.getvalue()


def write_latent(path: Path, content: bytes) -> None:
    """Write the result of `encoded`, atomically; FileError if that fails (disk full …)."""
    with clear_write_errors(path), replaced_atomically(path) as temporary:
        temporary.write_bytes(content)


def _contents(path: Path) -> Iterator[_Found]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FileError(path, f"not a file of latents: expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileError(path, "no such file")
    if suffix in TORCH_SUFFIXES:
        yield from _entries(path, read_data(path))
    elif suffix == ".npy" and (pickled := read_pickled_numpy(path)) is not None:
        yield from _entries(path, pickled)
    else:
        arrays = read_numpy(path)
        # Other tools store further data beside NVIDIA's `w`.
        yield from _entries(path, {"w": arrays["w"]} if "w" in arrays else arrays)


def _entries(path: Path, held: object) -> Iterator[_Found]:
    """The arrays in a file's contents: one, a list of them, or several by the image's name."""
    if is_array(held):
        yield _Found("", held)
    elif isinstance(held, list | tuple):
        for item in held:
            yield _Found("", item)
    elif isinstance(held, Mapping) and is_array(held.get("latent")):
        yield _Found("", held["latent"], held.get("noise"))
    elif isinstance(held, Mapping):
        for key, item in held.items():
            if not isinstance(key, str):
                raise FileError(path, f"its names are not text but {type(key).__name__}")
            named = "" if key in _NO_NAMES else key
            if isinstance(item, Mapping) and "latent" in item:
                yield _Found(named, item["latent"], item.get("noise"))
            elif isinstance(item, list | tuple) and item:
                yield _Found(named, item[-1])  # ReStyle's passes: the last one is its result
            else:
                yield _Found(named, item)
    else:
        raise FileError(path, f"its content is not an array but {type(held).__name__}")


def _label(item: _Found) -> str:
    return printable(item.key, 80) or "its latent"


def _split(path: Path, item: _Found, model: Model, space: LatentSpace) -> list[Tensor]:
    """Each latent of an array: float32 (style_dim,) or (num_latents, style_dim)."""
    label = _label(item)
    array = numbers(path, item.array, label)
    if not array.is_floating_point():
        raise FileError(path, f"{label} holds whole numbers ({array.dtype}), which cannot be a latent")
    _check_shape(path, label, tuple(array.shape), model, space)
    values = array.float()
    if not values.isfinite().all():
        raise FileError(path, f"{label} has values that are not finite")
    length = model.generator.config.style_dim
    if space == "z":
        with torch.no_grad():
            mapped = model.generator.mapping(values.reshape(-1, length).to(model.device)).cpu()
        return [row.clone() for row in mapped]
    rows = 1 if array.ndim == 1 else array.shape[-2]
    # Equal rows mean a w in W, which NVIDIA's projector repeats for each layer.
    return [
        one[0].clone() if bool((one == one[0]).all()) else one.clone()
        for one in values.reshape(-1, rows, length)
    ]


def _check_shape(path: Path, label: str, shape: tuple[int, ...], model: Model, space: LatentSpace) -> None:
    config = model.generator.config
    rows, length = config.num_latents, config.style_dim
    if not shape or 0 in shape:
        raise FileError(path, f"{label} is empty" if shape else f"{label} is a single number")
    if shape[-1] != length:
        raise FileError(
            path, f"{label} has vectors of {shape[-1]} numbers; those of {model.name} have {length}"
        )
    if space == "z":
        if len(shape) > 3 or (len(shape) == 3 and shape[1] != 1):
            raise FileError(
                path, f"{label} has shape {shape}; z is ({length},), or (N, {length}) for several"
            )
        return
    if len(shape) > 3:
        raise FileError(path, f"{label} has shape {shape}; expected (N, {rows}, {length}) or less")
    if len(shape) > 1 and shape[-2] not in (1, rows):
        raise FileError(
            path, f"{label} has {shape[-2]} rows; W+ of {model.name} has {rows} (shape {shape} in the file)"
        )


def _noise(path: Path, item: _Found) -> tuple[Tensor, ...]:
    if not isinstance(item.noise, list | tuple):
        return ()
    maps = tuple(numbers(path, one, f"noise of {_label(item)}").double() for one in item.noise)
    if not all(one.isfinite().all() for one in maps):
        raise FileError(path, f"noise of {_label(item)} has values that are not finite")
    return maps


def _distance(w: Tensor, model: Model) -> Tensor:
    """Squared distance of each w (…, style_dim) from the mean of W, in units of W's variance."""
    return (w - model.w_mean).square().sum(dim=-1) / model.w_std**2


def _sides(maps: Sequence[Tensor]) -> str:
    return " ".join(str(one.shape[-1]) if one.ndim else "0" for one in maps)
