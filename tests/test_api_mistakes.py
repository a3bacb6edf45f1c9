"""What a user of the Python interface gets wrong: one clear line each, and warnings that come once."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wrangan
from tests.code_files import make_code
from tests.conftest import write_photo
from wrangan_cli.api import models, pictures
from wrangan_cli.engine.base import runtime
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.editing.directions import Direction, save_directions, unit
from wrangan_cli.engine.models.folder import Model

FEW: dict[str, Any] = {"init": "mean", "steps": 3, "perceptual_weight": 0.0}


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    models._LOADED.clear()


def line(call: Callable[[], object]) -> str:
    """The one line of the error that `call` raises."""
    with pytest.raises(WranganError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def smile(model: Model) -> Direction:
    direction = Direction("smile", unit(torch.ones(16)), 1.0)
    save_directions(model.path / "directions.safetensors", model, [direction])
    return direction


# Pictures


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.full((20, 20, 3), 0.5), 'from [0, 1], pass (255 * x).round().astype("uint8")'),
        (np.full((20, 20, 3), -0.5), 'from [-1, 1], pass (127.5 * (x + 1)).round().astype("uint8")'),
        (np.full((20, 20, 3), 80.0), 'uint8, RGB; pass x.round().astype("uint8")'),
        (np.zeros((2, 20, 20, 3), np.uint8), "pass several as list(x)"),
        (np.zeros((20, 20), np.uint8), "pass a grey picture as PIL.Image.fromarray(x)"),
    ],
)
def test_arrays_of_another_form_come_with_a_remedy_that_works(array: Any, cause: str) -> None:
    said = line(lambda: pictures.photograph(array, 16))
    assert said.endswith(cause)
    remedy = said.rpartition("pass ")[2].removeprefix("several as ").removeprefix("a grey picture as ")
    import PIL.Image

    mended = eval(remedy, {"x": array, "PIL": PIL})
    for picture in mended if isinstance(mended, list) else [mended]:
        assert pictures.photograph(picture, 16).shape == (3, 16, 16)


def test_arrays_beyond_remedy() -> None:
    for array in (np.full((20, 20, 3), 900.0), np.full((20, 20, 3), np.nan), np.zeros((3, 20, 20))):
        assert line(lambda array=array: pictures.photograph(array, 16)).endswith("uint8, RGB")


def test_the_remedy_for_a_tensor_works() -> None:
    x = torch.linspace(0, 255, 3 * 256).reshape(3, 16, 16)
    said = line(lambda: pictures.photograph(x, 16))
    assert said.endswith("expected [-1, 1]; from [0, 255], pass x / 127.5 - 1")
    assert pictures.photograph(x / 127.5 - 1, 16).min() == -1
    assert line(lambda: pictures.photograph(x - 300, 16)).endswith("expected [-1, 1]")


def test_an_open_file_is_named_as_such(photos: Path, tiny_model: Model) -> None:
    inverter = wrangan.Inverter(tiny_model, **FEW)
    with open(photos / "a.png", "rb") as stream:
        for given, name in ((stream, "image"), ([photos / "a.png", stream], "image 2")):
            said = line(lambda given=given: inverter.invert(given))
            assert said == f"{name}: an open file: pass its path, or PIL.Image.open(file)"
        assert "an open file" in line(lambda: wrangan.align(stream))
        assert isinstance(inverter.invert(Image.open(stream)), wrangan.Code)


def test_tensors_in_another_range_get_one_warning(
    tiny_model: Model, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = load_image(photos / "a.png", 16)
    code, halved = wrangan.random_codes(tiny_model)[0], (image + 1) / 2
    inverter = wrangan.Inverter(tiny_model, **FEW)
    warning = "all values of the tensor are in [0, 1]: expected [-1, 1]; if it is in [0, 1], pass 2 * x - 1"
    for call in (
        lambda: inverter.invert(torch.stack([halved, halved])),
        lambda: inverter.invert([halved, halved, photos / "a.png"]),
        lambda: wrangan.evaluate([code, code], [halved, halved], "mse", tiny_model),
        lambda: pictures.whole(halved),
    ):
        call()
        assert caplog.messages == [warning]
        caplog.clear()
    torch.testing.assert_close(2 * halved - 1, image)
    for call in (
        lambda: inverter.invert([image, halved]),  # one may well be bright
        lambda: wrangan.evaluate(code, image, "mse", tiny_model),
        lambda: pictures.whole(image),
    ):
        call()
        assert not caplog.messages


def test_paste_wants_a_face_that_was_cut_out(photos: Path) -> None:
    picture = Image.open(photos / "a.png")
    said = line(lambda: wrangan.paste(picture, picture))  # type: ignore[arg-type]
    assert said.startswith("face: PngImageFile: expected a face from `align`")


# Inversion, models


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"step": 5}, "setting 'step' of an inversion: did you mean steps?"),
        ({"steps": "5"}, "steps '5': expected a whole number"),
        ({"seconds": -1}, "seconds -1: expected a positive number"),
        ({"seconds": 0}, "seconds 0: expected a positive number"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], cause: str, tiny_model: Model, photos: Path) -> None:
    given = {"init": "mean", "perceptual_weight": 0.0, **options}
    assert line(lambda: wrangan.invert(photos / "a.png", tiny_model, **given)) == cause


def test_no_steps_give_the_code_at_the_start(tiny_model: Model, photos: Path) -> None:
    code = wrangan.invert(photos / "a.png", tiny_model, **{**FEW, "steps": 0})
    torch.testing.assert_close(code.w, tiny_model.w_mean)
    assert max(value.abs().max() for value in code.epsilon.values()) < 1e-2
    assert code.info["steps"] == 0


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(runtime.torch, "zeros", refuse)  # type: ignore[attr-defined]
    for device, kind in (("cuda", "CUDA"), ("cuda:1", "CUDA"), ("mps", "MPS")):
        said = line(lambda device=device: wrangan.load_model(tiny_folder, device=device))
        assert said == f"device '{device}': no {kind} device is available; use 'cpu'"
    assert line(lambda: wrangan.load_model(tiny_folder, "xla")).endswith("not compiled with CUDA enabled")


# Codes


def test_a_name_is_a_model_for_load_code_too(tiny_model: Model, other_folder: Path, tmp_path: Path) -> None:
    wrangan.save_code(make_code(tiny_model), tmp_path / "a.st")
    for given in (tiny_model, tiny_model.path, str(tiny_model.path)):
        assert isinstance(wrangan.load_code(tmp_path / "a.st", given), wrangan.Code)
    with pytest.raises(FileError, match="made for another model"):
        wrangan.load_code(tmp_path / "a.st", other_folder)
    assert "neither a folder nor a bundled model" in line(
        lambda: wrangan.load_code(tmp_path / "a.st", "nosuch")
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_no_code(suffix: str, tiny_model: Model, tmp_path: Path) -> None:
    path = write_photo(tmp_path / f"a{suffix}")
    kind = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    for call in (lambda: wrangan.load_code(path), lambda: wrangan.render(path, tiny_model)):
        assert line(call) == f"{path}: an image ({kind}), not a code (.st)"
    assert line(lambda: wrangan.load_code(tmp_path / "no.png")) == f"{tmp_path / 'no.png'}: no such file"


@pytest.mark.parametrize("strength", ["3", (-3, 3), [1.0], True, None, torch.tensor(2.0)])
def test_strengths_that_are_no_numbers(strength: Any, tiny_model: Model) -> None:
    direction, code = smile(tiny_model), make_code(tiny_model)
    for asked in ({"smile": strength}, {direction: strength}):
        said = line(lambda asked=asked: wrangan.edit(code, asked, model=tiny_model))
        assert said == f"strength {strength!r} of smile: expected a finite number"


def test_a_strength_of_numpy_is_a_number(tiny_model: Model, tmp_path: Path) -> None:
    smile(tiny_model)
    code = make_code(tiny_model)
    expected = wrangan.edit(code, "smile", 2, model=tiny_model, output="code")
    for strength in (np.float32(2), np.int64(2)):
        moved = wrangan.edit(code, "smile", strength, model=tiny_model, output="code")  # type: ignore[call-overload]
        assert torch.equal(moved.w, expected.w)
        wrangan.save_code(moved, tmp_path / "a.st")
        assert wrangan.load_code(tmp_path / "a.st").info["edits"] == expected.info["edits"]


@pytest.mark.parametrize(
    ("asked", "cause"),
    [
        ((["smile", "age"], 2), "direction ['smile', 'age']: expected a name or a Direction; for several"),
        ((["smile"],), "direction ['smile']: expected a name or a Direction"),
        (("smile",), "no strength: give one"),
        (({1: 2.0},), "direction 1: expected a name or a Direction"),
        (({},), "no direction: the dict of strengths is empty"),
        (({}, 2), "no direction: the dict of strengths is empty"),
        (({"smile": 1}, 2), "several directions: give a dict of strengths by name, and no separate strength"),
    ],
)
def test_directions_that_are_none(asked: tuple[Any, ...], cause: str, tiny_model: Model) -> None:
    smile(tiny_model)
    assert cause in line(lambda: wrangan.edit(make_code(tiny_model), *asked, model=tiny_model))


def test_one_code_is_not_interpolated(tiny_model: Model, tmp_path: Path) -> None:
    wrangan.save_code(make_code(tiny_model), tmp_path / "a.st")
    for one in (make_code(tiny_model), tmp_path / "a.st", str(tmp_path / "a.st")):
        said = line(lambda one=one: wrangan.interpolate(one, model=tiny_model))
        assert said == "1 code: expected 2 or more to interpolate"


# Evaluation


def test_one_metric_needs_no_list(tiny_model: Model, photos: Path) -> None:
    code = make_code(tiny_model)
    alone = wrangan.evaluate(code, photos / "a.png", "mse", tiny_model)
    assert alone == wrangan.evaluate(code, photos / "a.png", ["mse"], tiny_model)
    assert list(alone) == ["mse"]
    assert list(wrangan.evaluate(code, photos / "a.png", "psnr", tiny_model)) == ["psnr"]


@pytest.mark.parametrize(
    ("metrics", "cause"),
    [
        ("beauty", "metric 'beauty': expected one of mse, psnr, ms-ssim, lpips-vgg"),
        (["mse", "ms_ssim"], "metric 'ms_ssim': did you mean ms-ssim?"),
        ("fid", "metric fid compares sets of samples: it is measured by the command `wrangan evaluate`"),
        ("corruption-kid", "metric corruption-kid measures codes alone: it is measured by"),
        ("edit-success", "metric edit-success edits and compares: it is measured by"),
        ("layer-influence", "metric layer-influence measures a model's layers: it is measured by"),
    ],
)
def test_metrics_that_python_does_not_have(metrics: Any, cause: str, tiny_model: Model, photos: Path) -> None:
    said = line(lambda: wrangan.evaluate(make_code(tiny_model), photos / "a.png", metrics, tiny_model))
    assert cause in said
    assert "--" not in said
    assert "kid," not in said


def test_another_persons_photograph_gets_a_warning(
    tiny_model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By what the inversion left over, so that files, tensors, and other sizes of the photograph pass."""
    code = make_code(tiny_model)
    own = wrangan.render(code, tiny_model, output="tensor")
    right, wrong = tmp_path / "right.png", write_photo(tmp_path / "wrong.png", 64, seed=3)
    wrangan.render(code, tiny_model).resize((64, 64), Image.Resampling.NEAREST).save(right)
    for before, expected in ((0.001, True), (10.0, False)):
        code.info["distortion"] = {"after": {"mse": before}}
        for same in (right, own, wrangan.render(code, tiny_model), np.asarray(Image.open(right))):
            wrangan.evaluate(code, same, "psnr", tiny_model)
            assert not caplog.messages
        for other in (wrong, load_image(wrong, 16)):
            score = wrangan.evaluate([code, code], [own, other], "mse", tiny_model)["mse"]
            error = score["values"][1]
            said = f"pair 2: mse {error:.3g}, and {before:.3g} after the inversion: is it the photograph"
            assert [message.startswith(said) for message in caplog.messages] == [True] * expected
            caplog.clear()


def test_a_code_that_was_changed_gets_no_warning_beside_its_own_file(
    tiny_model: Model, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from wrangan_cli.engine.base.files import sha256

    photo = photos / "a.png"
    code = make_code(tiny_model)
    code.info.update(distortion={"after": {"mse": 1e-4}}, source_sha256=sha256(photo))
    with caplog.at_level(logging.WARNING):
        score = wrangan.evaluate(code, photo, "mse", tiny_model)["mse"]
    assert score["mean"] > 0.1
    assert not caplog.messages
    wrangan.evaluate(code, photos / "b.jpg", "mse", tiny_model)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("record", [None, "a", {}, {"after": None}, {"after": {"mse": "small"}}])
def test_other_records_say_nothing_of_the_photograph(
    record: Any, tiny_model: Model, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = make_code(tiny_model)
    code.info["distortion"] = record
    wrangan.evaluate(code, photos / "a.png", "mse", tiny_model)
    assert not caplog.messages


def test_errors_are_of_one_class() -> None:
    assert issubclass(UsageError, wrangan.WranganError)
    assert issubclass(FileError, wrangan.WranganError)
