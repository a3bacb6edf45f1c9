"""`wrangan edit` over ranges of strengths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.code_files import LATENTS, make_code
from tests.edit_cases import AGE, SIDE, SMILE, cells, close, codes, edit, photos, picture, run
from wrangan_cli.app import app
from wrangan_cli.engine import library
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.data.image_reading import open_image
from wrangan_cli.engine.editing import strips
from wrangan_cli.engine.editing.directions import Move, directions_file, save_directions
from wrangan_cli.engine.editing.strips import Strip, Subject
from wrangan_cli.engine.editing.sweeps import Span, Sweep, parse_strength, strengths_of, swept
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

__all__ = ["codes", "photos"]  # fixtures


def test_parse_strength() -> None:
    assert parse_strength("-2.5") == -2.5
    assert parse_strength("-3:3") == Span(-3.0, 3.0)
    assert parse_strength("2:-.5") == Span(2.0, -0.5)
    for text in ("", "a", "1:", ":1", "1:2:3", "1-2"):
        with pytest.raises(UsageError, match="expected a number"):
            parse_strength(text)
    with pytest.raises(UsageError, match="with different ends"):
        parse_strength("1:1.0")


def test_strengths_are_evenly_spaced() -> None:
    assert strengths_of(Span(-3, 3), 7) == [-3, -2, -1, 0, 1, 2, 3]
    np.testing.assert_allclose(strengths_of(Span(2, -1), 5), np.linspace(2, -1, 5))
    assert strengths_of(Span(0.1, 0.7), 4)[-1] == 0.7
    with pytest.raises(UsageError, match="2 or more"):
        strengths_of(Span(0, 1), 1)


def test_single_strengths_hold_and_other_ranges_do_not(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    smile, age = Sweep(SMILE, Span(-1, 1)), Sweep(AGE, Span(0, 4))
    edits = [smile, Move(AGE, 2.0), age]
    ways = [[found.w for found in swept(code, edits, sweep, 3, LATENTS)] for sweep in (smile, age)]
    for step, w in enumerate(ways[0]):
        expected = code.w + 2 * 0.25 * AGE.vector + (step - 1) * 0.5 * SMILE.vector
        torch.testing.assert_close(w, expected)
    torch.testing.assert_close(ways[1][2], code.w + (2 + 4) * 0.25 * AGE.vector)
    assert (smile.label, age.label) == ("smile-1..+1", "age+0..+4")
    assert [sweep.outside_range for sweep in (smile, age)] == [False, True]


def test_strip_of_several_codes(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    options = [
        "--direction",
        "smile",
        "--strength",
        "-3:3",
        "--steps",
        5,
        "--no-labels",
        "--out",
        out,
        "--json",
    ]
    result = edit(tiny_model, codes, *options)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "path": str(out),
        "codes": [str(codes / f"{stem}.st") for stem in "abc"],
        "edits": [["smile", [-3.0, 3.0]]],
        "steps": 5,
    }
    found = cells(np.asarray(Image.open(out)), 5)
    assert len(found) == 3
    for row, stem in zip(found, "abc", strict=True):
        code = load_code(codes / f"{stem}.st", tiny_model)
        for cell, strength in zip(row, (-3, -1.5, 0, 1.5, 3), strict=True):
            assert close(cell, picture(tiny_model, code, (SMILE, strength)))
    assert not close(found[0][0], found[0][1])


def test_several_ranges_are_rows_of_each_code(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    options = ["--direction", "smile", "--strength", "-1:1", "--direction", "age", "--strength", "0:3"]
    options += ["--direction", "age", "--strength", "1", "--steps", "3", "--no-labels"]
    assert edit(tiny_model, codes / "a.st", codes / "b.st", *options, "--out", out).exit_code == 0
    found = cells(np.asarray(Image.open(out)), 3)
    rows = [(stem, way) for stem in "ab" for way in ((SMILE, (-1, 0, 1)), (AGE, (0, 1.5, 3)))]
    for row, (stem, (direction, strengths)) in zip(found, rows, strict=True):
        code = load_code(codes / f"{stem}.st", tiny_model)
        for cell, strength in zip(row, strengths, strict=True):
            assert close(cell, picture(tiny_model, code, (AGE, 1), (direction, strength)))


def test_folder_takes_a_strip_of_each_code(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    options = ["--direction", "smile", "--strength", "-3:3", "--direction", "age", "--strength", "0.5"]
    result = edit(tiny_model, "-", *options, "--out", out, stdin=f"{codes}\n")
    assert result.exit_code == 0, result.stderr
    names = [f"{stem}-smile-3..+3-age+0.5.png" for stem in "abc"]
    assert result.stdout.splitlines() == [str(out / name) for name in names]
    again = edit(tiny_model, codes / "b.st", *options, "--out", tmp_path / "one.png")
    assert again.exit_code == 0
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "one.png")), np.asarray(Image.open(out / names[1]))
    )


def test_labels_stand_around_the_same_pictures(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    options = ["--direction", "smile", "--strength", "-1:1", "--direction", "age", "--strength", "0:1"]
    options += ["--steps", "2"]
    assert edit(tiny_model, codes / "a.st", *options, "--out", tmp_path / "x.png").exit_code == 0
    assert (
        edit(tiny_model, codes / "a.st", *options, "--out", tmp_path / "y.png", "--no-labels").exit_code == 0
    )
    labelled = np.asarray(Image.open(tmp_path / "x.png"))
    windows = np.lib.stride_tricks.sliding_window_view(labelled, (SIDE, SIDE, 3))[:, :, 0]
    tops = []
    for row in cells(np.asarray(Image.open(tmp_path / "y.png")), 2):
        places = [np.argwhere((windows == cell).all(axis=(2, 3, 4))).tolist() for cell in row]
        (left,), (right,) = places
        assert left[0] == right[0]
        assert left[1] + SIDE < right[1]
        tops.append(left[0])
        assert (labelled[left[0] - 18 : left[0], left[1] - 4 :] < 128).any()  # the strengths, of each row
        assert (labelled[left[0] : left[0] + SIDE, : left[1] - 4] < 128).any()  # the direction
    assert tops == [18, 18 + SIDE + 2 + 18]


def test_titles_name_what_differs(tiny_model: Model) -> None:
    code, long = make_code(tiny_model), "a-very-long-name-of-a-photograph"
    smile, age = Sweep(SMILE, Span(-3, 3)), Sweep(AGE, Span(-3, 3))
    one, two = [Subject("a", code)], [Subject("a", code), Subject(long, code, Image.new("RGB", (16, 16)))]
    alone = strips.strip_layout(Strip(tiny_model, one, [smile], 4))
    assert (alone.row_titles, alone.column_titles) == ((), ["-3", "-1", "+1", "+3"])
    people = strips.strip_layout(Strip(tiny_model, two, [smile], 3, beside=True))
    assert people.row_titles == ["a", "a-very-long-name-of-a-p…"]
    assert people.cell_titles == [["inverted", "-3", "0", "+3"], ["photograph", "-3", "0", "+3"]]
    both = strips.strip_layout(Strip(tiny_model, two[:1], [smile, age], 7))
    assert (both.row_titles, both.column_titles[3]) == (["smile", "age"], "0")
    sheet = Strip(tiny_model, two, [smile, age], 4)
    assert strips.strip_layout(sheet).row_titles[:2] == ["a smile", "a age"]
    film = strips.film_layout(sheet)
    assert (film.rows, film.columns) == (2, 2)
    assert film.cell_titles[0] == ["a smile -3", "a age -3"]


def test_originals_stand_beside(codes: Path, photos: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "strip.png"
    options = [
        "--direction",
        "smile",
        "--strength",
        "1:2",
        "--steps",
        "2",
        "--no-labels",
        "--originals",
        photos,
    ]
    result = edit(tiny_model, codes, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    (remark,) = result.stderr.splitlines()
    assert f"{codes / 'c.st'}: no photograph of it in {photos}" in remark
    found = cells(np.asarray(Image.open(out)), 3)
    assert np.array_equal(found[0][0], np.asarray(open_image(photos / "of-a.png", SIDE)))
    assert np.array_equal(found[1][0], np.asarray(open_image(photos / "b.png", SIDE)))
    c = load_code(codes / "c.st", tiny_model)
    assert close(found[2][0], picture(tiny_model, c))
    assert close(found[2][2], picture(tiny_model, c, (SMILE, 2)))
    # Another file under the name of the record is said to be one.
    Image.new("RGB", (20, 20)).save(photos / "of-a.png")
    result = edit(tiny_model, codes / "a.st", *options, "--out", out)
    assert result.exit_code == 0
    assert "of-a.png: not the file from which" in result.stderr
    (photos / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = edit(tiny_model, codes / "b.st", *options, "--out", tmp_path / "none.png")
    assert result.exit_code == 1
    assert "b.png" in result.stderr
    assert not (tmp_path / "none.png").exists()


def test_side(codes: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrangan_cli.engine.data.images.MIN_SIDE", 4)
    code, out = load_code(codes / "a.st", tiny_model), tmp_path / "x.png"
    for strength, columns in (("2", [2.0]), ("1:2", [1.0, 2.0])):
        options = ["--direction", "age", "--strength", strength, "--no-labels", "--out", out]
        options += ["--steps", "2"] if len(columns) > 1 else []
        assert edit(tiny_model, codes / "a.st", *options, "--side", 4).exit_code == 0
        edited = [Code(code.w + s * 0.25 * AGE.vector, code.epsilon) for s in columns]
        blocks = render(tiny_model, edited).view(len(columns), 3, 4, 4, 4, 4).mean(dim=(3, 5))
        expected = ((blocks.clamp(-1, 1) + 1) * 127.5).round().permute(2, 0, 3, 1).reshape(4, -1, 3)
        assert close(np.asarray(Image.open(out)), expected.numpy().astype(int))
        result = edit(tiny_model, codes / "a.st", *options, "--side", 3)
        assert result.exit_code == 2
        assert "side 3: expected 4 px or more" in result.stderr


def test_one_picture_shows_codes_of_one_model(
    codes: Path, tiny_model: Model, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = library.load_model(str(other_folder))
    save_directions(directions_file(other), other, [SMILE])
    save_code(codes / "a0.st", make_code(other))
    (codes / "b.st").write_text("no code")
    models = {tiny_model.name: tiny_model.path, other.name: other.path}
    monkeypatch.setattr(model_folder, "bundled_models", lambda: models)
    options = ["--direction", "smile", "--strength", "0:1", "--steps", "2", "--no-labels"]
    result = run.invoke(app, ["edit", str(codes), *options, "--out", str(tmp_path / "x.png")])
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert (
        f"a0.st: made with the model {other.name}; one picture shows codes of one model, "
        f"here {tiny_model.name}" in lines[0]
    )
    assert "b.st: " in lines[1]
    assert Image.open(tmp_path / "x.png").size == (32, 32)  # a and c


def test_images_that_are_not_finite_are_not_written(tiny_model: Model, codes: Path, tmp_path: Path) -> None:
    code = make_code(tiny_model)
    save_code(codes / "bad.st", Code(code.w * 1e38, code.epsilon, info=code.info))
    options = ["--direction", "smile", "--strength", "0:1"]
    for name in ("x.png", "x.gif"):
        result = edit(tiny_model, codes / "bad.st", *options, "--out", tmp_path / name)
        assert result.exit_code == 1
        assert f"{name}: not written: an image has values that are not finite" in result.stderr
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "nan:1"], "strength nan of smile"),
        (["--strength", "1:inf"], "strength inf of smile"),
        (["--strength", "low:high"], "strength 'low:high'"),
        (["--strength", "2:2"], "with different ends"),
        (["--strength", "0:1", "--steps", "1"], "steps 1"),
        (["--strength", "0:1", "--save-code"], "--save-code"),
        (["--strength", "0:1", "--out", "x.avi"], "images can be written as"),
        (["--strength", "0:1", "--out", "x.gif", "--fps", "0"], "fps 0"),
        (["--strength", "0:1", "--out", "x.webp", "--steps", "2000"], "the limit is 16383 per side"),
        (["--strength", "0:1", "--out", "x.png", "--steps", "10000000"], "400 million in total"),
        (["--strength", "1", "--steps", "3"], "--steps needs a range"),
        (["--strength", "1", "--originals", "."], "--originals needs a range"),
        (["--strength", "1", "--out", "x.gif"], "x.gif: an animation needs a range"),
        (["--strength", "0:1", "--direction", "frown", "--strength", "1"], "there are: smile, age"),
    ],
)
def test_usage_errors(
    codes: Path,
    tiny_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = edit(tiny_model, codes / "a.st", "--direction", "smile", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert [path.name for path in tmp_path.glob("x.*")] == []


def test_a_range_beyond_what_is_sensible_is_remarked(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    options = ["--direction", "smile", "--strength", "0:5", "--steps", "2"]
    result = edit(tiny_model, codes, *options, "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == ["wrangan: smile+0..+5 is outside the sensible range -3…3"]


def test_strip_without_a_range_is_a_fault_of_the_caller(tiny_model: Model) -> None:
    with pytest.raises(ValueError, match="no range"):
        Strip(tiny_model, [Subject("a", make_code(tiny_model))], [Move(SMILE, 1.0)], 3)
