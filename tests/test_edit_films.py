"""`wrangan edit` over ranges of strengths, as an animation."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.edit_cases import SIDE, SMILE, cells, codes, edit, photos, picture
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.editing import strips
from wrangan_cli.engine.editing.strips import Strip, Subject
from wrangan_cli.engine.editing.sweeps import Span, Sweep
from wrangan_cli.engine.models.codes import Code, load_code, render
from wrangan_cli.engine.models.folder import Model

__all__ = ["codes", "photos"]  # fixtures


def test_film_goes_there_and_back(codes: Path, photos: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "sweep.gif"
    options = ["--direction", "smile", "--strength", "-2:2", "--steps", "3", "--no-labels"]
    options += ["--originals", photos, "--fps", "5", "--out", out]
    result = edit(tiny_model, codes / "a.st", codes / "b.st", codes / "c.st", *options)
    assert result.exit_code == 0, result.stderr
    with Image.open(out) as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (4, (4 * SIDE, 2 * SIDE), 200)
        frames = []
        for index in range(4):
            film.seek(index)
            frames.append(cells(np.asarray(film.convert("RGB")), 4))
    for frame, strength in zip(frames, (-2, 0, 2, 0), strict=True):
        code = load_code(codes / "b.st", tiny_model)
        for cell, expected in (
            (frame[0][0], np.asarray(open_image(photos / "of-a.png", SIDE))),
            (frame[0][3], picture(tiny_model, code, (SMILE, strength))),
            (frame[1][2], np.full((SIDE, SIDE, 3), 255)),
        ):
            # 256 colours for all of a frame.
            assert np.abs(cell.astype(int) - expected).mean() < 12
    assert not np.array_equal(frames[0][0][3], frames[2][0][3])


def test_film_with_labels_has_one_size(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    subjects = [Subject(stem, load_code(codes / f"{stem}.st", tiny_model)) for stem in "abc"]
    strip = Strip(tiny_model, subjects, [Sweep(SMILE, Span(-1, 2))], 5, beside=True)
    frames = list(strips.render_film(strip, tmp_path / "x.gif"))
    assert {frame.size for frame in frames} == {strips.film_layout(strip).size}
    assert len(frames) == 5
    assert strips.images_in(strip) == 3 + 15


def test_images_are_drawn_as_frames_are_taken(
    codes: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    real = render

    def counted(model: Model, part: list[Code], side: int | None = None) -> torch.Tensor:
        drawn.append(len(part))
        return real(model, part, side)

    monkeypatch.setattr("wrangan_cli.engine.models.codes.render", counted)
    subject = Subject("a", load_code(codes / "a.st", tiny_model))
    told: list[int] = []
    film = strips.render_film(
        Strip(tiny_model, [subject], [Sweep(SMILE, Span(-1, 2))], 240), tmp_path / "x.gif", told.append
    )
    for _ in range(10):
        next(film)
    assert sum(drawn) <= 24
    assert sum(1 for _ in film) == 230
    assert sum(drawn) == 240
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 240)


def test_mp4(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "sweep.mp4"
    result = edit(tiny_model, codes / "a.st", "--direction", "age", "--strength", "3:-3", "--out", out)
    assert result.exit_code == 0, result.stderr
    with imageio.get_reader(out) as film:
        assert film.count_frames() == 12


def test_mp4_without_its_extra_is_said_first(
    codes: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr("wrangan_cli.engine.models.codes.render", lambda *_: pytest.fail("drawn in vain"))
    options = ["--direction", "smile", "--strength", "0:1", "--out", tmp_path / "x.mp4"]
    result = edit(tiny_model, codes / "a.st", *options)
    assert result.exit_code == 1
    assert install_line("video") in result.stderr
