"""Embedded ICC profiles: every photograph is converted to sRGB, on which the networks were trained."""

import logging
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wrangan_cli.engine.base.errors import cause_of

logger = logging.getLogger("wrangan")

SAME = 2
"""A profile that changes no colour by more than this (of 255) counts as sRGB."""

_SPACES = {"RGB": ("L", "RGB", "RGBA"), "GRAY": ("L", "RGBA"), "CMYK": ("CMYK",)}
"""Colour space of a profile → Pillow modes that it can describe. Grey pictures often have an RGB
profile; grey with alpha is loaded as RGBA."""


def to_srgb(path: Path, image: Image.Image, profile: bytes | None) -> Image.Image:
    """An 8-bit L, RGB, RGBA or CMYK picture, described by an ICC `profile`, → sRGB.

    Relative colorimetric with black-point compensation; alpha is kept. The picture is unchanged without a
    profile, and with one that is sRGB within `SAME`. A profile that is broken, or belongs to
    another kind of picture, is ignored, with a warning in the log "wrangan".
    """
    if not profile:
        return image
    try:
        space, transform = _transform(profile, image.mode)
    except Exception as error:  # noqa: BLE001 - littlecms and Pillow raise whatever they like
        logger.warning("%s: broken colour profile (%s), taken as sRGB", path, cause_of(error))
        return image
    if image.mode not in _SPACES.get(space, ()):
        logger.warning("%s: its colour profile is for %s, not %s; taken as sRGB", path, space, image.mode)
        return image
    if transform is None:
        return image
    if space == "GRAY" and image.mode == "RGBA":
        converted = transform.apply(image.getchannel("R"))
        converted.putalpha(image.getchannel("A"))
        return converted
    return transform.apply(image.convert("RGB") if space == "RGB" and image.mode == "L" else image)


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[str, Any]:
    """The profile's colour space and the transform from it to sRGB (None: no transform needed)."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if mode not in _SPACES.get(space, ()):
        return space, None
    given = {("RGB", "L"): "RGB", ("GRAY", "RGBA"): "L"}.get((space, mode), mode)
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        given,
        "RGBA" if given == "RGBA" else "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    probe = _probe(given)
    if probe is not None:
        before = np.asarray(probe.convert("RGB"), dtype=np.int16)
        after = np.asarray(transform.apply(probe).convert("RGB"), dtype=np.int16)
        if np.abs(after - before).max() <= SAME:
            return space, None
    return space, transform


def _probe(mode: str) -> Image.Image | None:
    """Colours over the whole gamut, as a picture of `mode`; None for CMYK, which is never sRGB."""
    if mode == "CMYK":
        return None
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(cube).convert(mode)
