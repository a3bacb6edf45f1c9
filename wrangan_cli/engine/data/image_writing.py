"""Write image files atomically: .png, .jpg and .webp."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.data.images import MAX_PIXELS, to_pillow
from wrangan_cli.engine.data.marks import mark_for

WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

LARGEST_SIDES = {".png": 2**31 - 1, ".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Largest side in px of the formats that are written."""


def save_image(path: Path, image: Tensor, edited: bool = False) -> None:
    """Write (3, H, W) in [-1, 1] as 8-bit .png, .jpg (quality 95) or .webp (quality 95), atomically.

    edited: mark the file as edited, and by which software (`marks.py`).

    Raises UsageError for another suffix, WranganError for values that are not finite,
    FileError if the file cannot be written.
    """
    written_format(path)
    save_pillow(path, checked_pillow(path, image), edited)


def checked_pillow(path: Path, image: Tensor) -> Image.Image:
    """`to_pillow` for a picture to write to `path`; WranganError for values that are not finite."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise WranganError(f"{path}: not written: an image has values that are not finite")
    return to_pillow(image)


def save_pillow(path: Path, image: Image.Image, edited: bool = False) -> None:
    """`save_image` for a Pillow image."""
    kind = written_format(path)
    try:
        with replaced_atomically(path) as temporary:
            quality = {} if kind == "PNG" else {"quality": 95}
            image.save(temporary, format=kind, **quality, **(mark_for(kind) if edited else {}))
    except (OSError, ValueError) as error:  # ValueError: WebP, for too large images
        raise FileError(path, f"not written ({getattr(error, 'strerror', None) or error})") from error


def check_written_size(path: Path, size: tuple[int, int], sides: Mapping[str, int] = LARGEST_SIDES) -> None:
    """UsageError if a picture of this width and height cannot be written to `path`.

    sides: the largest side in px, by suffix. Call it before rendering, which takes long.
    """
    most = sides[path.suffix.lower()]
    if max(size) > most or size[0] * size[1] > MAX_PIXELS:
        raise UsageError(
            f"{path}: would have {size[0]} × {size[1]} px; the limit is {most} per side and "
            f"{MAX_PIXELS // 10**6} million in total: give fewer --steps or a smaller --side"
        )


def written_format(path: Path) -> str:
    """Pillow's name of the format of a suffix; UsageError for formats that we do not write."""
    try:
        return WRITTEN_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITTEN_FORMATS)
        raise UsageError(f"{path}: images can be written as {known}, not {path.suffix!r}") from None
