"""Read image files: any common format → an upright 8-bit sRGB picture, or a float32 tensor in [-1, 1]."""

import contextlib
import logging
import math
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from wrangan_cli.engine.base.choices import ResizeFilter
from wrangan_cli.engine.base.errors import FileError, cause_of
from wrangan_cli.engine.base.files import check_regular
from wrangan_cli.engine.data.colour import to_srgb
from wrangan_cli.engine.data.image_kinds import HEAD, RAW_SUFFIXES, kind_of, reads_heif, why_not_read
from wrangan_cli.engine.data.images import MAX_PIXELS, MIN_SIDE, to_tensor
from wrangan_cli.engine.data.pillow_limits import pillow_without_remarks
from wrangan_cli.engine.data.side_information import stripped

logger = logging.getLogger("wrangan")

RESIZE_FILTERS = {name: Image.Resampling[name.upper()] for name in get_args(ResizeFilter)}
"""Filters for reducing pictures, by name; each is scaled with the reduction, so none aliases."""

DRAFT_PIXELS = 50_000_000
"""JPEG files with more pixels are decoded at 1/2, 1/4 or 1/8 of their size if that suffices."""

_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Errors of Pillow's decoders on broken files, as observed.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


def load_image(path: Path, resolution: int | None = None, enlarge: bool = True) -> Tensor:
    """A photograph as float32 (3, H, W) in [-1, 1], RGB, upright.

    With `resolution` R: the central square, resized to (3, R, R) by a box (area) filter if
    it is larger and by bicubic interpolation if it is smaller, or without `enlarge` left at its
    side. Grey, palette, 16-bit (scaled, not clipped) and CMYK pictures become RGB, transparent
    ones are composited over white, EXIF orientation is applied, and the first frame of an
    animation is used. An embedded colour profile (Adobe RGB, Display P3 …) is converted to
    sRGB (engine/data/colour.py).

    Raises FileError: missing, empty, not an image, truncated, a side below MIN_SIDE px, or
    more than MAX_PIXELS px.
    """
    return to_tensor(open_image(path, resolution, enlarge=enlarge))


def open_image(
    path: Path,
    resolution: int | None = None,
    max_side: int | None = None,
    data: bytes | None = None,
    resize_filter: ResizeFilter = "box",
    enlarge: bool = True,
) -> Image.Image:
    """`load_image` as an 8-bit RGB Pillow image; `max_side` reduces it without cropping.

    max_side: a longer side is reduced to it by a box filter. data: the
    file's bytes if they are not at `path` (in a zip); `path` then only names them.
    resize_filter: for pictures larger than `resolution`.
    """
    return open_with_size(path, resolution, max_side, data, resize_filter, enlarge)[0]


def open_with_size(
    path: Path,
    resolution: int | None = None,
    max_side: int | None = None,
    data: bytes | None = None,
    resize_filter: ResizeFilter = "box",
    enlarge: bool = True,
) -> tuple[Image.Image, tuple[int, int]]:
    """`open_image`, and the width and height in px of the original picture."""
    if data is None and path.is_dir():
        raise FileError(path, "a folder, not an image")
    if data is None:
        check_regular(path)
    if data is None and path.suffix.lower() in RAW_SUFFIXES:
        raise FileError(path, why_not_read(b"IIRO"))
    how = (resolution, max_side, resize_filter, enlarge)
    try:
        source = path if data is None else BytesIO(data)
        with pillow_without_remarks():
            try:
                return _decoded(path, source, *how)
            except UnidentifiedImageError as error:
                head = _head(path, data)
                if kind_of(head) == "HEIC" and reads_heif():
                    return _decoded(path, source, *how)
                cause = why_not_read(head) if head else "empty file (0 bytes)"
                reason: Exception = error
                if kind_of(head) not in ("PNG", "JPEG", "TIFF"):
                    raise FileError(path, cause) from error
            except _DECODER_ERRORS as error:
                if isinstance(error, OSError) and error.strerror:
                    raise
                cause, reason = f"broken image ({cause_of(error)})", error
            # The pixels may be intact: damaged metadata is no reason to refuse a picture.
            for less in stripped(path.read_bytes() if data is None else data):
                with contextlib.suppress(*_DECODER_ERRORS):
                    result = _decoded(path, BytesIO(less), *how)
                    logger.warning("%s: damaged metadata ignored", path)
                    return result
            raise FileError(path, cause) from reason
    except FileNotFoundError as error:
        cause = "a broken symbolic link" if path.is_symlink() else "no such file"
        raise FileError(path, cause) from error
    except MemoryError as error:
        raise FileError(path, "too large for the memory of this machine") from error
    except OSError as error:
        raise FileError(path, cause_of(error)) from error


def _decoded(
    path: Path,
    source: Path | BytesIO,
    resolution: int | None,
    max_side: int | None,
    resize_filter: ResizeFilter,
    enlarge: bool,
) -> tuple[Image.Image, tuple[int, int]]:
    """`open_with_size` with Pillow's errors. FileError for a size outside our limits."""
    if isinstance(source, BytesIO):
        source.seek(0)
    with Image.open(source) as image:
        _check_size(path, image)
        size = image.size
        target = resolution or max_side
        if target and image.width * image.height > DRAFT_PIXELS:
            # Decode at twice the target size or more; the box filter does the rest.
            shorter = min(image.size) * (1 if resolution else target / max(image.size))
            least = math.ceil(2 * (target if resolution else shorter))
            image.draft(None, (least, least))
        image.load()
        return standard(path, image, resolution, max_side, resize_filter, enlarge), size


def standard(
    path: Path,
    image: Image.Image,
    resolution: int | None = None,
    max_side: int | None = None,
    resize_filter: ResizeFilter = "box",
    enlarge: bool = True,
) -> Image.Image:
    """`open_image` for a Pillow image of any mode; `path` names it in errors.

    Its Exif record and colour profile are applied as for a file. Raises FileError for a size or for
    values that `load_image` rejects.
    """
    _check_size(path, image)
    # After the pixels: in a PNG this reads them, and broken pixels must not count as a broken record.
    turn = _ORIENTATIONS.get(_orientation(image))
    picture = _to_rgb(_resized(_in_srgb(path, image), resolution, max_side, resize_filter, enlarge))
    return picture if turn is None else picture.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation in the Exif record; 1 (upright) if it is broken."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return found if isinstance(found, int) else 1


def _head(path: Path, data: bytes | None) -> bytes:
    if data is not None:
        return data[:HEAD]
    with open(path, "rb") as stream:
        return stream.read(HEAD)


def _check_size(path: Path, image: Image.Image) -> None:
    size = f"{image.width} × {image.height} px"
    if min(image.size) < MIN_SIDE:
        raise FileError(path, f"too small: {size}, expected a side of at least {MIN_SIDE}")
    if image.width * image.height > MAX_PIXELS:
        raise FileError(path, f"too large: {size}, at most {MAX_PIXELS // 10**6} million pixels")


def _in_srgb(path: Path, image: Image.Image) -> Image.Image:
    """`_eight_bit`, with the colours that the file's profile gives them."""
    profile = image.info.get("icc_profile")
    if profile and image.mode == "CMYK":  # before the plain conversion to RGB, which ignores inks
        converted = to_srgb(path, image, profile)
        return _eight_bit(path, converted)
    return to_srgb(path, _eight_bit(path, image), profile)


def _eight_bit(path: Path, image: Image.Image) -> Image.Image:
    """Any mode → L, RGB, RGBA or another that Pillow converts to RGB without loss of range."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        # Files with 16-bit values are loaded as "I" too; only values above 65535 imply 32 bits.
        top = _top_of(path, float(values.max()))
        return Image.fromarray((values * (255 / top)).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise FileError(path, "floating-point image with values outside [0, 1]")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode == "RGB" and _is_deep(image) and 0 < np.asarray(image).max() < 16:
        # Pillow keeps only the upper eight of the sixteen bits.
        raise FileError(path, "16-bit colour with values below 4096 (12 bits): scale it to 16 or 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _top_of(path: Path, largest: float) -> float:
    """The value of white for a grey picture with more than 8 bits and this largest value."""
    for bits in (10, 12):
        # Photographs use more than a sixteenth of the range: this is how scanners and microscopes store 12
        # bits.
        if 255 < largest < 2**bits:
            logger.warning("%s: values only up to %d of 65535: read as %d bits", path, largest, bits)
            return 2.0**bits - 1
    return 65535.0 if largest <= 65535 else 2.0**31 - 1


def _is_deep(image: Image.Image) -> bool:
    """Whether it is a TIFF with 16 bits per channel."""
    tags = getattr(image, "tag_v2", {})
    return 16 in (tags.get(_BITS_TAG) or ())


def _resized(
    image: Image.Image,
    resolution: int | None,
    max_side: int | None,
    resize_filter: ResizeFilter,
    enlarge: bool,
) -> Image.Image:
    if resolution is not None:
        side = min(image.size)
        if not enlarge:
            resolution = min(resolution, side)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        larger = side >= resolution
        how = RESIZE_FILTERS[resize_filter] if larger else Image.Resampling.BICUBIC
        return image.resize((resolution, resolution), how, box=(left, top, left + side, top + side))
    if max_side is not None and max(image.size) > max_side:
        factor = max_side / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Image.Resampling.BOX)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB in memory, independent of the file; transparency composited over white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
