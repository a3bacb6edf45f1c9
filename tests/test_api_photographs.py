"""The Python interface where photographs come in: their forms, inversion, faces, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wrangan
from tests.api_cases import FEW, _nothing_kept
from tests.code_files import make_code
from tests.conftest import write_photo
from tests.face_cases import LANDMARKS, smooth_photo
from wrangan_cli.api import faces, pictures
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.faces.alignment import crop_quad, ffhq_quad, quad_side
from wrangan_cli.engine.faces.detection import Face as Found
from wrangan_cli.engine.inversion.inverter import Inverter as Engine
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.metrics.pairs import compare_pairs, load_metrics, pair_by_stem
from wrangan_cli.engine.metrics.registry import pair_metrics
from wrangan_cli.engine.models.folder import Model

__all__ = ["_nothing_kept"]  # a fixture


# Pictures


@pytest.mark.parametrize("shape", [(40, 40), (60, 40), (16, 30)])
def test_every_form_of_a_picture_is_the_same_picture(shape: tuple[int, int], tmp_path: Path) -> None:
    path = smooth_photo(tmp_path / "a.png", *shape)
    opened, array = Image.open(path), np.asarray(Image.open(path))
    expected = load_image(path, min(*shape, 32))
    for form in (path, str(path), opened, array):
        torch.testing.assert_close(pictures.photograph(form, 32), expected, rtol=0, atol=0)
    small = load_image(path, 16)
    torch.testing.assert_close(pictures.photograph(small, 32), small, rtol=0, atol=0)


def test_a_tensor_is_reduced_by_area() -> None:
    image = torch.rand(3, 32, 32, dtype=torch.float64) * 2 - 1
    expected = image.reshape(3, 16, 2, 16, 2).mean(dim=(2, 4)).float()
    torch.testing.assert_close(pictures.photograph(image, 16), expected)
    torch.testing.assert_close(pictures.photograph(image, 64, size=16), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
def test_pillow_images_of_all_modes_are_as_their_files(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)
    picture = (
        Image.fromarray(values)
        if mode == "I;16"
        else Image.open(write_photo(tmp_path / "b.png", 24)).convert(mode)
    )
    if mode == "RGBA":
        picture.putalpha(100)
    picture.save(path)
    torch.testing.assert_close(pictures.photograph(picture, 16), load_image(path, 16), rtol=0, atol=0)


def test_an_opened_photograph_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.open(smooth_photo(tmp_path / "b.png", 40, 30)).save(path, exif=exif)
    assert pictures.whole(Image.open(path)).size == (30, 40)
    torch.testing.assert_close(
        pictures.photograph(Image.open(path), 16), load_image(path, 16), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("picture", "cause"),
    [
        (np.zeros((20, 20), np.uint8), "an array (20, 20) of uint8: expected (H, W, 3)"),
        (np.zeros((20, 20, 3), np.float32), "of float32: expected (H, W, 3) of uint8"),
        (torch.zeros(3, 20, 30), "a tensor (3, 20, 30) of float32: expected (3, S, S)"),
        (torch.zeros(3, 20, 20, dtype=torch.uint8), "of uint8: expected (3, S, S) of floating point"),
        (torch.full((3, 20, 20), 255.0), "values in [255, 255]: expected [-1, 1]"),
        (torch.full((3, 20, 20), torch.nan), "not finite"),
        (torch.zeros(3, 8, 8), "at least 16 px"),
        (np.zeros((8, 20, 3), np.uint8), "image: too small: 20 × 8 px"),
        (7, "int: expected a path, a Pillow image"),
        (Path("no-such.png"), "no-such.png: no such file"),
    ],
)
def test_what_is_no_picture(picture: Any, cause: str, tiny_model: Model) -> None:
    with pytest.raises(WranganError) as raised:
        wrangan.invert(picture, tiny_model, **FEW)
    assert cause in str(raised.value)
    assert "\n" not in str(raised.value)


# Inversion


def test_invert_is_the_engines(tiny_model: Model, photos: Path) -> None:
    image = load_image(photos / "a.png", 16)
    (expected,) = Engine.load(tiny_model, inversion_settings(**FEW)).invert(image[None])
    assert isinstance(expected, wrangan.Code)
    seen: list[tuple[int, int]] = []
    code = wrangan.invert(photos / "a.png", tiny_model, **FEW, progress=lambda *at: seen.append(at))
    torch.testing.assert_close(code.w, expected.w, rtol=0, atol=0)
    assert set(code.epsilon) == set(expected.epsilon)
    assert code.info["source"] == "a.png"
    assert code.info["seconds"] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (3, 3)
    in_memory = wrangan.invert(image, tiny_model, inversion_settings(**FEW))
    torch.testing.assert_close(in_memory.w, expected.w, rtol=0, atol=0)  # type: ignore[union-attr]
    assert "source" not in in_memory.info  # type: ignore[union-attr]


def test_several_pictures_give_a_list(tiny_model: Model, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    singly = [wrangan.invert(path, tiny_model, **FEW) for path in paths]
    stack = torch.stack([load_image(path, 16) for path in paths])
    for several in (paths, tuple(map(str, paths)), stack, [Image.open(path) for path in paths]):
        codes = wrangan.invert(several, tiny_model, **FEW, batch=2)
        assert isinstance(codes, list)
        for code, expected in zip(codes, singly, strict=True):
            torch.testing.assert_close(code.w, expected.w, atol=1e-5, rtol=1e-5)
    assert wrangan.invert([], tiny_model, **FEW) == []
    assert isinstance(wrangan.invert([paths[0]], tiny_model, **FEW), list)


def test_each_goes_on_after_a_broken_file_and_keeps_the_order(tiny_model: Model, photos: Path) -> None:
    (photos / "b.jpg").write_bytes(b"no picture")
    inverter = wrangan.Inverter(tiny_model, **FEW)
    results = list(inverter.each(sorted(photos.iterdir())))
    assert [type(result) for result in results] == [wrangan.Code, FileError, wrangan.Code]
    assert [results[0].info["source"], results[2].info["source"]] == ["a.png", "c.webp"]  # type: ignore[union-attr]
    with pytest.raises(FileError, match=r"b\.jpg"):
        inverter.invert(sorted(photos.iterdir()))
    assert inverter.model is tiny_model
    assert inverter.settings.steps == 3


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"step": 3}, "setting 'step' of an inversion: did you mean steps?"),
        ({"steps": -1}, "steps"),
        ({"method": "magic"}, "magic"),
        ({"batch": 0}, "batch 0: expected 1 or more"),
        ({"method": "pti", "pti_pivot": "encoder", "init": "mean"}, "pti_pivot encoder"),
    ],
)
def test_wrong_options(options: dict[str, Any], cause: str, tiny_model: Model) -> None:
    with pytest.raises(UsageError) as raised:
        wrangan.Inverter(tiny_model, **{"perceptual_weight": 0.0, **options})
    assert cause in str(raised.value)


# Faces


class Detector:
    """Finds one face, upright around (100, 90)."""

    made: list[float] = []  # noqa: RUF012 - reset by the tests that read it

    def __init__(self, min_confidence: float) -> None:
        self.made.append(min_confidence)

    def detect(self, _: Image.Image) -> list[Found]:
        return [Found(LANDMARKS, 0.99), Found(LANDMARKS * 0.5, 0.95)]


def test_align_and_paste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Model) -> None:
    monkeypatch.setattr(faces, "FaceDetector", Detector)
    Detector.made.clear()
    path = smooth_photo(tmp_path / "a.png")
    found = wrangan.align(path, size=64)
    assert [face.confidence for face in found] == [0.99, 0.95]
    photo, quad = Image.open(path), ffhq_quad(LANDMARKS)
    assert found[0].image.tobytes() == crop_quad(photo, quad, 64).tobytes()
    (face,) = wrangan.align(np.asarray(photo), max_faces=1)
    assert face.image.size == (256, 256)  # the frame has 160 px: its own side, at least 256
    assert quad_side(quad) < 256
    assert Detector.made == [0.9]  # loaded once
    # The face as it was cut out changes next to nothing; a black one changes the middle, and no corner.
    same = np.asarray(wrangan.paste(face.image, face), dtype=int)
    assert np.abs(same - np.asarray(photo, dtype=int)).max() <= 8
    black = np.asarray(wrangan.paste(-torch.ones(3, 64, 64), face))
    assert (black[90, 100] == 0).all()
    assert (black[0, -1] == np.asarray(photo)[0, -1]).all()
    # A face is a picture for `invert`.
    code = wrangan.invert(face, tiny_model, **FEW)
    expected = wrangan.invert(face.image, tiny_model, **FEW)
    torch.testing.assert_close(code.w, expected.w, rtol=0, atol=0)


def test_align_and_paste_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces, "FaceDetector", Detector)
    path = smooth_photo(tmp_path / "a.png")
    for wrong in ({"size": 8}, {"max_faces": 0}, {"min_confidence": 2.0}):
        with pytest.raises(UsageError, match="expected"):
            wrangan.align(path, **wrong)
    face = wrangan.align(path)[0]
    with pytest.raises(UsageError, match="feather"):
        wrangan.paste(face.image, face, feather=0.7)
    with pytest.raises(FileError, match="edited face: not an aligned face: 240 × 200 px"):
        wrangan.paste(Image.open(path), face)
    monkeypatch.setattr(Detector, "detect", lambda *_: [])
    assert wrangan.align(path) == []


# Evaluation


def test_evaluate_is_the_commands(tiny_model: Model, photos: Path, tmp_path: Path) -> None:
    paths = [photos / "a.png", photos / "b.jpg", photos / "c.webp"]
    codes = wrangan.invert(paths, tiny_model, **FEW)
    for path, code in zip(paths, codes, strict=True):
        wrangan.save_code(code, tmp_path / "codes" / f"{path.stem}.st")
    seen: list[tuple[int, int]] = []
    scores = wrangan.evaluate(
        codes, paths, ["mse", "psnr", "seconds"], tiny_model, batch=2, progress=lambda *at: seen.append(at)
    )
    assert list(scores) == ["mse", "psnr", "seconds"]
    assert seen == [(2, 3), (3, 3)]
    # By hand: the photograph at 16 px against the code's image.
    drawn = wrangan.render(codes, tiny_model, output="tensor").double().numpy()
    photographs = np.stack([load_image(path, 16).double().numpy() for path in paths])
    by_hand = ((drawn - photographs) ** 2).mean(axis=(1, 2, 3))
    assert scores["mse"]["values"] == pytest.approx(by_hand, rel=1e-4)
    assert scores["mse"]["mean"] == pytest.approx(by_hand.mean(), rel=1e-4)
    low, high = scores["mse"]["interval"] or (0, 0)
    assert by_hand.min() <= low <= scores["mse"]["mean"] <= high <= by_hand.max() + 1e-9
    assert scores["psnr"]["higher_is_better"]
    assert not scores["mse"]["higher_is_better"]
    assert scores["seconds"]["values"] == [code.info["seconds"] for code in codes]
    assert scores["seconds"]["interval"] is None
    # And as the files are compared.
    pairs, _ = pair_by_stem(photos, tmp_path / "codes")
    measures, _ = load_metrics(pair_metrics(["mse"]), tiny_model.device)
    of_files = [row.values["mse"] for row in compare_pairs(tiny_model, pairs, measures)]
    assert scores["mse"]["values"] == pytest.approx(of_files, rel=1e-3)  # ε is stored in float16


def test_evaluate_takes_one_pair_in_memory(tiny_model: Model, photos: Path) -> None:
    code = make_code(tiny_model)
    perfect = wrangan.render(code, tiny_model, output="tensor")
    score = wrangan.evaluate(code, perfect, ["mse"], tiny_model)["mse"]
    assert score["values"] == pytest.approx([0], abs=1e-10)
    assert score["interval"] is None
    for arguments, cause in (
        (([code], [photos / "a.png", photos / "b.jpg"], ["mse"]), "1 codes and 2 photographs"),
        ((code, perfect, ["beauty"]), "metric 'beauty'"),
        ((code, perfect, ["fid"]), "metric fid compares sets"),
        ((code, perfect, ["seconds"]), "code 1: its record has no seconds"),
    ):
        with pytest.raises(WranganError) as raised:
            wrangan.evaluate(*arguments, tiny_model)  # type: ignore[arg-type]
        assert cause in str(raised.value)
    with pytest.raises(UsageError, match="batch 0"):
        wrangan.evaluate(code, perfect, ["mse"], tiny_model, batch=0)
