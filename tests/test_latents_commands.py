"""`wrangan import-latents` and `export-latents`: files in and out, names, photographs, what is said."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.code_files import make_code, write_codes
from tests.conftest import write_photo
from tests.latent_files import DIM, ROWS, numbers, nvidia, restyle, rosinality, written
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.editing.directions import Direction, directions_file, save_directions, unit
from wrangan_cli.engine.inversion.folder import Job, stored_code
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.models.codes import as_w_plus, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

run = CliRunner()


def call(command: str, *arguments: object, stdin: str | bytes | None = None) -> Result:
    return run.invoke(app, [command, *map(str, arguments)], input=stdin)


def near_w(model: Model, *shape: int) -> np.ndarray:
    """Latents as near the mean of W as random w are."""
    offset = numbers(*shape) * model.w_std / DIM**0.5
    return (model.w_mean.numpy() + offset).astype(np.float32)


@pytest.fixture
def to_tiny(tiny_model: Model, tmp_path: Path) -> list[object]:
    return ["--model", tiny_model.path, "--out", tmp_path / "codes"]


def test_codes_that_the_other_commands_take(
    tiny_model: Model, tmp_path: Path, photos: Path, to_tiny: list[object]
) -> None:
    latents = {"a.png": near_w(tiny_model, ROWS, DIM), "b.jpg": near_w(tiny_model, ROWS, DIM) * 0.9}
    file = restyle(tmp_path / "latents.npy", latents)
    result = call("import-latents", file, "--photo", photos, *to_tiny, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    codes = tmp_path / "codes"
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "path": str(codes / f"{photo.stem}.st"),
            "file": str(file),
            "key": photo.name,
            "shape": [ROWS, DIM],
            "photo": str(photo),
            "skipped": False,
        }
        for photo in (photos / "a.png", photos / "b.jpg")
    ]
    code = load_code(codes / "a.st", tiny_model)
    assert np.array_equal(code.w.numpy(), latents["a.png"])
    assert code.info["source"] == "a.png"
    assert code.info["source_sha256"] == sha256(photos / "a.png")
    assert code.info["imported"]["file_sha256"] == sha256(file)
    # evaluate: the mean squared error is that of the photographs and the images of these w.
    (photos / "c.webp").unlink()
    options = ["--model", tiny_model.path, "--codes", codes, "--photos", photos, "--metric", "mse"]
    measured = call("evaluate", *options, "--json")
    assert (measured.exit_code, measured.stderr) == (0, "")
    errors = [
        (render(tiny_model, [load_code(codes / f"{p.stem}.st")])[0].clamp(-1, 1) - load_image(p, 16)).square()
        for p in (photos / "a.png", photos / "b.jpg")
    ]
    expected = float(torch.stack(errors).mean())
    assert json.loads(measured.stdout)["value"] == pytest.approx(expected, rel=1e-5)
    # What is read from an inversion's record is not there.
    told = call("evaluate", *options[:-1], "seconds")
    assert told.exit_code == 1
    assert "a.st: seconds: its record has no seconds (imported)" in told.stderr
    way = Direction("grin", unit(torch.ones(DIM)), 0.5)
    save_directions(directions_file(tiny_model), tiny_model, [way])
    options = ["--model", tiny_model.path, "--direction", "grin", "--strength", 2, "--save-code"]
    edited = call("edit", codes / "a.st", *options, "--out", tmp_path / "a-grin.png")
    assert (edited.exit_code, edited.stderr) == (0, "")
    moved = load_code(tmp_path / "a-grin.st", tiny_model).w - code.w
    torch.testing.assert_close(moved, way.vector.expand(ROWS, DIM), rtol=0, atol=1e-5)
    between = tmp_path / "between.png"
    options = [codes / "a.st", codes / "b.st", "--model", tiny_model.path]
    assert call("interpolate", *options, "--out", between).exit_code == 0
    assert between.is_file()


def test_without_a_photograph_the_code_says_so(
    tiny_model: Model, tmp_path: Path, to_tiny: list[object]
) -> None:
    result = call("import-latents", nvidia(tmp_path / "anna", near_w(tiny_model, 1, 1, DIM)), *to_tiny)
    assert result.stdout.splitlines() == [str(tmp_path / "codes" / "anna.st")]
    assert result.stderr == ""
    code = load_code(tmp_path / "codes" / "anna.st", tiny_model)
    assert code.w.shape == (DIM,)
    assert code.info["source"] is None
    assert "source_sha256" not in code.info
    assert code.info["method"] == "import"


def test_one_photograph_names_the_code_of_one_latent(
    tiny_model: Model, tmp_path: Path, photos: Path, to_tiny: list[object]
) -> None:
    file = nvidia(tmp_path / "x", near_w(tiny_model, 1, 1, DIM))
    result = call("import-latents", file, "--photo", photos / "b.jpg", *to_tiny)
    assert result.stdout.splitlines() == [str(tmp_path / "codes" / "b.st")]
    assert load_code(tmp_path / "codes" / "b.st").info["source"] == "b.jpg"
    named = ["--model", tiny_model.path, "--out", tmp_path / "other.st"]
    assert call("import-latents", file, "--photo", photos / "b.jpg", *named).exit_code == 0
    assert load_code(tmp_path / "other.st").info["source"] == "b.jpg"
    many = written(tmp_path / "many.npy", near_w(tiny_model, 2, ROWS, DIM))
    refused = call("import-latents", many, *named, "--overwrite")
    assert refused.exit_code == 2
    assert (
        refused.stderr
        == f"wrangan: {tmp_path / 'other.st'} is one code, but there are 2 latents: give a folder as --out\n"
    )


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_photographs_are_found_in_either_form_of_a_name(
    tiny_model: Model, tmp_path: Path, to_tiny: list[object], forms: tuple[str, str]
) -> None:
    here, there = (unicodedata.normalize(form, "zoë") for form in forms)
    assert here != there
    photo = write_photo(tmp_path / "photos" / f"{here}.png")
    file = restyle(tmp_path / "latents.npy", {f"{there}.jpg": near_w(tiny_model, ROWS, DIM)})
    result = call("import-latents", file, "--photo", photo.parent, *to_tiny, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["photo"] == str(photo)


def test_photographs_that_are_not_there_or_not_sure(
    tiny_model: Model, tmp_path: Path, photos: Path, to_tiny: list[object]
) -> None:
    write_photo(photos / "a.jpg")
    (photos / "c.webp").write_bytes(b"broken")
    w = near_w(tiny_model, ROWS, DIM)
    file = restyle(tmp_path / "latents.npy", {f"{name}.jpg": w for name in ("x", "b", "a", "y", "c")})
    result = call("import-latents", file, "--photo", photos, *to_tiny)
    assert result.exit_code == 1
    assert [Path(line).name for line in result.stdout.splitlines()] == ["x.st", "b.st", "y.st"]
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(f"{photos / 'a.jpg'}: shares its name with a.png: which one belongs to a?")
    assert str(photos / "c.webp") in lines[1]
    assert lines[2] == (
        f"wrangan: no photograph of that name in {photos}: x, y (their codes are written without one)"
    )


def test_what_cannot_be_read_is_named_and_the_rest_done(
    tiny_model: Model, tmp_path: Path, to_tiny: list[object]
) -> None:
    folder = tmp_path / "in"
    w = near_w(tiny_model, ROWS, DIM)
    written(folder / "good.npy", w)
    written(folder / "large.npy", numbers(18, DIM))
    (folder / "notes.txt").write_text("no latents")
    (folder / ".hidden.npy").write_bytes(b"")
    rosinality(folder / "noisy.pt", {"n.jpg": w, "m.jpg": w}, sides=[4, 8, 8])
    written(folder / "far.pt", torch.from_numpy(w) * 100)
    (tmp_path / "empty").mkdir()
    result = call("import-latents", folder, tmp_path / "empty", tmp_path / "gone.npy", *to_tiny)
    assert result.exit_code == 1
    assert [Path(line).stem for line in result.stdout.splitlines()] == ["far", "good", "n", "m"]
    lines = result.stderr.splitlines()
    assert len(lines) == 5
    for part in (
        f"{folder / 'large.npy'}: its latent has 18 rows; W+ of tiny has {ROWS}",
        f"{tmp_path / 'empty'}: no latents (.npz, .npy, .pt, .pth) in it",
        f"{tmp_path / 'gone.npy'}: no such file",
        "these do not look like latents of tiny, or were optimised far away from its W: "
        f"{folder / 'far.pt'}; their squared distance",
        f"noise maps of {folder / 'noisy.pt'} are left out: their sides are 4 8 8, those of tiny 4 8 8 16 16",
    ):
        assert sum(line.startswith(f"wrangan: {part}") for line in lines) == 1


def test_names_in_a_file_stay_in_the_folder_and_apart(
    tiny_model: Model, tmp_path: Path, to_tiny: list[object]
) -> None:
    w = near_w(tiny_model, ROWS, DIM)
    keys = ["../../up.jpg", str(tmp_path / "absolute.jpg"), "up.png", "UP.jpg"]
    file = restyle(tmp_path / "latents.npy", dict.fromkeys(keys, w))
    result = call("import-latents", file, *to_tiny)
    assert result.exit_code == 1
    codes = tmp_path / "codes"
    assert sorted(codes.iterdir()) == [codes / "absolute.st", codes / "up.st"]
    assert not list(tmp_path.parent.glob("up*"))
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert f"latents.npy: not imported: {codes / 'up.st'} is already the code of {file}" in lines[0]


def test_nothing_is_overwritten_unasked(
    tiny_model: Model, tmp_path: Path, photos: Path, to_tiny: list[object]
) -> None:
    file = written(tmp_path / "a.npy", near_w(tiny_model, ROWS, DIM))
    target = tmp_path / "codes" / "a.st"
    save_code(target, make_code(tiny_model))
    before = target.read_bytes()
    result = call("import-latents", file, *to_tiny)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{target}: not overwritten" in result.stderr
    assert target.read_bytes() == before
    assert call("import-latents", file, *to_tiny, "--overwrite").exit_code == 0
    done = target.read_bytes()
    assert done != before
    again = call("import-latents", file, *to_tiny, "--json")
    assert json.loads(again.stdout)["skipped"] is True
    assert target.read_bytes() == done
    # With a photograph it is another code, and `invert` takes none of them for its own.
    assert call("import-latents", file, "--photo", photos / "a.png", *to_tiny).exit_code == 1
    assert call("import-latents", file, "--photo", photos / "a.png", *to_tiny, "--overwrite").exit_code == 0
    found = stored_code(Job(photos / "a.png", target), tiny_model, inversion_settings())
    assert isinstance(found, FileError)
    assert "imported from another tool" in str(found)


def test_z(tiny_model: Model, tmp_path: Path, to_tiny: list[object]) -> None:
    file = written(tmp_path / "z.npy", numbers(1, DIM))
    assert call("import-latents", file, "--space", "z", *to_tiny).exit_code == 0
    code = load_code(tmp_path / "codes" / "z.st", tiny_model)
    torch.testing.assert_close(code.w, tiny_model.generator.mapping(torch.from_numpy(numbers(1, DIM)))[0])
    assert code.info["imported"]["space"] == "z"


def test_paths_come_and_go_byte_for_byte(tiny_model: Model, tmp_path: Path, to_tiny: list[object]) -> None:
    file = written(tmp_path / "with\nline end.npy", near_w(tiny_model, DIM))
    result = call("import-latents", *to_tiny, "-0", stdin=os.fsencode(file) + b"\0")
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == os.fsencode(tmp_path / "codes" / "with\nline end.st") + b"\0"
    exported = call(
        "export-latents", "--model", tiny_model.path, "--out", tmp_path / "x", "-0", stdin=result.stdout_bytes
    )
    assert exported.exit_code == 0, exported.stderr
    assert exported.stdout_bytes == os.fsencode(tmp_path / "x" / "with\nline end.npz") + b"\0"


@pytest.fixture
def codes(tiny_model: Model, tmp_path: Path) -> Path:
    """a (W, with ε), b (W), c (W+, with ε)."""
    return write_codes(tmp_path / "ours", tiny_model)


@pytest.mark.parametrize("form", ["npz", "npy", "pt"])
def test_round_trip(codes: Path, tiny_model: Model, tmp_path: Path, to_tiny: list[object], form: str) -> None:
    out = tmp_path / "theirs"
    result = call("export-latents", codes, "--to", form, "--out", out, "--model", tiny_model.path, "--json")
    assert result.exit_code == 0
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["path"] for record in records] == [str(out / f"{name}.{form}") for name in "abc"]
    assert [record["left_out"] for record in records] == [["ε"], [], ["ε"]]
    assert result.stderr.splitlines() == [
        "wrangan: left out, so images rendered by other tools will differ: ε of a.st, c.st"
    ]
    assert call("import-latents", out, *to_tiny).exit_code == 0
    for name in "abc":
        ours, back = load_code(codes / f"{name}.st"), load_code(tmp_path / "codes" / f"{name}.st", tiny_model)
        assert torch.equal(back.w, ours.w)
        assert not back.epsilon


def test_export_of_one_file(codes: Path, tiny_model: Model, tmp_path: Path) -> None:
    base: list[Any] = ["--model", tiny_model.path, "--out", tmp_path / "projected_w.npz"]
    result = call("export-latents", codes / "b.st", *base)
    assert (result.exit_code, result.stderr) == (0, "")
    w = load_code(codes / "b.st").w
    with np.load(tmp_path / "projected_w.npz") as held:
        assert np.array_equal(held["w"][0], as_w_plus(w, ROWS).numpy())
    before = (tmp_path / "projected_w.npz").read_bytes()
    again = call("export-latents", codes / "b.st", *base, "--json")
    assert (again.exit_code, json.loads(again.stdout)["skipped"]) == (0, True)
    other = call("export-latents", codes / "a.st", *base)
    assert other.exit_code == 1
    assert "not overwritten" in other.stderr
    assert (tmp_path / "projected_w.npz").read_bytes() == before
    assert call("export-latents", codes / "a.st", *base, "--overwrite").exit_code == 0
    assert (tmp_path / "projected_w.npz").read_bytes() != before
    for words, message in (
        ([codes, *base], "is one file, but there are 3 codes"),
        ([codes / "a.st", "--to", "pt", *base], "is not a .pt file"),
    ):
        refused = call("export-latents", *words)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_export_names_what_failed(codes: Path, tiny_model: Model, tmp_path: Path, other_folder: Path) -> None:
    save_code(tmp_path / "more" / "a.st", make_code(tiny_model, 7, epsilon=False))
    (codes / "bad.st").write_bytes(b"junk")
    out = tmp_path / "x"
    result = call(
        "export-latents", codes, tmp_path / "more" / "a.st", "--model", tiny_model.path, "--out", out
    )
    assert result.exit_code == 1
    assert [Path(line).name for line in result.stdout.splitlines()] == ["a.npz", "b.npz", "c.npz"]
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"wrangan: {codes / 'bad.st'}: ")
    assert f"not exported: {out / 'a.npz'} is already the latent of {codes / 'a.st'}" in lines[1]
    refused = call("export-latents", codes / "a.st", "--model", other_folder, "--out", out)
    assert refused.exit_code == 1
    assert "made for another model" in refused.stderr
