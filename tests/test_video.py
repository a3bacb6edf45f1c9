"""`wrangan video invert`: a clip inverted, interrupted, resumed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import Result

pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg")

from tests.clips import (
    SquareDetector,
    detector,
    picture,
    write_clip,
)
from tests.conftest import TINY
from tests.fakes import make_inverter
from tests.video_cases import COUNT, clip, invert, wrangan
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.inversion.clip import ClipInverter
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import find_codes, load_code, render
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.shared_offsets import SHARED_FILE
from wrangan_cli.engine.video.invert import ClipRun, parse_span
from wrangan_cli.engine.video.record import frame_file, load_record
from wrangan_cli.engine.video.settings import ClipSettings

__all__ = ["clip", "detector", "invert"]


def test_one_epsilon_for_the_clip(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_model: Model
) -> None:
    result = invert(clip, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    folder = tmp_path / "codes"
    assert (record["path"], record["frames"], record["ended"]) == (str(folder), COUNT, None)
    assert find_codes(folder) == [frame_file(folder, number) for number in range(COUNT)]
    numbers = sum(weight.shape.numel() for weight in tiny_model.generator.random_weights().values())
    shared, _ = read_tensors(folder / SHARED_FILE)
    assert sum(t.numel() for name, t in shared.items() if name.startswith("epsilon.")) == numbers
    assert {t.dtype for name, t in shared.items() if name.startswith("epsilon.")} == {torch.float16}
    weights = tiny_model.generator.random_weights()
    for path in find_codes(folder):
        tensors, _ = read_tensors(path)
        stored = sum(t.numel() for t in tensors.values())
        # w, and for each weight (O, I, k, k) the two factors.
        assert stored == TINY.style_dim + sum(w.shape[0] + w.shape[1:].numel() for w in weights.values())
        assert stored < numbers / 4


def test_a_frame_is_a_code(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    invert(clip)
    folder, model = tmp_path / "codes", load_model(str(tiny_folder))
    path = frame_file(folder, 5)
    code = load_code(path, model)
    tensors, info = read_tensors(path)
    base, _ = read_tensors(folder / SHARED_FILE)
    for name, weight in model.generator.random_weights().items():
        left, right = (tensors[f"{side}.{name}"].double() for side in ("left", "right"))
        expected = base[f"epsilon.{name}"].double() + torch.einsum("or,rk->ok", left, right).view(
            weight.shape
        )
        assert torch.allclose(code.epsilon[name].double(), expected, atol=1e-6)
    assert "shared" not in code.info
    # The record's distortion is that of the file.
    run = ClipRun(clip, folder, model, _settings(), "")
    ((_, crop),) = run.crops([5])
    assert info["distortion"]["after"]["mse"] == pytest.approx(
        (render(model, [code])[0] - crop).square().mean().item(), rel=1e-4
    )
    plain = wrangan(
        "edit",
        path,
        "--direction",
        "smile",
        "--strength",
        1,
        "--model",
        tiny_folder,
        "--save-code",
        "--out",
        tmp_path / "one.png",
    )
    assert plain.exit_code == 0, plain.output
    # Written as a whole, it stands alone.
    (tmp_path / "codes" / SHARED_FILE).rename(tmp_path / "away")
    assert load_code(tmp_path / "one.st", model).epsilon.keys() == code.epsilon.keys()
    with pytest.raises(FileError, match="but the frames of the clip need it"):
        load_code(path, model)


def _settings() -> ClipSettings:
    return ClipSettings(perceptual_weight=0.0, init="mean", steps=4, key_frames=3, frame_steps=2)


def test_frames_of_another_clip_do_not_mix(invert: Callable[..., Result], clip: Path, tmp_path: Path) -> None:
    invert(clip)
    folder = tmp_path / "codes"
    tensors, record = read_tensors(folder / SHARED_FILE)
    write_tensors(folder / SHARED_FILE, {name: t + 1 for name, t in tensors.items()}, record)
    with pytest.raises(FileError, match="another shared"):
        load_code(frame_file(folder, 0))
    # No file outside of the folder is ever opened.
    tensors, info = read_tensors(frame_file(folder, 1))
    write_tensors(frame_file(folder, 1), tensors, {**info, "shared": {"file": "../x", "sha256": ""}})
    with pytest.raises(FileError, match="its record is broken"):
        load_code(frame_file(folder, 1))


@pytest.mark.parametrize("broken", ["lacks", "unknown", "shape"])
def test_factors_that_do_not_fit(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, broken: str
) -> None:
    invert(clip)
    path = frame_file(tmp_path / "codes", 0)
    tensors, info = read_tensors(path)
    right = next(name for name in tensors if name.startswith("right."))
    if broken == "shape":
        tensors[right] = tensors[right][:, :-1]
    else:
        value = tensors.pop(right)
        if broken == "unknown":
            tensors |= {"left.x": tensors.pop(right.replace("right", "left")), "right.x": value}
    write_tensors(path, tensors, info)
    with pytest.raises(FileError, match="fit shared"):
        load_code(path)


def test_the_key_frames_share_what_lowers_the_sum_of_their_losses(tiny_model: Model) -> None:
    """Its gradient is that of the sum: after one step of Adam, each number has moved against its sign."""
    inverter = make_inverter(tiny_model, steps=1, epsilon_init=0.0, lr=0.01, alpha=0.0, perceptual_weight=0.0)
    images = torch.rand(3, 3, 16, 16) * 0.4 + torch.tensor([-1.0, 0.6, -0.2])[:, None, None, None]
    w, epsilon = ClipInverter(inverter, 0, 0, 0.01, 0.0).fit_key_frames(list(images), lambda _: None)
    start = {
        n: torch.zeros(v.shape, requires_grad=True) for n, v in tiny_model.generator.random_weights().items()
    }
    drawn = tiny_model.generator.synthesis(
        tiny_model.w_mean.expand(3, -1), epsilon={n: e.expand(3, *e.shape) for n, e in start.items()}
    )
    (2 * (drawn - images).square().mean(dim=(1, 2, 3))).sum().backward()
    assert w.shape == (3, TINY.style_dim)
    assert not torch.equal(w[0], w[1])
    for name, value in start.items():
        assert value.grad is not None
        sure = value.grad.abs() > 1e-5
        assert sure.any()
        assert torch.equal(epsilon[name].sign()[sure], -value.grad.sign()[sure])


def test_key_frames_come_closer_and_frames_closer_still(tiny_model: Model) -> None:
    inverter = make_inverter(tiny_model, steps=60, lr=0.05, epsilon_lr=0.05, perceptual_weight=0.0)
    clip_inverter = ClipInverter(inverter, 1, 30, 0.05, 0.1)
    images = [load * 0.5 for load in torch.rand(3, 3, 16, 16) * 2 - 1]
    w, shared = clip_inverter.fit_key_frames(images, lambda _: None)
    shapes = {name: value.shape for name, value in shared.items()}
    none = clip_inverter.initial_factors(shapes)

    def mse(w: torch.Tensor, factors: object) -> float:
        return (clip_inverter.rendered(w, shared, factors, 16) - images[0]).square().mean().item()  # type: ignore[arg-type]

    from_mean = mse(tiny_model.w_mean.float(), {})
    after_keys = mse(w[0], none)
    fit = clip_inverter.fit_frame(images[0], shared, w[0], none, lambda _: None)
    assert mse(fit.w, fit.factors) < after_keys < from_mean
    # Without rank there is no ε of its own, and a heavy penalty keeps it small.
    assert ClipInverter(inverter, 0, 1, 0.05, 0.1).initial_factors(shapes) == {}
    heavy = ClipInverter(inverter, 1, 30, 0.05, 1e4).fit_frame(images[0], shared, w[0], none, lambda _: None)

    def size(factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> float:
        return sum((left.float() @ right.float()).square().sum().item() for left, right in factors.values())

    assert size(heavy.factors) < 0.1 * size(fit.factors)


def test_an_interrupted_run_goes_on(
    invert: Callable[..., Result],
    clip: Path,
    tmp_path: Path,
    detector: type[SquareDetector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert invert(clip, out="whole").exit_code == 0
    calls = detector.calls
    fitted = ClipInverter.fit_frame
    count = 0

    def interrupted(*given: object) -> object:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        return fitted(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipInverter, "fit_frame", interrupted)
    result = invert(clip)
    assert result.exit_code == 130
    folder = tmp_path / "codes"
    assert [path.name for path in find_codes(folder)] == [f"frame-{n:06d}.st" for n in range(4)]
    kept = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    unfinished = wrangan("video", "edit", folder, "--out", tmp_path / "x.mp4")
    assert unfinished.exit_code == 1
    assert "4 of 8 frames" in unfinished.stderr
    monkeypatch.setattr(ClipInverter, "fit_frame", fitted)
    assert invert(clip).exit_code == 0
    # The faces were found twice in all, once for each folder, and nothing was done again.
    assert detector.calls == 2 * calls
    assert all(path.read_bytes() == data for path, data in kept.items())
    for path in find_codes(tmp_path / "whole"):
        there, here = read_tensors(path), read_tensors(folder / path.name)
        assert all(torch.equal(there[0][name], here[0][name]) for name in there[0])
        assert there[1].get("change") == here[1].get("change")
    assert load_record(folder).flicker == load_record(tmp_path / "whole").flicker
    other = invert(clip, "--frame-lr", 0.02)
    assert other.exit_code == 1
    assert "frame_lr 0.01, not 0.02; use --overwrite" in other.stderr
    assert invert(clip, "--frames", "0-3", "--overwrite").exit_code == 0
    assert len(find_codes(folder)) == 4


def test_a_search_for_the_face_goes_on(
    invert: Callable[..., Result], clip: Path, detector: type[SquareDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = detector.detect

    def interrupted(self: SquareDetector, photo: Image.Image) -> object:
        if detector.calls == 3:
            raise KeyboardInterrupt
        return found(self, photo)

    monkeypatch.setattr(detector, "detect", interrupted)
    assert invert(clip).exit_code == 130
    monkeypatch.setattr(detector, "detect", found)
    assert invert(clip).exit_code == 0
    assert detector.calls == COUNT


@pytest.mark.usefixtures("detector")
def test_errors_are_one_line(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    nobody = write_clip(tmp_path / "nobody.mp4", [picture(None)] * 4)
    (tmp_path / "text.mp4").write_bytes(b"text " * 300)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for words, code, line in (
        ((nobody,), 1, "no face found"),
        ((nobody, "--face", 2, "--overwrite"), 1, "no frame shows 2 faces"),
        ((tmp_path / "text.mp4",), 1, "not a video"),
        ((tmp_path / "empty.mp4",), 1, "empty file"),
        ((tmp_path / "none.mp4",), 1, "no such file"),
        ((tmp_path,), 1, "a folder"),
        ((clip, "--frames", "100-200", "--overwrite"), 1, "has no frame 100"),
        ((clip, "--frames", "5-2"), 2, "a range such as 0-99"),
        ((clip, "--frames", "x"), 2, "a range such as 0-99"),
        ((clip, "--every", 0), 2, "every 0"),
        ((clip, "--smoothing", "nan"), 2, "smoothing nan"),
    ):
        result = invert(*words)
        assert result.exit_code == code, (words, result.output)
        lines = [said for said in result.stderr.splitlines() if said]
        assert len(lines) == 1, lines
        assert line in lines[0]
    how = ("--model", tiny_folder, "--perceptual-weight", 0, "--init", "mean")
    photo = wrangan("invert", clip, "--out", tmp_path / "photos", *how)
    assert photo.exit_code == 1
    assert "use `wrangan video` for clips" in photo.stderr


def test_spans() -> None:
    assert parse_span("") == (0, None)
    assert parse_span("7") == (7, 7)
    assert parse_span("2-90") == (2, 90)
