"""The frame of a face as FFHQ has it: cutting out, putting back, and the file between the two."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.face_cases import LANDMARKS, smooth_photo
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.faces import alignment
from wrangan_cli.engine.faces.alignment import crop_quad, ffhq_quad, load_transform, paste_back, quad_side


def rotated(points: np.ndarray, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return (points - centre) @ matrix.T + centre


def test_frame_of_an_upright_face() -> None:
    quad = ffhq_quad(LANDMARKS)
    # max(2.0 · 40, 1.8 · 45) = 81 is half of the side, before the correction for MTCNN.
    assert quad_side(quad) == pytest.approx(2 * 81 * alignment.FRAME_SCALE)
    middle = [100, 80 + 45 * alignment.CENTRE_TOWARDS_MOUTH]
    assert quad.mean(axis=0) == pytest.approx(middle)
    top_left, bottom_left, bottom_right, top_right = quad
    assert top_left[0] == pytest.approx(bottom_left[0])
    assert top_left[1] == pytest.approx(top_right[1])
    assert bottom_right[0] > bottom_left[0]
    assert bottom_left[1] > top_left[1]


def test_frame_turns_moves_and_grows_with_the_face() -> None:
    expected = rotated(ffhq_quad(LANDMARKS), 30, (10, 20)) * 3 + 5
    assert ffhq_quad(rotated(LANDMARKS, 30, (10, 20)) * 3 + 5) == pytest.approx(expected)


def test_crop_of_whole_pixels_is_exact() -> None:
    array = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    quad = np.array([[10.0, 20], [10, 52], [42, 52], [42, 20]])
    assert np.array_equal(np.asarray(crop_quad(Image.fromarray(array), quad, 32)), array[20:52, 10:42])


def test_crop_reduces_by_areas() -> None:
    array = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    quad = np.array([[0.0, 0], [0, 256], [256, 256], [256, 0]])
    for size in (16, 64):
        k = 256 // size
        expected = array.reshape(size, k, size, k, 3).mean(axis=(1, 3))
        assert np.abs(np.asarray(crop_quad(Image.fromarray(array), quad, size)) - expected).max() < 1.6


def test_crop_of_a_turned_frame_samples_the_right_places() -> None:
    # Colour is a linear function of the position, so that every sample is known.
    y, x = np.mgrid[0:200, 0:240] + 0.5
    photo = Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype(np.uint8))
    quad = rotated(np.array([[70.0, 60], [70, 140], [150, 140], [150, 60]]), 25, (110, 100))
    got = np.asarray(crop_quad(photo, quad, 40), dtype=float)
    step = (np.arange(40) + 0.5) / 40
    s, t = np.meshgrid(step, step)
    expected = quad[0] + s[..., None] * (quad[3] - quad[0]) + t[..., None] * (quad[1] - quad[0])
    assert np.abs(got[..., :2] - expected).max() < 1.5


def test_crop_beyond_the_photograph_is_filled() -> None:
    photo = Image.new("RGB", (50, 50), (200, 100, 50))
    quad = np.array([[-60.0, -60], [-60, 40], [40, 40], [40, -60]])
    assert np.asarray(crop_quad(photo, quad, 32)).reshape(-1, 3) == pytest.approx(
        np.tile([200, 100, 50], (1024, 1)), abs=1
    )


@pytest.mark.parametrize("keep_detail", [False, True])
def test_unedited_face_pastes_back_to_the_photograph(tmp_path: Path, keep_detail: bool) -> None:
    photo = open_image(smooth_photo(tmp_path / "a.png"))
    quad = ffhq_quad(rotated(LANDMARKS, 12, (110, 100)))
    pasted = paste_back(photo, crop_quad(photo, quad, 256), quad, keep_detail=keep_detail)
    difference = np.abs(np.asarray(pasted, dtype=float) - np.asarray(photo, dtype=float))
    assert difference.max() <= (1 if keep_detail else 4)
    assert difference.mean() < 0.5


def test_paste_back_changes_the_frame_alone_and_fades(tmp_path: Path) -> None:
    photo = open_image(smooth_photo(tmp_path / "a.png"))
    quad = ffhq_quad(rotated(LANDMARKS, 20, (110, 100)))
    white = Image.new("RGB", (64, 64), "white")
    before, after = np.asarray(photo, dtype=float), np.asarray(paste_back(photo, white, quad), dtype=float)
    y, x = np.mgrid[0:200, 0:240] + 0.5
    # Depth inside of the turned square, from its own axes.
    axis = (quad[3] - quad[0]) / quad_side(quad)
    offset = np.stack([x, y], axis=2) - quad.mean(axis=0)
    along, across = offset @ axis, offset @ np.array([-axis[1], axis[0]])
    depth = 0.5 - np.maximum(np.abs(along), np.abs(across)) / quad_side(quad)
    assert np.array_equal(after[depth < 0], before[depth < 0])
    assert (after[depth > 0.1] == 255).all()
    share = 3 * 0.5**2 - 2 * 0.5**3
    edge = np.abs(depth - 0.05) < 0.002
    assert np.abs(after[edge] - (before[edge] + share * (255 - before[edge]))).max() < 12


def test_transform_files_are_checked(tmp_path: Path) -> None:
    good = alignment.Transform(
        quad=ffhq_quad(LANDMARKS),
        photo="a.jpg",
        photo_sha256="0" * 64,
        photo_size=(3, 4),
        size=256,
        confidence=1.0,
    )
    path = tmp_path / "a.align.json"
    alignment.save_transform(path, good)
    read = dataclasses.asdict(load_transform(path)) | {"quad": None}
    assert read == dataclasses.asdict(good) | {"quad": None}
    record = json.loads(path.read_text())
    broken: list[Any] = [{}, [], record | {"quad": [[0, 0]] * 4}, record | {"photo_size": 3}]
    broken += [{k: v for k, v in record.items() if k != "size"}]
    for value in broken:
        path.write_text(json.dumps(value))
        with pytest.raises(FileError, match="alignment"):
            load_transform(path)
    path.write_text("{")
    with pytest.raises(FileError, match="JSON"):
        load_transform(path)
