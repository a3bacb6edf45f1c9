"""Edits of codes and `wrangan edit`."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.code_files import LATENTS, expected_pixels, make_code, pixels, write_codes
from wrangan_cli.app import app
from wrangan_cli.engine import library
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    directions_file,
    edit_code,
    save_directions,
    unit,
)
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.codes import load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

run = CliRunner()


def make_direction(name: str, seed: int, **changes: object) -> Direction:
    vector = unit(torch.randn(16, generator=torch.Generator().manual_seed(seed)))
    return Direction(name, vector, **{"std": 0.5, **changes})  # type: ignore[arg-type]


SMILE = make_direction("smile", 1)
AGE = make_direction("age", 2, std=0.25)
FINE = make_direction("fine", 3, layers=(1, 4))


@pytest.fixture
def codes(tiny_model: Model, tmp_path: Path) -> Path:
    """A folder of three codes a, b (W) and c (W+); the model has the directions above."""
    save_directions(directions_file(tiny_model), tiny_model, [SMILE, AGE, FINE])
    return write_codes(tmp_path / "codes", tiny_model)


def test_edit_in_w(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    edited = edit_code(code, [Move(SMILE, 3.0), Move(AGE, -2.0)], LATENTS)
    expected = code.w.numpy() + 3 * 0.5 * SMILE.vector.numpy() - 2 * 0.25 * AGE.vector.numpy()
    np.testing.assert_allclose(edited.w.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert edited.epsilon == code.epsilon  # the same tensors
    assert edited.info["edits"] == [
        {"direction": "smile", "strength": 3.0},
        {"direction": "age", "strength": -2.0},
    ]
    assert "distortion" not in edited.info
    assert "distortion" in code.info
    assert edit_code(edited, [Move(AGE, 1.0)], LATENTS).info["edits"][2]["direction"] == "age"


def test_edit_in_w_plus(tiny_model: Model) -> None:
    code = make_code(tiny_model, w_plus=True)
    before = code.w.clone()
    edited = edit_code(code, [Move(SMILE, 2.0)], LATENTS)
    torch.testing.assert_close(edited.w - code.w, SMILE.vector.expand(LATENTS, -1), rtol=0, atol=1e-6)
    assert torch.equal(code.w, before)


def test_edit_of_some_layers(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    edited = edit_code(code, [Move(FINE, 2.0)], LATENTS)
    expected = code.w.expand(LATENTS, -1).clone()
    expected[1] += FINE.vector
    expected[4] += FINE.vector
    torch.testing.assert_close(edited.w, expected)
    with pytest.raises(UsageError, match="beyond the 6 rows"):
        edit_code(code, [Move(make_direction("x", 1, layers=(6,)), 1.0)], LATENTS)


def test_strength_zero_changes_nothing(tiny_model: Model) -> None:
    code = make_code(tiny_model)
    assert torch.equal(edit_code(code, [Move(SMILE, 0.0)], LATENTS).w, code.w)


def edit(*arguments: object, stdin: str | None = None):  # type: ignore[no-untyped-def]
    return run.invoke(app, ["edit", *map(str, arguments)], input=stdin)


def test_edit_command_writes_one_file(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "a-smile.png"
    result = edit(
        codes / "a.st", "--direction", "smile", "--strength", 3, "--out", out, "--model", tiny_model.path
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(out)]
    assert result.stderr == ""
    code = load_code(codes / "a.st", tiny_model)
    expected = render(tiny_model, [edit_code(code, [Move(SMILE, 3.0)], LATENTS)])
    assert np.array_equal(pixels(out), expected_pixels(expected))


def test_edit_command_takes_folders_files_and_stdin(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    options = ["--direction", "smile", "--strength", "2.5", "--direction", "fine", "--strength", "-2"]
    options += ["--out", out, "--model", tiny_model.path]
    expected = [str(out / f"{stem}-smile+2.5-fine-2.png") for stem in "abc"]
    assert edit(codes, *options).stdout.splitlines() == expected
    first = pixels(Path(expected[2]))
    assert edit(codes / "c.st", codes / "a.st", *options).stdout.splitlines() == [expected[2], expected[0]]
    assert edit(*options, stdin=f"{codes / 'b.st'}\n{codes / 'a.st'}\n").stdout.splitlines() == [
        expected[1],
        expected[0],
    ]
    assert edit("-", *options, stdin=f"{codes}\n").stdout.splitlines() == expected
    assert np.array_equal(first, pixels(Path(expected[2])))


def test_edit_command_json_and_saved_code(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    options = ["--direction", "age", "--strength", "-2", "--model", tiny_model.path, "--save-code", "--json"]
    out = tmp_path / "edited"
    for _ in range(2):
        result = edit(codes / "a.st", *options, "--out", out)
        assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(record["path"]).name for record in records] == ["a-age-2.png", "a-age-2.st"]
    assert records[0]["edits"] == [["age", -2.0]]
    saved = load_code(out / "a-age-2.st", tiny_model)
    original = load_code(codes / "a.st", tiny_model)
    torch.testing.assert_close(saved.w, original.w - 0.5 * AGE.vector)
    assert all(torch.equal(saved.epsilon[name], value) for name, value in original.epsilon.items())


def test_saved_code_never_replaces_an_original(codes: Path, tiny_model: Model) -> None:
    before = (codes / "a.st").read_bytes()
    options = ["--direction", "age", "--strength", "1", "--model", tiny_model.path, "--save-code"]
    result = edit(codes / "b.st", *options, "--out", codes / "a.png")
    assert result.exit_code == 1
    assert "a.st: not overwritten" in result.stderr
    assert (codes / "a.st").read_bytes() == before
    assert not (codes / "a.png").exists()


def test_edit_command_takes_directions_of_a_file(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    other = tmp_path / "mine.safetensors"
    save_directions(other, tiny_model, [make_direction("grin", 9)])
    options = [
        "--strength",
        "1",
        "--model",
        tiny_model.path,
        "--directions",
        other,
        "--out",
        tmp_path / "x.png",
    ]
    assert edit(codes / "a.st", "--direction", "grin", *options).exit_code == 0
    result = edit(codes / "a.st", "--direction", "smile", *options)
    assert result.exit_code == 2
    assert "mine.safetensors; there are: grin" in result.stderr


@pytest.mark.parametrize(("content", "cause"), [(b"junk", "not a readable"), (None, "no such file")])
def test_a_bad_file_of_directions_is_said_once(
    content: bytes | None, cause: str, codes: Path, tiny_model: Model, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "bad.safetensors").write_bytes(content)
    options = ["--model", tiny_model.path, "--directions", tmp_path / "bad.safetensors"]
    result = edit(codes, "--direction", "grin", "--strength", 1, *options, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"wrangan: {tmp_path / 'bad.safetensors'}: {cause}")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(("content", "cause"), [(b"junk", "not a readable"), (None, "no such file")])
def test_a_bad_file_of_directions_is_said_once_for_several_models(
    content: bytes | None,
    cause: str,
    form: str,
    codes: Path,
    tiny_model: Model,
    other_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {"tiny": tiny_model.path, "other": other_folder}
    monkeypatch.setattr(model_folder, "bundled_models", lambda: folders)
    save_code(codes / "d.st", make_code(library.load_model("other")))
    bad = tmp_path / unicodedata.normalize(form, "für.safetensors")
    if content is not None:
        bad.write_bytes(content)
    options = ["--direction", "smile", "--strength", 1, "--out", tmp_path / "out"]
    result = edit(codes, *options, "--directions", bad)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"wrangan: {bad}: {cause}")
    # One that suits one of the models is no fault of it: the code of the other is named.
    suits = directions_file(tiny_model).rename(tmp_path / unicodedata.normalize(form, "mär.safetensors"))
    result = edit(codes, *options, "--directions", suits)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"wrangan: {codes / 'd.st'}: {suits}: made for another model")


@pytest.mark.parametrize("name", ["tiny", DEFAULT_MODEL])
def test_codes_name_their_bundled_model(
    codes: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Under the name that the code states, or as the default model with the same weights."""
    monkeypatch.setattr(model_folder, "bundled_models", lambda: {name: tiny_model.path})
    result = edit(codes / "a.st", "--direction", "smile", "--strength", 1, "--out", tmp_path / "x.png")
    assert result.exit_code == 0, result.stderr


def test_code_of_a_model_that_is_not_bundled(
    codes: Path, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "bundled_models", lambda: {DEFAULT_MODEL: other_folder})
    result = edit(codes / "a.st", "--direction", "smile", "--strength", 1, "--out", tmp_path / "x.png")
    assert result.exit_code == 1
    assert (
        "a.st: made with the model 'tiny', which is not bundled: give its folder as --model" in result.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--direction", "smile", "--strength", "nan"], "strength nan of smile"),
        (["--direction", "smile", "--strength", "-inf"], "strength -inf of smile"),
        (["--direction", "frown", "--strength", "1"], "there are: smile, age, fine"),
        (["--direction", "smile"], "one strength for each"),
        (["--strength", "1"], "no direction given"),
        (["--direction", "smile", "--strength", "1", "--out", "x.tga"], "images can be written as"),
        (["--direction", "smile", "--strength", "1", "--model", "nowhere"], "model 'nowhere'"),
        (["--direction", "smile", "--strength", "1", "--device", "toaster"], "device 'toaster'"),
    ],
)
def test_edit_usage_errors(codes: Path, tiny_model: Model, arguments: list[str], message: str) -> None:
    result = edit(codes / "a.st", "--model", tiny_model.path, *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_many_codes_and_one_output_file(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    options = ["--direction", "smile", "--strength", "1", "--model", tiny_model.path]
    result = edit(codes, *options, "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "there are 3 codes" in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_strength_out_of_range_is_remarked(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    options = ["--direction", "smile", "--strength", "20", "--model", tiny_model.path]
    result = edit(codes / "a.st", codes / "b.st", *options, "--out", tmp_path)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == ["wrangan: smile+20 is outside the sensible range -3…3"]


def test_bad_codes_are_named_and_the_others_done(
    codes: Path, tiny_model: Model, other_folder: Path, tmp_path: Path
) -> None:
    (codes / "a0.st").write_bytes((codes / "a.st").read_bytes()[:900])
    (codes / "a1.st").write_text("not a code")
    (codes / "a2.st").write_bytes(b"")
    other = library.load_model(str(other_folder))
    save_code(codes / "a3.st", make_code(other))
    shutil.copy(directions_file(tiny_model), codes / "a4.st")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "again").mkdir()
    shutil.copy(codes / "b.st", tmp_path / "again" / "b.st")
    inputs = [codes, tmp_path / "gone.st", empty, tmp_path / "again" / "b.st"]
    options = [
        "--direction",
        "smile",
        "--strength",
        "1",
        "--model",
        tiny_model.path,
        "--out",
        tmp_path / "out",
    ]
    result = edit(*inputs, *options)
    assert result.exit_code == 1
    assert [Path(line).name for line in result.stdout.splitlines()] == [f"{s}-smile+1.png" for s in "abc"]
    lines = result.stderr.splitlines()
    causes = {
        "a0.st": "not a readable safetensors file",
        "a1.st": "not a readable safetensors file",
        "a2.st": "not a readable safetensors file",
        "a3.st": "another model (other",
        "a4.st": "not a code",
        "gone.st": "no such file",
        "empty": "no codes (.st) in it",
        "b.st": "already the edit of",
    }
    assert len(lines) == len(causes)
    for line, (name, cause) in zip(lines, causes.items(), strict=True):
        assert f"{name}: " in line
        assert cause in line


def test_output_that_cannot_be_written(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    options = ["--direction", "smile", "--strength", "1", "--model", tiny_model.path]
    result = edit(codes / "a.st", codes / "b.st", *options, "--out", tmp_path / "file")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    assert (tmp_path / "file").read_text() == "kept"
