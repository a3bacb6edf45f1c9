"""Interpolation of codes and `wrangan interpolate`."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import CubicHermiteSpline
from typer.testing import CliRunner

from tests.code_files import LATENTS, expected_pixels, make_code, pixels, write_codes
from wrangan_cli.app import app
from wrangan_cli.engine import library
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.editing import interpolation
from wrangan_cli.engine.editing.animation import save_animation
from wrangan_cli.engine.editing.interpolation import count_images, interpolate_codes, render_way, weights_at
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

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
    images = torch.stack(list(render_way(tiny_model, [a, b], 10)))
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
    images = torch.stack(list(render_way(tiny_model, [a, b], 3)))
    torch.testing.assert_close(images[[0]], render(tiny_model, [a]), rtol=0, atol=1e-5)
    torch.testing.assert_close(images[[2]], render(tiny_model, [b]), rtol=0, atol=1e-5)


def test_interpolation_between_w_and_w_plus(tiny_model: Model) -> None:
    a, b = make_code(tiny_model, 0), make_code(tiny_model, 1, w_plus=True)
    way = list(interpolate_codes([a, b], 3, LATENTS))
    torch.testing.assert_close(way[1].w, (a.w[None] + b.w) / 2)
    assert torch.equal(way[0].w, a.w.expand(LATENTS, -1))
    with pytest.raises(UsageError, match="2 or more"):
        interpolate_codes([a, b], 1, LATENTS)


def test_way_through_several_codes(tiny_model: Model) -> None:
    codes = [make_code(tiny_model, seed) for seed in range(3)]
    way = list(interpolate_codes(codes, 4, LATENTS))
    assert len(way) == count_images(3, 4) == 7
    for key, code in enumerate(codes):
        assert torch.equal(way[3 * key].w, code.w)
    name = next(iter(codes[0].epsilon))
    for found, values in (
        ([code.w for code in way], [code.w for code in codes]),
        ([code.epsilon[name] for code in way], [code.epsilon[name] for code in codes]),
    ):
        torch.testing.assert_close(found[1], (2 * values[0] + values[1]) / 3)
        torch.testing.assert_close(found[5], (values[1] + 2 * values[2]) / 3)
    assert [code.info["interpolation"] for code in way[::3]] == [0, 1, 2]
    closed = list(interpolate_codes(codes, 4, LATENTS, loop=True))
    assert len(closed) == count_images(3, 4, loop=True) == 9
    torch.testing.assert_close(closed[7].w, (2 * codes[2].w + codes[0].w) / 3)
    torch.testing.assert_close(closed[8].w, (codes[2].w + 2 * codes[0].w) / 3)
    with pytest.raises(UsageError, match="1 code: expected 2 or more"):
        interpolate_codes(codes[:1], 4, LATENTS)


def test_smooth_way_is_the_hermite_spline_of_central_differences(tiny_model: Model) -> None:
    codes = [make_code(tiny_model, seed) for seed in range(4)]
    name = next(iter(codes[0].epsilon))
    at = np.arange(31) / 10
    for of in (lambda code: code.w, lambda code: code.epsilon[name]):
        points = np.stack([of(code).numpy().astype(np.float64).ravel() for code in codes])
        way = np.stack(
            [of(code).numpy().ravel() for code in interpolate_codes(codes, 11, LATENTS, smooth=True)]
        )
        slopes = np.gradient(points, axis=0)  # central differences, one-sided at the ends
        spline = CubicHermiteSpline(np.arange(4), points, slopes)
        np.testing.assert_allclose(way, spline(at), rtol=1e-4, atol=1e-5)
        closed = np.stack(
            [of(c).numpy().ravel() for c in interpolate_codes(codes, 11, LATENTS, smooth=True, loop=True)]
        )
        around = np.concatenate([points, points[:1]])
        slopes = (np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)) / 2
        spline = CubicHermiteSpline(np.arange(5), around, np.concatenate([slopes, slopes[:1]]))
        np.testing.assert_allclose(closed, spline(np.arange(40) / 10), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loop", [False, True])
def test_shares_of_a_smooth_way_add_up_to_one(loop: bool) -> None:
    for count in (2, 3, 5):
        for stretch in range(count - (not loop)):
            for t in (0.0, 0.3, 0.5, 0.9):
                shares = weights_at(stretch, t, count, smooth=True, loop=loop)
                assert sum(shares.values()) == pytest.approx(1)
                assert set(shares) <= set(range(count))


def test_smooth_way_through_two_codes_is_straight(tiny_model: Model) -> None:
    codes = [make_code(tiny_model, 0), make_code(tiny_model, 1, w_plus=True)]
    ways = [interpolate_codes(codes, 6, LATENTS, smooth=smooth) for smooth in (False, True)]
    for straight, smooth in zip(*ways, strict=True):
        torch.testing.assert_close(smooth.w, straight.w)


def test_codes_of_a_way_are_made_as_they_are_drawn(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = interpolation.weights_at
    monkeypatch.setattr(interpolation, "weights_at", lambda *a: made.append(1) or real(*a))
    way = render_way(tiny_model, [make_code(tiny_model, 0), make_code(tiny_model, 1)], 240)
    for _ in range(10):
        next(way)
    assert len(made) <= 24
    assert sum(1 for _ in way) == 230


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
    assert np.array_equal(pixels(out), expected_pixels(torch.stack(list(render_way(tiny_model, [a, c], 4)))))
    assert pixels(out).shape == (16, 64, 3)


def cells(path: Path, columns: int) -> list[list[np.ndarray]]:
    found = pixels(path)
    assert found.shape[1:] == (columns * 16, 3)
    return [np.hsplit(row, columns) for row in np.vsplit(found, len(found) // 16)]


@pytest.mark.parametrize("loop", [False, True])
def test_interpolate_command_strip_of_several_codes(
    codes: Path, tiny_model: Model, tmp_path: Path, loop: bool
) -> None:
    """A row from each code to the next, its ends the pictures of the codes."""
    out = tmp_path / "between.png"
    options = ["--steps", 4, "--out", out, "--model", tiny_model.path, "--json"]
    result = interpolate(codes, *options, *(["--loop"] if loop else []))
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["codes"] == [str(codes / f"{stem}.st") for stem in "abc"]
    assert record["images"] == (9 if loop else 7)
    rows = cells(out, 4)
    ends = [(0, 1), (1, 2), (2, 0)][: 3 if loop else 2]
    loaded = [load_code(codes / f"{stem}.st", tiny_model) for stem in "abc"]
    for row, both in zip(rows, ends, strict=True):
        way = torch.stack(list(render_way(tiny_model, [loaded[key] for key in both], 4)))
        difference = np.hstack(row).astype(int) - expected_pixels(way)
        assert np.abs(difference).max() <= 1


def test_interpolate_command_takes_paths_on_stdin(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    lines = "".join(f"{codes / stem}.st\n" for stem in "cab")
    options = ["--model", str(tiny_model.path), "--steps", "3", "--smooth", "--loop"]
    folder = tmp_path / "way"
    result = run.invoke(app, ["interpolate", *options, "--out", str(folder)], input=lines)
    assert result.exit_code == 0, result.stderr
    assert [Path(line).name for line in result.stdout.splitlines()] == [f"step-{i}.png" for i in range(6)]
    for index, stem in ((0, "c"), (2, "a"), (4, "b")):
        image = render(tiny_model, [load_code(codes / f"{stem}.st", tiny_model)])
        difference = pixels(folder / f"step-{index}.png").astype(int) - expected_pixels(image)
        assert np.abs(difference).max() <= 1
    film = tmp_path / "way.gif"
    assert run.invoke(app, ["interpolate", *options, "--out", str(film)], input=lines).exit_code == 0
    with Image.open(film) as opened:
        assert opened.n_frames == 6


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
    with pytest.raises(WranganError, match=re.escape(install_line("video"))):
        save_animation(tmp_path / "x.mp4", [Image.new("RGB", (16, 16))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.st", "b.st", "--steps", "1"], 2, "steps 1"),
        (["a.st"], 2, "1 code: expected 2 or more"),
        (["a.st", "b.st", "--side", "2"], 2, "side 2"),
        (["a.st", "b.st", "--steps", "2000", "--out", "x.webp"], 2, "the limit is 16383 per side"),
        (["a.st", "b.st", "--out", "a.st/x"], 1, "a.st"),
        (["a.st", "b.st", "other.st", "c.st"], 1, "other.st: made for another model"),
        (["a.st", "b.st", "--out", "x.avi"], 2, "images can be written as"),
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
    save_code(codes / "other.st", make_code(library.load_model(str(other_folder))))
    monkeypatch.chdir(codes)
    result = interpolate(*arguments, "--model", tiny_model.path)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
