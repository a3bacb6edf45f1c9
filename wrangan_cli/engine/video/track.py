"""One face followed over the frames of a clip, and its frames smoothed over time."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wrangan_cli.engine.data.ffmpeg import Frame
from wrangan_cli.engine.faces.alignment import Points, ffhq_quad
from wrangan_cli.engine.faces.detection import Face, same_place

GAP = 0.5
"""Seconds that a face may be out of sight; the frames in between are interpolated."""
CUT = 0.15
"""A cut: consecutive frames differ on average by this fraction of the grey range, and this difference exceeds
the previous one by as much."""
_THUMBNAIL = 64
_FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""

Detect = Callable[[Image.Image], list[Face]]
Found = dict[int, list[list[float]] | None]
"""Landmarks (5, 2) of the followed face, by number of the frame; None if it was not seen."""


@dataclass(frozen=True)
class Ending:
    """Why a clip ends before its last frame."""

    frame: int
    cause: str


def follow(
    frames: Iterable[tuple[int, Frame]],
    detect: Detect,
    fps: float,
    every: int,
    face: int,
    known: Mapping[int, list[list[float]] | None],
    note: Callable[[int, list[list[float]] | None], None],
) -> Ending | None:
    """Follow the `face`-th largest face (1: the largest) of the first frame that has that many.

    frames: numbered, uint8 (H, W, 3); every `every`-th is searched, starting with the first. known: what
    an earlier call found. note: called with each searched frame and its landmarks. Returns why
    it ended early: a cut, or a face that is out of sight for longer than GAP seconds. Neither
    counts before the face has been found for the first time.
    """
    last: Face | None = None
    seen, thumbnail, change = 0, None, 0.0
    first: int | None = None
    for number, pixels in frames:
        first = number if first is None else first
        before, thumbnail = thumbnail, _thumbnail(pixels)
        if before is not None:
            change, earlier = float(np.abs(thumbnail - before).mean()) / 255, change
            # A steady pan changes all frames equally: only a change that stands out is a cut.
            if last is not None and min(change, abs(change - earlier)) > CUT:
                return Ending(number, "there is a cut")
        if (number - first) % every:
            continue
        if number in known:
            points = known[number]
            current = None if points is None else Face(np.array(points, dtype=np.float64), 1.0)
        else:
            current = _followed(detect(Image.fromarray(pixels)), last, face)
            note(number, None if current is None else current.landmarks.tolist())
        if current is not None:
            last, seen = current, number
        elif last is not None and number - seen > max(GAP * fps, every):
            return Ending(seen + 1, "the face is out of sight")
    return None


def _followed(faces: list[Face], last: Face | None, face: int) -> Face | None:
    if last is None:
        return faces[face - 1] if len(faces) >= face else None
    near = [other for other in faces if same_place(other, last)]
    return min(near, key=lambda f: float(np.hypot(*(f.landmarks - last.landmarks).T).sum()), default=None)


def _thumbnail(pixels: Frame) -> NDArray[np.float32]:
    """A small grey copy (64, 64), 0…255."""
    small = Image.fromarray(pixels).convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def seen_span(found: Found, every: int, before: int | None) -> list[int]:
    """Numbers of every `every`-th frame from the first to the last one with a face.

    before: only frames before this one (None: to the end).
    """
    numbers = sorted(
        n for n, points in found.items() if points is not None and (before is None or n < before)
    )
    return list(range(numbers[0], numbers[-1] + 1, every)) if numbers else []


def smooth_quads(found: Found, numbers: list[int], seconds: float, fps: float) -> Points:
    """FFHQ's frame of each of `numbers`: (N, 4, 2), px.

    Landmarks of frames without a face are interpolated linearly between their neighbours; then all are
    smoothed over time by a Gaussian of `seconds` (full width at half maximum; 0: not at all).
    """
    seen = [n for n in numbers if found.get(n) is not None]
    points = np.array([found[n] for n in seen], dtype=np.float64).reshape(len(seen), -1)
    filled = np.stack([np.interp(numbers, seen, column) for column in points.T], axis=1)
    spacing = (numbers[1] - numbers[0]) / fps if len(numbers) > 1 else 1.0
    smoothed = gaussian_smoothed(filled, seconds / _FWHM / spacing)
    return np.stack([ffhq_quad(row.reshape(5, 2)) for row in smoothed])


def gaussian_smoothed(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """(N, K), each column smoothed over N by a Gaussian of `sigma` rows, cut off at 3 sigma.

    Beyond the ends the values continue by odd reflection (a rotation by 180° about the last value), so that
    an even motion is unchanged up to the ends.
    """
    reach = math.ceil(3 * sigma)
    if reach == 0 or len(values) < 2:
        return values.copy()
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=1)
