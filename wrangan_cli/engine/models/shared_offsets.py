"""Codes of the frames of one clip, which share offsets that are stored in one file beside them.

The `.st` of a frame holds w and a low-rank difference of its ε: for a weight (O, I, k, k) the factors
`left.<weight>` (O, r) and `right.<weight>` (r, I·k·k), whose product is added to the shared ε. `shared` in
its record names the file and its sha256.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors

KIND = "shared-offsets"
SHARED_FILE = "shared.safetensors"
"""Not `.st`, so that it does not count among the codes of a folder."""
EPSILON, LEFT, RIGHT = "epsilon.", "left.", "right."

Factors = dict[str, tuple[Tensor, Tensor]]
"""By the weight's name: (O, r) and (r, I·k·k)."""


@dataclass(frozen=True)
class Shared:
    """The data that the frames of a clip share."""

    epsilon: dict[str, Tensor]
    """By the weight's name, (O, I, k, k), float32."""
    w: Tensor
    """w of the key frames on which it was fitted: float32 (K, style_dim)."""
    sha256: str
    """sha256 of the file."""


def save_shared(path: Path, epsilon: Mapping[str, Tensor], w: Tensor, record: Mapping[str, Any]) -> None:
    """Write ε (O, I, k, k) by the weight's name, in float16, and w (K, style_dim); atomically."""
    tensors = {f"{EPSILON}{name}": value.half() for name, value in epsilon.items()}
    write_tensors(path, {"w": w.float(), **tensors}, {"kind": KIND, **record})


def load_shared(path: Path) -> Shared:
    """Read a file of `save_shared`; FileError if it is missing, or something else."""
    try:
        about = path.stat()
    except OSError as error:
        raise FileError(path, "no such file, but the frames of the clip need it") from error
    return _read(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _changed: int, _size: int) -> Shared:
    tensors, record = read_tensors(path)
    if record.get("kind") != KIND or "w" not in tensors:
        raise FileError(path, "not the shared offsets of a clip (made by `wrangan video invert`)")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(path, f"{name} has values that are not finite")
    epsilon = {n.removeprefix(EPSILON): t.float() for n, t in tensors.items() if n.startswith(EPSILON)}
    return Shared(epsilon, tensors["w"].float(), sha256(path))


def with_shared(
    path: Path, tensors: dict[str, Tensor], info: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of the code at `path` as of an ordinary code: with `epsilon.<weight>` in full.

    A code without `shared` in its record is returned unchanged. FileError: the file beside it is missing,
    is a different one, or does not fit.
    """
    if "shared" not in info:
        return tensors, info
    link = info["shared"]
    name = link.get("file") if isinstance(link, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise FileError(path, "its record is broken: shared names no file beside it")
    shared = load_shared(path.parent / name)
    if link.get("sha256") != shared.sha256:
        raise FileError(path, f"made with another {name} than the one beside it")
    kept = {key: value for key, value in tensors.items() if not key.startswith((LEFT, RIGHT))}
    own = factors_of(tensors)
    named = {key.removeprefix(LEFT).removeprefix(RIGHT) for key in tensors if key.startswith((LEFT, RIGHT))}
    if named != own.keys() or not named <= shared.epsilon.keys():
        raise FileError(path, f"its factors do not fit {name}")
    for weight, epsilon in shared.epsilon.items():
        try:
            value = epsilon + product(*own[weight], epsilon.shape) if weight in own else epsilon
        except (RuntimeError, ValueError) as error:
            raise FileError(path, f"{LEFT}{weight} does not fit {name}") from error
        kept[EPSILON + weight] = value
    return kept, {key: value for key, value in info.items() if key != "shared"}


def factors_of(tensors: Mapping[str, Tensor]) -> Factors:
    """The factors among a frame's tensors, as stored."""
    names = [key.removeprefix(LEFT) for key in tensors if key.startswith(LEFT)]
    return {name: (tensors[LEFT + name], tensors[RIGHT + name]) for name in names if RIGHT + name in tensors}


def product(left: Tensor, right: Tensor, shape: torch.Size) -> Tensor:
    """The offset (O, I, k, k) of two factors (O, r), (r, I·k·k); differentiable, float32 or more."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) @ right.to(wide)).view(shape)
