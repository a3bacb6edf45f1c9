"""One face followed over frames: smoothing, gaps, cuts, and which face."""

import math

import numpy as np
import pytest
from PIL import Image

from tests.clips import SquareDetector, picture, steady
from tests.face_cases import LANDMARKS
from wrangan_cli.engine.faces.alignment import ffhq_quad
from wrangan_cli.engine.faces.detection import Face
from wrangan_cli.engine.video.track import Ending, Found, follow, gaussian_smoothed, seen_span, smooth_quads


def followed(
    pictures: list[Image.Image], fps: float = 25, every: int = 1, face: int = 1
) -> tuple[Found, Ending | None]:
    found: Found = {}
    frames = ((number, np.asarray(made)) for number, made in enumerate(pictures))
    ending = follow(frames, SquareDetector().detect, fps, every, face, {}, found.__setitem__)
    return found, ending


def test_smoothing_is_a_gaussian() -> None:
    """Inside, by the sum over all samples; the width is that at half of the height."""
    values = np.random.default_rng(0).normal(size=(60, 3))
    sigma = 2.5
    got = gaussian_smoothed(values, sigma)
    for row in (20, 33):
        weights = [
            math.exp(-((k - row) ** 2) / (2 * sigma**2)) if abs(k - row) <= 8 else 0 for k in range(60)
        ]
        expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        assert got[row] == pytest.approx(expected)
    assert np.array_equal(gaussian_smoothed(values, 0), values)


def test_smoothing_keeps_even_motion_up_to_the_ends() -> None:
    line = np.stack([np.arange(30) * 1.5 + 4, -0.5 * np.arange(30)], axis=1)
    assert gaussian_smoothed(line, 4) == pytest.approx(line)
    assert gaussian_smoothed(line[:2], 4) == pytest.approx(line[:2])
    assert gaussian_smoothed(line[:1], 4) == pytest.approx(line[:1])


@pytest.mark.parametrize(("fps", "every"), [(25, 1), (50, 2), (30, 3)])
def test_half_a_second_is_half_a_second_at_every_rate(fps: float, every: int) -> None:
    """A jolt of one frame is spread over time: at half the width it has half of its height."""
    count = 81
    numbers = list(range(0, count * every, every))
    jolt = numbers[count // 2]
    found: Found = {n: (LANDMARKS + (10.0 if n == jolt else 0.0)).tolist() for n in numbers}
    moved = smooth_quads(found, numbers, 0.5, fps).mean(axis=1)[:, 0] - ffhq_quad(LANDMARKS)[:, 0].mean()
    away = np.abs(np.array(numbers) - jolt) / fps
    # Cut off at 3 standard deviations, where it has 1.1 % of its height.
    assert moved / moved.max() == pytest.approx(0.5 ** ((away / 0.25) ** 2), abs=0.0115)
    assert moved.sum() == pytest.approx(10, rel=1e-6)


def test_gaps_are_interpolated() -> None:
    found: Found = {n: (LANDMARKS + 2.0 * n).tolist() for n in range(10)}
    whole = smooth_quads(found, list(range(10)), 0.2, 25)
    found |= {3: None, 4: None, 7: None}
    assert smooth_quads(found, list(range(10)), 0.2, 25) == pytest.approx(whole)


def test_a_face_is_followed_over_a_short_gap() -> None:
    pictures = steady(12)
    pictures[5] = picture(None)
    found, ending = followed(pictures)
    assert ending is None
    assert [n for n, points in found.items() if points is None] == [5]
    assert seen_span(found, 1, None) == list(range(12))
    centres = [np.mean(points, axis=0)[0] for points in found.values() if points is not None]
    assert np.diff(centres) == pytest.approx([1] * 4 + [2] + [1] * 5, abs=0.01)


def test_every_second_frame() -> None:
    found, _ = followed(steady(9), every=2)
    assert sorted(found) == [0, 2, 4, 6, 8]


def test_a_face_that_is_lost_ends_the_clip() -> None:
    found, ending = followed([*steady(6), *[picture(None)] * 20], fps=10)
    assert ending == Ending(6, "the face is out of sight")
    assert seen_span(found, 1, ending.frame) == list(range(6))


def test_a_face_elsewhere_is_another_face() -> None:
    # By 60 px from one frame to the next: no head moves so.
    pictures = [picture((16, 36)) for _ in range(5)] + [picture((80, 36)) for _ in range(20)]
    found, ending = followed(pictures, fps=10)
    assert ending == Ending(5, "the face is out of sight")
    assert all(points is None for n, points in found.items() if n >= 5)


def test_a_cut_ends_the_clip_though_the_face_is_in_its_place() -> None:
    dark, bright = Image.new("RGB", (96, 80), (0, 20, 20)), Image.new("RGB", (96, 80), (0, 250, 250))
    for made in (dark, bright):
        made.paste((255, 0, 0), (40, 30, 52, 42))
    found, ending = followed([dark] * 5 + [bright] * 5)
    assert ending == Ending(5, "there is a cut")
    assert sorted(found) == list(range(5))
    # Before there is a face, a cut ends nothing.
    found, ending = followed([Image.new("RGB", (96, 80), (0, 250, 250))] * 3 + [dark] * 5)
    assert ending is None
    assert seen_span(found, 1, None) == [3, 4, 5, 6, 7]


def test_what_is_known_is_not_looked_at_again() -> None:
    found, _ = followed(steady(6))

    def never(_: Image.Image) -> list[Face]:
        raise AssertionError("detected again")

    noted: Found = {}
    frames = ((number, np.asarray(made)) for number, made in enumerate(steady(6)))
    assert follow(frames, never, 25, 1, 1, found, noted.__setitem__) is None
    assert noted == {}


def test_the_second_largest_face_is_followed() -> None:
    large, small = Face(LANDMARKS, 1.0), Face(LANDMARKS * 0.3 + 200, 1.0)
    found: Found = {}
    frames = ((number, np.asarray(picture(None))) for number in range(3))
    # Its neighbour is not there in the last frame: the number counts in the first one alone.
    seen = iter([[large, small], [large, small], [small]])
    follow(frames, lambda _: next(seen), 25, 1, 2, {}, found.__setitem__)
    assert all(np.allclose(points, small.landmarks) for points in found.values() if points is not None)
    assert len([points for points in found.values() if points is not None]) == 3
