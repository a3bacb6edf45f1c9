"""`wrangan video edit` and `paste`: the faces back in their frames."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg")

from tests.clips import (
    SIZE,
    detector,
    frames_of,
    picture,
    sound_packets,
    steady,
    write_clip,
)
from tests.video_cases import COUNT, clip, invert, wrangan
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.editing.directions import load_directions
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import find_codes, load_code, render
from wrangan_cli.engine.video.invert import ClipRun
from wrangan_cli.engine.video.record import frame_file, load_record
from wrangan_cli.engine.video.render import ClipCodes
from wrangan_cli.engine.video.settings import ClipSettings
from wrangan_cli.engine.video.track import smooth_quads

__all__ = ["clip", "detector", "invert"]


def _settings() -> ClipSettings:
    return ClipSettings(perceptual_weight=0.0, init="mean", steps=4, key_frames=3, frame_steps=2)


def test_flicker_is_the_difference_of_the_changes(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    result = json.loads(invert(clip, "--json").stdout)
    folder, model = tmp_path / "codes", load_model(str(tiny_folder))
    run = ClipRun(clip, folder, model, _settings(), "")
    inputs = torch.stack([image for _, image in run.crops(run.record.numbers)])
    codes = [load_code(path, model) for path in find_codes(folder)]

    def mean_change(images: torch.Tensor) -> float:
        return (images[1:] - images[:-1]).square().mean().item()

    outputs = render(model, codes).clamp(-1, 1)
    expected = {"input": mean_change(inputs), "output": mean_change(outputs)}
    expected["flicker"] = expected["output"] - expected["input"]
    assert result["flicker"] == pytest.approx(expected, rel=1e-4, abs=1e-8)
    assert load_record(folder).flicker == result["flicker"]
    edited = wrangan(
        "video",
        "edit",
        folder,
        "--direction",
        "smile",
        "--strength",
        2,
        "--model",
        tiny_folder,
        "--json",
        "--out",
        tmp_path / "smile.mp4",
    )
    assert edited.exit_code == 0, edited.output
    assert "flicker" in edited.stderr
    found = json.loads(edited.stdout)["flicker"]
    assert found["input"] == pytest.approx(expected["input"], rel=1e-4)
    assert load_record(folder).edits == {"smile+2": found}
    smile = load_directions(model)["smile"]
    by_hand = [dataclasses.replace(code, w=code.w + 2 * smile.std * smile.vector) for code in codes]
    assert found["output"] == pytest.approx(mean_change(render(model, by_hand).clamp(-1, 1)), rel=1e-4)
    frames = frames_of(tmp_path / "smile.mp4").astype(int)
    wanted = to_uint8(render(model, by_hand)).permute(0, 2, 3, 1).numpy().astype(int)
    assert frames.shape == (COUNT, 16, 16, 3)
    # 16 px are one block of the codec, with colours at 8 px.
    assert np.abs(frames - wanted).mean() < 25
    unedited = to_uint8(outputs).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(frames - wanted).mean() < 0.5 * np.abs(frames - unedited).mean()


def test_pasting_changes_the_frame_alone_and_keeps_the_sound(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    invert(clip, "--frames", "2-5")
    folder, out = tmp_path / "codes", tmp_path / "out.mp4"
    result = wrangan(
        "video",
        "paste",
        folder,
        "--clip",
        clip,
        "--direction",
        "smile",
        "--strength",
        2,
        "--model",
        tiny_folder,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(out)]
    assert sound_packets(out) == sound_packets(clip)
    before, after = frames_of(clip).astype(int), frames_of(out).astype(int)
    assert before.shape == after.shape == (COUNT, SIZE[1], SIZE[0], 3)
    record = load_record(folder)
    assert record.numbers == [2, 3, 4, 5]
    away = np.abs(after - before).mean(axis=3)
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    for number in range(COUNT):
        if number not in record.numbers:
            assert away[number].mean() < 2
            continue
        quad = record.quads[record.numbers.index(number)]
        low, high = quad.min(axis=0), quad.max(axis=0)
        # Blocks of the codec reach beyond the frame by some pixels.
        outside = (x < low[0] - 8) | (x > high[0] + 8) | (y < low[1] - 8) | (y > high[1] + 8)
        inside = (x > low[0] + 6) & (x < high[0] - 6) & (y > low[1] + 6) & (y < high[1] - 6)
        assert away[number][outside].mean() < 2
        assert away[number][inside].mean() > 10


def test_frames_between_are_interpolated(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    assert invert(clip, "--every", 3).exit_code == 0
    record = load_record(tmp_path / "codes")
    assert record.numbers == [0, 3, 6]
    model = load_model(str(tiny_folder))
    codes = ClipCodes(tmp_path / "codes", model)
    drawn = list(codes.drawn([]))
    assert [number for number, _, _ in drawn] == list(range(7))
    first, second = (load_code(frame_file(codes.folder, n), model) for n in (3, 6))
    _, code, quad = drawn[4]
    assert torch.allclose(code.w, (2 * first.w + second.w) / 3, atol=1e-6)
    assert quad == pytest.approx((2 * record.quads[1] + record.quads[2]) / 3)
    assert all(
        torch.allclose(code.epsilon[n], (2 * first.epsilon[n] + second.epsilon[n]) / 3, atol=1e-6)
        for n in code.epsilon
    )


def test_a_clip_that_ends_early_is_said_and_the_rest_is_there(
    invert: Callable[..., Result], tmp_path: Path
) -> None:
    pictures = [*steady(5), *[picture(None)] * 20]
    clip = write_clip(tmp_path / "lost.mp4", pictures)
    result = invert(clip, "--json")
    assert result.exit_code == 1
    assert "lost.mp4: the face is out of sight at frame 5 (0.20 s): inverted up to there" in result.stderr
    assert json.loads(result.stdout)["frames"] == 5
    assert invert(clip).exit_code == 1
    assert invert(clip, "--frames", "0-4", out="asked").exit_code == 0


def test_paste_refuses_what_does_not_belong(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    invert(clip)
    folder = tmp_path / "codes"
    other = write_clip(tmp_path / "other.mp4", steady(3))
    before = clip.read_bytes()
    for words, code, line in (
        (("--clip", other, "--out", tmp_path / "o.mp4"), 1, "not the clip of"),
        (("--clip", clip, "--out", clip), 1, "is an input"),
        (("--clip", clip, "--out", tmp_path / "o.avi"), 2, "written as .mp4"),
        (("--clip", clip, "--out", tmp_path / "o.mp4", "--feather", 0.7), 2, "feather 0.7"),
        (("--clip", clip, "--out", tmp_path / "o.mp4", "--direction", "smile"), 2, "one strength for each"),
    ):
        result = wrangan("video", "paste", folder, *words, "--model", tiny_folder)
        assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.output
        assert line in result.stderr
    assert clip.read_bytes() == before
    assert not (tmp_path / "o.mp4").exists()
    assert not list(tmp_path.glob(".wrangan-*"))


@pytest.mark.usefixtures("detector")
def test_codes_of_photographs_are_left_alone(
    invert: Callable[..., Result], clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "a.st").write_bytes(b"kept")
    result = invert(clip, "--overwrite")
    assert result.exit_code == 1
    assert "holds other codes" in result.stderr
    assert [path.name for path in (tmp_path / "codes").iterdir()] == ["a.st"]


@pytest.mark.parametrize(("values"), [{"format": "x"}, {"numbers": [1, 0]}, {"quads": [[1]]}, {"facts": {}}])
def test_a_broken_record_is_named(
    invert: Callable[..., Result], clip: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    invert(clip)
    path = tmp_path / "codes" / "clip.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(FileError, match=r"clip\.json"):
        load_record(tmp_path / "codes")


def test_the_place_is_that_of_the_smoothed_landmarks(
    invert: Callable[..., Result], clip: Path, tmp_path: Path
) -> None:
    invert(clip)
    record = load_record(tmp_path / "codes")
    assert record.quads == pytest.approx(smooth_quads(record.found, record.numbers, 0.5, 25), abs=1e-3)
    # An even motion by 1 px a frame stays one.
    assert np.diff(record.quads.mean(axis=1)[:, 0]) == pytest.approx([1] * (COUNT - 1), abs=0.05)
