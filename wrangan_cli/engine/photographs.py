"""Photographs as inversion takes them and as its results are measured: each at its own side."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from wrangan_cli.engine.images import load_image


def load_photograph(path: Path, most: int, size: int = 0) -> Tensor:
    """The central square of a photograph: (3, S, S) in [-1, 1].

    S is `size`, or the photograph's own side where that is 0, and at most `most`, the model's. Raises
    FileError as `load_image` does.
    """
    return load_image(path, min(size or most, most), enlarge=size > 0)


def by_side(images: Sequence[Tensor]) -> list[list[int]]:
    """The places of the square images (3, S, S) of each side, since only those of one side make a batch."""
    sides: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        sides.setdefault(image.shape[-1], []).append(index)
    return list(sides.values())
