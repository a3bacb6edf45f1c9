"""The forms in which users pass pictures: files, Pillow images, arrays, tensors, aligned faces."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.data.image_reading import open_image, standard
from wrangan_cli.engine.data.images import MIN_SIDE, to_pillow, to_tensor
from wrangan_cli.engine.data.photographs import load_photograph
from wrangan_cli.engine.models.generator import reduced

logger = logging.getLogger("wrangan")

ROUNDING = 1e-3
"""How far values of a tensor may exceed [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face that `align` cut out of a photograph, with what `paste` needs to put it back."""

    image: Image.Image
    """The aligned face: 8-bit RGB, (S, S) px."""
    photo: Image.Image = field(repr=False)
    """The whole photograph: 8-bit RGB, upright."""
    quad: NDArray[np.float64] = field(repr=False)
    """Corners of the frame in px of the photograph, (4, 2): top left, then counter-clockwise."""
    confidence: float
    """Confidence of the detector, 0…1."""


Picture = str | Path | Image.Image | NDArray[np.uint8] | Tensor | Face
"""A file, a Pillow image of any mode, an array (H, W, 3) of uint8 in RGB, a floating-point tensor (3, S, S)
in [-1, 1], or an aligned face."""

P = TypeVar("P", bound=Picture)
Progress = Callable[[int, int], None]
"""Called with the amount done so far and the total."""


def as_list(pictures: Any) -> tuple[list[Any], bool]:
    """`pictures` as a list, and whether several were given: list, tuple, iterator, tensor (B, 3, S, S)."""
    if hasattr(pictures, "read"):  # an open file, which is an iterator, too
        return [pictures], False
    if isinstance(pictures, list | tuple | Iterator):
        return list(pictures), True
    if isinstance(pictures, Tensor) and pictures.ndim == 4:
        return list(pictures), True
    return [pictures], False


def prepared(pictures: Sequence[Picture], most: int, size: int) -> list[Path | Tensor]:
    """The input of inversion: files stay files, to be read when needed; everything else becomes
    (3, S, S) in [-1, 1], by `photograph`."""
    several = len(pictures) > 1
    warn_of_range(pictures)
    return [
        Path(picture)
        if isinstance(picture, str | Path)
        else photograph(picture, most, size, f"image {number}" if several else "image")
        for number, picture in enumerate(pictures, 1)
    ]


def photograph(picture: Picture, most: int, size: int = 0, name: str = "image") -> Tensor:
    """The central square, (3, S, S) in [-1, 1]: `load_photograph` for any picture.

    S is `size`, or the picture's side if that is 0, and at most `most`. A tensor is reduced
    by area averaging, and not enlarged. name: its name in errors.
    """
    if isinstance(picture, str | Path):
        return load_photograph(Path(picture), most, size)
    if isinstance(picture, Tensor):
        return reduced(_checked(picture, name)[None], min(size or most, most))[0]
    opened = _in_memory(picture, name)
    return to_tensor(standard(Path(name), opened, min(size or most, most), enlarge=size > 0))


def warn_of_range(pictures: Sequence[Picture]) -> None:
    """Warn once if all tensors among `pictures` have values in [0, 1], the range of many libraries."""
    given = [picture for picture in pictures if isinstance(picture, Tensor) and picture.numel()]
    if given and all(bool(((picture >= 0) & (picture <= 1)).all()) for picture in given):
        logger.warning(
            "all values of the tensor are in [0, 1]: expected [-1, 1]; if it is in [0, 1], pass 2 * x - 1"
        )


def whole(picture: Picture, name: str = "image") -> Image.Image:
    """The whole picture as an upright 8-bit RGB Pillow image."""
    warn_of_range([picture])
    if isinstance(picture, str | Path):
        return open_image(Path(picture))
    if isinstance(picture, Tensor):
        return to_pillow(_checked(picture, name))
    return standard(Path(name), _in_memory(picture, name))


def _in_memory(picture: Image.Image | NDArray[np.uint8] | Face, name: str) -> Image.Image:
    if isinstance(picture, Face):
        return picture.image
    if isinstance(picture, Image.Image):
        try:
            picture.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise FileError(Path(name), f"broken image ({error})") from error
        return picture
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            found = f"an array {picture.shape} of {picture.dtype}"
            raise UsageError(f"{name}: {found}: expected (H, W, 3) of uint8, RGB{_remedy(picture)}")
        return Image.fromarray(picture)
    if hasattr(picture, "read"):
        raise UsageError(f"{name}: an open file: pass its path, or PIL.Image.open(file)")
    raise UsageError(
        f"{name}: {type(picture).__name__}: expected a path, a Pillow image, an array (H, W, 3) of uint8, "
        "or a tensor (3, S, S) in [-1, 1]"
    )


def _remedy(array: NDArray[Any]) -> str:
    """How to convert an array x to an accepted one; empty if that is not obvious."""
    if array.ndim == 4:
        return "; pass several as list(x)"
    if array.ndim == 2:
        return "; pass a grey picture as PIL.Image.fromarray(x)"
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "f" or not array.size:
        return ""
    low, high = array.min(), array.max()
    if low >= 0 and high <= 1:
        return '; from [0, 1], pass (255 * x).round().astype("uint8")'
    if low >= -1 and high <= 1:
        return '; from [-1, 1], pass (127.5 * (x + 1)).round().astype("uint8")'
    return '; pass x.round().astype("uint8")' if low >= 0 and high <= 255 else ""


def _checked(image: Tensor, name: str) -> Tensor:
    """(3, S, S) float32 on the CPU; UsageError for other shapes, dtypes and ranges."""
    shape = tuple(image.shape)
    if image.ndim != 3 or shape[0] != 3 or shape[1] != shape[2] or not image.is_floating_point():
        dtype = str(image.dtype).removeprefix("torch.")
        raise UsageError(
            f"{name}: a tensor {shape} of {dtype}: expected (3, S, S) of floating point in [-1, 1]"
        )
    if shape[1] < MIN_SIDE:
        raise UsageError(f"{name}: a tensor {shape}: expected a side of at least {MIN_SIDE} px")
    values = image.detach().to("cpu", torch.float32)
    if not values.isfinite().all():
        raise UsageError(f"{name}: a tensor with values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < -1 - ROUNDING or high > 1 + ROUNDING:
        scaled = "; from [0, 255], pass x / 127.5 - 1" if low >= 0 and high <= 255 else ""
        raise UsageError(f"{name}: a tensor with values in [{low:g}, {high:g}]: expected [-1, 1]{scaled}")
    return values.clamp(-1, 1)
