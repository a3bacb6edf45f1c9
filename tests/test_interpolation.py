"""Interpolation of codes and `wrangan interpolate`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.code_files import LATENTS, expected_pixels, make_code, pixels, write_codes
from wrangan_cli.app import app
from wrangan_cli.engine import model_folder
from wrangan_cli.engine.codes import Code, load_code, render, save_code
from wrangan_cli.engine.editing.animation import save_animation
from wrangan_cli.engine.editing.interpolation import draw_way, interpolate_codes
from wrangan_cli.engine.errors import UsageError, WranganError
from wrangan_cli.engine.model_folder import Model

run = CliRunner()


@pytest.fixture
def codes(tiny_model: Model, tmp_path: Path) -> Path:
    return write_codes(tmp_path / "codes", tiny_model)


def test_interpolation_has_equal_ends_and_even_steps(tiny_model: Model) -> None:
    a, b = make_code(tiny_model, 0), make_code(tiny_model, 1)
    way = list(interpolate_codes([a, b], 5, LATENTS))
    assert len(way) == 5
    for end, code in ((way[0], a), (way[-1], b)):
        assert torch.equal(end.w, code.w)
        assert all(torch.equal(end.epsilon[name], value) for name, value in code.epsilon.items())
    torch.testing.assert_close(way[1].w, 0.75 * a.w + 0.25 * b.w)
    for name in a.epsilon:
        torch.testing.assert_close(way[3].epsilon[name], 0.25 * a.epsilon[name] + 0.75 * b.epsilon[name])
    images = torch.stack(list(draw_way(tiny_model, [a, b], 10)))
    torch.testing.assert_close(images[[0]], render(tiny_model, [a]), rtol=0, atol=1e-5)
    torch.testing.assert_close(images[[-1]], render(tiny_model, [b]), rtol=0, atol=1e-5)


def test_interpolation_with_missing_layers(tiny_model: Model) -> None:
    a, b = make_code(tiny_model, 0), make_code(tiny_model, 1, epsilon=False)
    delta = {"conv1": torch.ones(16, 16, 3, 3)}
    b = Code(w=b.w, delta=delta, info=b.info)
    way = list(interpolate_codes([a, b], 3, LATENTS))
    for name, value in a.epsilon.items():
        torch.testing.assert_close(way[1].epsilon[name], value / 2)
        assert way[2].epsilon[name].abs().max() == 0
    torch.testing.assert_close(way[1].delta["conv1"], delta["conv1"] / 2)
    images = torch.stack(list(draw_way(tiny_model, [a, b], 3)))
    torch.testing.assert_close(images[[0]], render(tiny_model, [a]), rtol=0, atol=1e-5)
    torch.testing.assert_close(images[[2]], render(tiny_model, [b]), rtol=0, atol=1e-5)


def test_interpolation_between_w_and_w_plus(tiny_model: Model) -> None:
    a, b = make_code(tiny_model, 0), make_code(tiny_model, 1, w_plus=True)
    way = list(interpolate_codes([a, b], 3, LATENTS))
    torch.testing.assert_close(way[1].w, (a.w[None] + b.w) / 2)
    assert torch.equal(way[0].w, a.w.expand(LATENTS, -1))
    with pytest.raises(UsageError, match="2 or more"):
        interpolate_codes([a, b], 1, LATENTS)


def interpolate(*arguments: object):  # type: ignore[no-untyped-def]
    return run.invoke(app, ["interpolate", *map(str, arguments)])


def test_interpolate_command_strip(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "between.png"
    result = interpolate(
        codes / "a.st", codes / "c.st", "--steps", 4, "--out", out, "--model", tiny_model.path, "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 4
    a, c = load_code(codes / "a.st", tiny_model), load_code(codes / "c.st", tiny_model)
    assert np.array_equal(pixels(out), expected_pixels(torch.stack(list(draw_way(tiny_model, [a, c], 4)))))
    assert pixels(out).shape == (16, 64, 3)


def test_interpolate_command_folder_and_films(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    base = [codes / "a.st", codes / "b.st", "--model", tiny_model.path, "--steps", 11, "--out"]
    folder = interpolate(*base, tmp_path / "way")
    assert [Path(line).name for line in folder.stdout.splitlines()] == [
        f"step-{i:02d}.png" for i in range(11)
    ]
    gif = interpolate(*base, tmp_path / "way.gif")
    assert gif.stdout.splitlines() == [str(tmp_path / "way.gif")]
    with Image.open(tmp_path / "way.gif") as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (11, (16, 16), 120)


def test_interpolate_command_mp4(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "way.mp4"
    result = interpolate(
        codes / "a.st", codes / "b.st", "--model", tiny_model.path, "--steps", 6, "--fps", 5, "--out", out
    )
    assert result.exit_code == 0, result.stderr
    with imageio.get_reader(out) as film:
        assert film.get_meta_data()["size"] == (16, 16)
        assert film.get_meta_data()["fps"] == 5
        assert film.count_frames() == 6


def test_mp4_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(WranganError, match=r"wrangan\[video\]"):
        save_animation(tmp_path / "x.mp4", [Image.new("RGB", (16, 16))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.st", "b.st", "--steps", "1"], 2, "steps 1"),
        (["a.st", "b.st", "--out", "x.avi"], 2, "images are written as"),
        (["a.st", "b.st", "--out", "x.gif", "--fps", "nan"], 2, "fps nan"),
        (["a.st", "gone.st"], 1, "gone.st: no such file"),
        (["gone.st", "a.st"], 1, "gone.st: no such file"),
        (["a.st", "other.st"], 1, "other.st: made for another model"),
    ],
)
def test_interpolate_errors(
    codes: Path,
    tiny_model: Model,
    other_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    save_code(codes / "other.st", make_code(model_folder.load_model(str(other_folder))))
    monkeypatch.chdir(codes)
    result = interpolate(*arguments, "--model", tiny_model.path)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
