"""Photographs in and out: any common image file ↔ float32 tensors in [-1, 1]."""

import contextlib
import logging
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError, cause_of
from wrangan_cli.engine.base.files import check_regular, replaced_atomically
from wrangan_cli.engine.data.colour import to_srgb
from wrangan_cli.engine.data.image_kinds import HEAD, RAW_SUFFIXES, kind_of, reads_heif, why_not_read
from wrangan_cli.engine.data.marks import mark_for
from wrangan_cli.engine.data.pillow_limits import pillow_without_remarks
from wrangan_cli.engine.data.sheets import Layout
from wrangan_cli.engine.data.side_information import stripped

logger = logging.getLogger("wrangan")

WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

LARGEST_SIDES = {".png": 2**31 - 1, ".jpg": 65500, ".jpeg": 65500, ".webp": 16383}
"""Largest side in px of the formats that are written."""

RESIZE_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Filters that reduce pictures, by name; each is scaled with the reduction, so none aliases."""

MIN_SIDE = 16
"""Smallest side of a photograph in px."""

MAX_PIXELS = 400_000_000
"""Maximum number of pixels of a photograph (20000 × 20000): about 3 GB while decoded in full."""

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
    resize_filter: str = "box",
    enlarge: bool = True,
) -> Image.Image:
    """`load_image` as an 8-bit RGB Pillow image; `max_side` reduces it without cropping.

    max_side: a longer side is reduced to it by a box filter. data: the
    file's bytes if they are not at `path` (in a zip); `path` then only names them.
    resize_filter: one of RESIZE_FILTERS, for pictures larger than `resolution`.
    """
    return open_with_size(path, resolution, max_side, data, resize_filter, enlarge)[0]


def open_with_size(
    path: Path,
    resolution: int | None = None,
    max_side: int | None = None,
    data: bytes | None = None,
    resize_filter: str = "box",
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
                said: Exception = error
                if kind_of(head) not in ("PNG", "JPEG", "TIFF"):
                    raise FileError(path, cause) from error
            except _DECODER_ERRORS as error:
                if isinstance(error, OSError) and error.strerror:
                    raise
                cause, said = f"broken image ({cause_of(error)})", error
            # The pixels may be intact: damaged metadata is no reason to refuse a picture.
            for less in stripped(path.read_bytes() if data is None else data):
                with contextlib.suppress(*_DECODER_ERRORS):
                    result = _decoded(path, BytesIO(less), *how)
                    logger.warning("%s: metadata beside the pixels is damaged and ignored", path)
                    return result
            raise FileError(path, cause) from said
    except FileNotFoundError as error:
        cause = "a dead link" if path.is_symlink() else "no such file"
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
    resize_filter: str,
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
    resize_filter: str = "box",
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


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit RGB Pillow image → float32 (3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous().div_(127.5).sub_(1)


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] → an 8-bit RGB Pillow image; values outside are clipped."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy())


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] → 0…255, uint8 of the same shape on the CPU, rounded, values outside clipped."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def save_image(path: Path, image: Tensor, edited: bool = False) -> None:
    """Write (3, H, W) in [-1, 1] as 8-bit .png, .jpg (quality 95) or .webp (quality 95), atomically.

    edited: the file says of itself that it was edited, and by what (`marks.py`).

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
        raise WranganError(f"{path}: not written, an image has values that are not finite")
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
            f"{path}: would have {size[0]} × {size[1]} px, the limit is {most} per side and "
            f"{MAX_PIXELS // 10**6} million in all: give fewer --steps or a smaller --side"
        )


def check_side(side: int | None) -> None:
    """UsageError for a side in px to which images cannot be reduced; None is allowed."""
    if side is not None and side < MIN_SIDE:
        raise UsageError(f"side {side}: expected {MIN_SIDE} px or more")


def written_format(path: Path) -> str:
    """Pillow's name of the format of a suffix; UsageError for formats that we do not write."""
    try:
        return WRITTEN_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITTEN_FORMATS)
        raise UsageError(f"{path}: images can be written as {known}, not {path.suffix!r}") from None


def image_grid(
    images: Sequence[Tensor] | Tensor, columns: int | None = None, gap: int = 0, background: float = 1.0
) -> Tensor:
    """(B, 3, H, W), or B images (3, H, W) → one image, row by row:
    (3, rows·(H + gap) - gap, columns·(W + gap) - gap).

    columns: by default the square root of B, rounded up. Gaps and empty places have the
    value `background` (1 is white).
    """
    count, (channels, height, width) = len(images), images[0].shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    size = (channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    grid = torch.full(size, background, dtype=torch.float32)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[:, top : top + height, left : left + width] = image.detach().float().cpu()
    return grid


def labelled_grid(
    rows: Sequence[Sequence[Tensor] | Tensor],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    gap: int = 2,
    font_size: int = 12,
) -> Tensor:
    """A figure: rows of images (3, H, W) of equal size, with titles at the left and on top.

    rows: each a sequence of images or a tensor (N, 3, H, W); shorter rows are filled with white.
    Returns (3, height, width) in [-1, 1].
    """
    if not rows or not len(rows[0]):
        raise ValueError("no images for a figure")
    height, width = rows[0][0].shape[1:]
    columns = max(len(row) for row in rows)
    layout = Layout(
        len(rows), columns, (width, height), row_titles, column_titles, gap=gap, font_size=font_size
    )
    sheet = layout.blank()
    for place, row in enumerate(rows):
        for column, image in enumerate(row):
            layout.paste(sheet, place, column, to_pillow(image))
    return to_tensor(sheet)


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
        # Files with 16-bit values are loaded as "I" too; only values above 65535 mean 32 bits.
        top = _top_of(path, float(values.max()))
        return Image.fromarray((values * (255 / top)).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise FileError(path, "floating-point image with values outside 0…1")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode == "RGB" and _is_deep(image) and 0 < np.asarray(image).max() < 16:
        # Pillow keeps the upper eight of the sixteen bits.
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
            logger.warning("%s: values only up to %d of 65535, treated as %d bits", path, largest, bits)
            return 2.0**bits - 1
    return 65535.0 if largest <= 65535 else 2.0**31 - 1


def _is_deep(image: Image.Image) -> bool:
    """Whether it is a TIFF with 16 bits per channel."""
    tags = getattr(image, "tag_v2", {})
    return 16 in (tags.get(_BITS_TAG) or ())


def _resized(
    image: Image.Image, resolution: int | None, max_side: int | None, resize_filter: str, enlarge: bool
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
