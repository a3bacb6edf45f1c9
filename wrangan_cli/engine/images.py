"""Photographs in and out: any common image file ↔ float32 tensors in [-1, 1]."""

import contextlib
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from wrangan_cli.engine.colour import to_srgb
from wrangan_cli.engine.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.files import replaced_atomically

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif"}
)
"""What counts as an image in a folder; a file that is named outright may have any suffix."""

WRITTEN_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

RESIZE_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""How pictures are reduced, by name; each is widened to the scale, so none aliases."""

MIN_SIDE = 16
"""Smallest side of a photograph in px."""

MAX_PIXELS = 400_000_000
"""Largest photograph in px (20000 × 20000): about 3 GB while it is decoded in full."""

DRAFT_PIXELS = 50_000_000
"""JPEG files above this are decoded at 1/2, 1/4 or 1/8 of their size where that is enough."""

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on broken files, by experience.
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

    With `resolution` R: the central square, brought to (3, R, R) by a box (area) filter if
    it is larger and by bicubic interpolation if it is smaller, or left at its own side there
    without `enlarge`. Grey, palette, 16-bit
    (scaled, not clipped) and CMYK pictures become RGB, transparent ones are laid over
    white, EXIF orientation is applied, of an animation the first frame is taken. An embedded
    colour profile (Adobe RGB, Display P3 …) is converted to sRGB (engine/colour.py).

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

    max_side: the longer side is brought to it by a box filter if it is longer. data: the
    file's bytes where they do not stand at `path` (in a zip); `path` then only names them.
    resize_filter: of RESIZE_FILTERS, for pictures larger than `resolution`.
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
    """`open_image`, and width and height in px of the picture in the file."""
    if data is None and path.is_dir():
        raise FileError(path, "a folder, not an image")
    try:
        source = path if data is None else BytesIO(data)
        with pillow_without_remarks(), Image.open(source) as image:
            _check_size(path, image)
            size = image.size
            turn = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
            target = resolution or max_side
            if target and image.width * image.height > DRAFT_PIXELS:
                # Decoding stays at twice the wanted size or more: the box filter does the rest.
                shorter = min(image.size) * (1 if resolution else target / max(image.size))
                least = math.ceil(2 * (target if resolution else shorter))
                image.draft(None, (least, least))
            image.load()
            picture = _to_rgb(_resized(_in_srgb(path, image), resolution, max_side, resize_filter, enlarge))
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(path, "no such file") from error
    except UnidentifiedImageError as error:
        length = path.stat().st_size if data is None else len(data)
        cause = "empty file (0 bytes)" if length == 0 else "not an image of a known format"
        raise FileError(path, cause) from error
    except MemoryError as error:
        raise FileError(path, "too large for the memory of this machine") from error
    except _DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise FileError(path, error.strerror) from error
        raise FileError(path, f"broken image ({_one_line(error)})") from error
    return (picture if turn is None else picture.transpose(turn)), size


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


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The image files named by `paths`, each once: files as they are, folders as their images.

    Folders: sorted by name, not recursive, without hidden files, by IMAGE_SUFFIXES.
    Raises FileError for a path that does not exist and a folder without images.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p
                for p in path.iterdir()
                if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
            )
            if not inside:
                raise FileError(path, "no images in it")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise FileError(path, "no such file or folder")
    return list(found)


def save_image(path: Path, image: Tensor) -> None:
    """Write (3, H, W) in [-1, 1] as 8-bit .png, .jpg (quality 95) or .webp (quality 95), atomically.

    Raises UsageError for another suffix, WranganError for values that are not finite,
    FileError where the file cannot be written.
    """
    written_format(path)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image (3, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise WranganError(f"{path}: not written, the image has values that are not finite")
    save_pillow(path, to_pillow(image))


def save_pillow(path: Path, image: Image.Image) -> None:
    """`save_image` for a Pillow image."""
    kind = written_format(path)
    try:
        with replaced_atomically(path) as temporary:
            image.save(temporary, format=kind, **({} if kind == "PNG" else {"quality": 95}))
    except OSError as error:
        raise FileError(path, f"not written ({error.strerror or error})") from error


def written_format(path: Path) -> str:
    """Pillow's name of the format that a suffix asks for; UsageError if we do not write it."""
    try:
        return WRITTEN_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(WRITTEN_FORMATS)
        raise UsageError(f"{path}: images are written as {known}, not {path.suffix!r}") from None


def image_grid(images: Tensor, columns: int | None = None, gap: int = 0, background: float = 1.0) -> Tensor:
    """(B, 3, H, W) → one image (3, rows·(H + gap) - gap, columns·(W + gap) - gap), row by row.

    columns: the square root of B, rounded up, if not given. Gaps and empty places have the
    value `background` (1 is white).
    """
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    size = (channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    grid = torch.full(size, background, dtype=torch.float32)
    for index, image in enumerate(images.detach().float().cpu()):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        grid[:, top : top + height, left : left + width] = image
    return grid


def labelled_grid(
    rows: Sequence[Sequence[Tensor] | Tensor],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    gap: int = 2,
    font_size: int = 12,
) -> Tensor:
    """A figure: rows of images (3, H, W) of one size, with titles at the left and on top.

    rows: each a sequence of images or a tensor (N, 3, H, W); shorter rows leave white.
    Returns (3, height, width) in [-1, 1].
    """
    if not rows or not len(rows[0]):
        raise ValueError("no images for a figure")
    height, width = rows[0][0].shape[1:]
    columns = max(len(row) for row in rows)
    font = ImageFont.load_default(font_size)
    left = max((math.ceil(font.getlength(title)) + 2 * gap + 4 for title in row_titles), default=0)
    top = font_size + 6 if column_titles else 0
    # A column is as wide as its title needs.
    cell = max([width, *(math.ceil(font.getlength(title)) + 4 for title in column_titles)])
    canvas = Image.new(
        "RGB", (left + columns * (cell + gap) - gap, top + len(rows) * (height + gap) - gap), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(column_titles):
        draw.text((left + index * (cell + gap) + cell / 2, top / 2), title, "black", font, anchor="mm")
    for index, row in enumerate(rows):
        y = top + index * (height + gap)
        if index < len(row_titles):
            draw.text((left - gap - 4, y + height / 2), row_titles[index], "black", font, anchor="rm")
        for place, image in enumerate(row):
            canvas.paste(to_pillow(image), (left + place * (cell + gap) + (cell - width) // 2, y))
    return to_tensor(canvas)


_quiet_lock = threading.Lock()
_quiet_blocks = contextlib.ExitStack()
_quiet_depth = 0


@contextlib.contextmanager
def pillow_without_remarks() -> Iterator[None]:
    """Our own size limit instead of Pillow's, and no warnings about odd metadata.

    Blocks may overlap in several threads: what the first one changed the last one restores.
    """
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            _silence_libtiff()
            _quiet_blocks.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
            _quiet_blocks.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_blocks.close()


@cache
def _silence_libtiff() -> None:
    """libtiff prints lines of its own about a broken file, before Pillow raises; not any more.

    The library is the one that Pillow has loaded. Where it cannot be reached it goes on printing.
    """
    import ctypes

    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _check_size(path: Path, image: Image.Image) -> None:
    size = f"{image.width} × {image.height} px"
    if min(image.size) < MIN_SIDE:
        raise FileError(path, f"too small: {size}, at least {MIN_SIDE} a side")
    if image.width * image.height > MAX_PIXELS:
        raise FileError(path, f"too large: {size}, at most {MAX_PIXELS // 10**6} million pixels")


def _in_srgb(path: Path, image: Image.Image) -> Image.Image:
    """`_eight_bit`, with the colours that the file's profile gives them."""
    profile = image.info.get("icc_profile")
    if profile and image.mode == "CMYK":  # before the plain way to RGB, which knows no inks
        converted = to_srgb(path, image, profile)
        return _eight_bit(path, converted)
    return to_srgb(path, _eight_bit(path, image), profile)


def _eight_bit(path: Path, image: Image.Image) -> Image.Image:
    """Any mode → L, RGB, RGBA or another that Pillow converts to RGB without loss of range."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        # Files with 16-bit values come as "I" too; only beyond 65535 it must be 32 bits.
        top = 65535.0 if values.max() <= 65535 else 2.0**31 - 1
        return Image.fromarray((values * (255 / top)).round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise FileError(path, "floating-point image with values outside 0…1")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


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
    """RGB in memory, independent of the file; transparency laid over white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
