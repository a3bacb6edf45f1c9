"""Photographs for inversion and for measuring its results, each at its own side."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.names import same_name
from wrangan_cli.engine.data.image_reading import load_image

logger = logging.getLogger("wrangan")


def load_photograph(path: Path, most: int, size: int = 0) -> Tensor:
    """The central square of a photograph: (3, S, S) in [-1, 1].

    S is `size`, or the side of the photograph if that is 0, and at most `most`, the model's. Raises
    FileError as `load_image` does.
    """
    return load_image(path, min(size or most, most), enlarge=size > 0)


def by_side(images: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the square images (3, S, S), grouped by side, since a batch needs a single side."""
    sides: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        sides.setdefault(image.shape[-1], []).append(index)
    return list(sides.values())


def photograph_of(code: Path, info: Mapping[str, Any], photos: Iterable[Path]) -> Path | None:
    """The one of `photos` from which a code was made, or None: by the name in its record `info`, else by
    the stem of the code's file.
    """
    by_name = {same_name(photo.name): photo for photo in photos}
    source = info.get("source")
    if isinstance(source, str) and same_name(source) in by_name:
        return by_name[same_name(source)]
    by_stem = {same_name(photo.stem): photo for photo in reversed(by_name.values())}
    return by_stem.get(same_name(code.stem))


def check_source(photo: Path, code: Path, info: Mapping[str, Any]) -> None:
    """Warn in the log `wrangan` if the record `info` says that a code was made from another file than
    `photo`."""
    if info.get("source_sha256") not in (None, sha256(photo)):
        logger.warning("%s: not the file from which %s was made", photo, code)
