"""Images in memory: float32 tensors in [-1, 1] ↔ 8-bit Pillow images, and grids of them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.data.sheets import Layout

MIN_SIDE = 16
"""Smallest side of a photograph in px."""

MAX_PIXELS = 400_000_000
"""Maximum number of pixels of a photograph (20000 × 20000): decoding it takes about 3 GB."""


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


def check_side(side: int | None) -> None:
    """UsageError for a side in px to which images cannot be reduced; None is allowed."""
    if side is not None and side < MIN_SIDE:
        raise UsageError(f"side {side}: expected {MIN_SIDE} px or more")


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
