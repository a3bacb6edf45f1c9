"""`wrangan invert` as a person runs it: folders, pipes, bad files, interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from typer.testing import CliRunner

from tests.conftest import write_photo
from wrangan_cli.app import app
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code

runner = CliRunner()
QUICK = ["--init", "mean", "--steps", "2", "--perceptual-weight", "0", "--device", "cpu"]


def invert(*arguments: object, model: Path, **kwargs: object):
    return runner.invoke(app, ["invert", "--model", str(model), *QUICK, *map(str, arguments)], **kwargs)  # type: ignore[arg-type]


def test_folder_prints_one_path_a_line(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    result = invert(photos, "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "codes" / f"{n}.st") for n in "abc"]
    code = load_code(tmp_path / "codes" / "a.st", load_model(str(tiny_folder)))
    info = code.info
    assert info["source"] == "a.png"
    assert info["method"] == "wrangan"
    assert info["seed"] == 0
    assert info["settings"]["steps"] == info["steps"] == 2
    assert set(info["distortion"]) == {"before", "after"}
    assert info["seconds"] > 0


def test_json_paths_on_stdin_and_skipping(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    lines = f"{photos / 'a.png'}\n\n{photos / 'b.jpg'}\n"
    out = tmp_path / "codes"
    first = invert("--out", out, "--json", model=tiny_folder, input=lines)
    assert first.exit_code == 0, first.stderr
    records = [json.loads(line) for line in first.stdout.splitlines()]
    assert [record["skipped"] for record in records] == [False, False]
    stamp = (out / "a.st").stat().st_mtime_ns
    second = invert(photos, "--out", out, "--json", model=tiny_folder)
    records = [json.loads(line) for line in second.stdout.splitlines()]
    assert {Path(record["path"]).name: record["skipped"] for record in records} == {
        "a.st": True,
        "b.st": True,
        "c.st": False,
    }
    assert (out / "a.st").stat().st_mtime_ns == stamp
    third = invert(photos / "a.png", "--out", out, "--overwrite", model=tiny_folder)
    assert third.exit_code == 0
    assert (out / "a.st").stat().st_mtime_ns != stamp


def test_other_settings_are_not_taken_for_done(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    invert(photos / "a.png", "--out", out, model=tiny_folder)
    before = (out / "a.st").read_bytes()
    result = invert(photos, "--out", out, "--alpha", "0.5", model=tiny_folder)
    assert result.exit_code == 1
    assert "a.st: made with alpha 0.1, not 0.5; use --overwrite" in result.stderr
    assert (out / "a.st").read_bytes() == before
    assert (out / "b.st").exists()


def _bad_photos(folder: Path) -> dict[str, str]:
    good = write_photo(folder / "good.png")
    folder.joinpath("empty.jpg").write_bytes(b"")
    folder.joinpath("text.jpg").write_text("not an image")
    data = write_photo(folder / "whole.jpg", side=80).read_bytes()
    folder.joinpath("truncated.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    good.rename(folder / "zz-good.png")
    return {"empty.jpg": "", "text.jpg": "", "truncated.jpg": "", "dot.png": ""}


def test_bad_photographs_are_named_and_the_others_done(tmp_path: Path, tiny_folder: Path) -> None:
    bad = _bad_photos(tmp_path / "photos")
    result = invert(tmp_path / "photos", "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    for name in bad:
        about = [line for line in lines if name in line]
        assert len(about) == 1, result.stderr
        assert about[0].startswith("wrangan: ")
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in (tmp_path / "codes").iterdir()) == ["whole.st", "zz-good.st"]


def test_odd_but_good_photographs(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "photos"
    base = Image.open(write_photo(tmp_path / "base.png", side=48))
    folder.mkdir()
    base.convert("L").save(folder / "grey.png")
    base.convert("RGBA").save(folder / "alpha.png")
    base.convert("CMYK").save(folder / "cmyk.jpg")
    base.convert("I;16").save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    base.save(folder / "turned.jpg", exif=exif)
    base.resize((20000, 40)).save(folder / "wide.png")
    result = invert(folder, "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "codes").iterdir())) == 6


def test_empty_folder_and_missing_path(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = invert(tmp_path / "empty", tmp_path / "nowhere", "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code in (1, 2)
    assert f"{tmp_path / 'empty'}: " in result.stderr
    assert f"{tmp_path / 'nowhere'}: " in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_two_photographs_for_one_code(tmp_path: Path, tiny_folder: Path) -> None:
    write_photo(tmp_path / "photos" / "a.png")
    write_photo(tmp_path / "photos" / "a.jpg", seed=1)
    result = invert(tmp_path / "photos", "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 1
    assert "a.png: would write" in result.stderr
    assert "a.jpg" in result.stderr
    assert [p.name for p in (tmp_path / "codes").iterdir()] == ["a.st"]


def test_broken_code_in_the_way_is_kept(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    out.mkdir()
    (out / "a.st").write_bytes(b"not safetensors")
    result = invert(photos, "--out", out, model=tiny_folder)
    assert result.exit_code == 1
    assert "a.st: not a readable safetensors file" in result.stderr
    assert (out / "a.st").read_bytes() == b"not safetensors"
    assert (out / "c.st").exists()


def test_output_cannot_be_written(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = invert(photos, "--out", tmp_path / "file" / "codes", model=tiny_folder)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "Not a directory" in result.stderr


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_full_disk(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wrangan_cli.engine.base.tensorfile.save_file", full)
    result = invert(photos, "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [name in line for name, line in zip("abc", lines, strict=True)] == [True] * 3
    assert all("not written" in line and "No space left on device" in line for line in lines)
    assert list((tmp_path / "codes").iterdir()) == []


def test_a_code_or_path_that_cannot_be_is_no_end(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    (out / "b.st").mkdir(parents=True)
    result = invert("x" * 300, photos, "--out", out, "--overwrite", model=tiny_folder)
    assert result.exit_code == 1
    assert [Path(line).name for line in result.stdout.splitlines()] == ["a.st", "c.st"]
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert "File name too long" in lines[0]
    assert "b.st: not written (Is a directory)" in lines[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "magic"], "'magic' is not one of 'wrangan', 'weight-tuning'"),
        (["--method", "encoder"], "method encoder has no setting steps: only wrangan, weight-tuning, "),
        (["--pti-lr", "0.1"], "method wrangan has no setting pti_lr: only pti has it"),
        (["--projection-lr", "0.1"], "no setting projection_lr: only sg2-w, sg2-w-plus have it"),
        (["--alpha", "nan"], "alpha nan"),
        (["--device", "toaster"], "toaster"),
        (["--batch", "0"], "batch"),
    ],
)
def test_usage_errors(
    options: list[str], words: str, photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    result = invert(photos, "--out", tmp_path / "codes", *options, model=tiny_folder)
    assert result.exit_code == 2
    assert words in result.stderr


def test_unknown_model_and_missing_encoder(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "codes")]
    result = invert(photos, *out, model=tmp_path / "no-model")
    assert result.exit_code == 2
    assert "neither a folder nor a bundled model" in result.stderr
    result = runner.invoke(app, ["invert", str(photos), "--model", str(tiny_folder), *out])
    assert result.exit_code == 2
    assert "has no encoder.safetensors" in result.stderr


def test_model_with_nan_weights(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    tensors, record = read_tensors(tiny_folder / "model.safetensors")
    tensors["generator.conv1.conv.weight"][0, 0, 0, 0, 0] = float("nan")
    write_tensors(tiny_folder / "model.safetensors", tensors, record)
    result = invert(photos, "--out", tmp_path / "codes", model=tiny_folder)
    assert result.exit_code == 1
    assert "conv1.conv.weight has values that are not finite" in result.stderr


def test_no_weights_for_the_metric(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRANGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = ["invert", str(photos), "--model", str(tiny_folder), "--init", "mean"]
    result = runner.invoke(app, [*arguments, "--perceptual", "lpips-vgg", "--out", str(tmp_path / "codes")])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for words in ("lpips-vgg", "vgg16", str(tmp_path), "st-lpips-alex"):
        assert words in result.stderr


def test_ctrl_c_keeps_what_is_done(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = Inverter.invert, []

    def interrupted(self, images: torch.Tensor, on_step=None):
        calls.append(images.shape[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, images, on_step)

    monkeypatch.setattr(Inverter, "invert", interrupted)
    out = tmp_path / "codes"
    result = invert(photos, "--out", out, "--batch", "1", model=tiny_folder)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert [p.name for p in out.iterdir()] == ["a.st"]
    again = invert(photos, "--out", out, "--batch", "1", "--json", model=tiny_folder)
    assert again.exit_code == 0
    assert [json.loads(line)["skipped"] for line in again.stdout.splitlines()] == [True, False, False]


def test_nothing_is_made_where_every_input_fails(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    result = invert(tmp_path / "photos", "--out", tmp_path / "deep" / "codes", model=tiny_folder)
    assert result.exit_code == 1
    assert not (tmp_path / "deep").exists()


def test_out_of_memory_halves_the_batch(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "aa.png").write_bytes(b"no image")  # named once, although its batch is tried twice
    write_photo(photos / "d.png", seed=3)
    whole, sizes = Inverter.invert, []

    def small_memory(self, images: torch.Tensor, on_step=None):
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")
        return whole(self, images, on_step)

    monkeypatch.setattr(Inverter, "invert", small_memory)
    out = tmp_path / "codes"
    result = invert(photos, "--out", out, "--batch", "5", model=tiny_folder)
    assert [Path(line).name for line in result.stdout.splitlines()] == ["a.st", "b.st", "c.st", "d.st"]
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert result.exit_code == 1  # for aa.png alone
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert "aa.png" in lines[0]
    assert lines[1] == "wrangan: out of memory with 4 photographs at a time: retrying with 2"
    assert lines[2] == "wrangan: out of memory with 2 photographs at a time: retrying with 1"


def test_out_of_memory_with_one_photograph(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(Inverter, "invert", no_memory)
    result = invert(photos, "--out", tmp_path / "codes", "--batch", "1", model=tiny_folder)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "wrangan: out of memory (tried to allocate another 2.00 GiB): give a smaller --batch"
    )
    assert not (tmp_path / "codes").exists()


def test_a_bug_in_the_loop_is_not_taken_for_lack_of_memory(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Inverter, "invert", broken)
    result = invert(photos, "--out", tmp_path / "codes", model=tiny_folder)
    assert isinstance(result.exception, RuntimeError)


def test_a_real_sigint(photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes"
    command = [sys.executable, "-m", "wrangan_cli", "invert", str(photos), "--out", str(out)]
    command += ["--model", str(tiny_folder), "--batch", "1", "--init", "mean", "--perceptual-weight", "0"]
    # Enough to do for a busy machine that is slow to send the signal: it is stopped after the first code.
    for index in range(60):
        write_photo(photos / f"z{index}.png", seed=index)
    command += ["--steps", "150", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    assert first.endswith("a.st")
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    load_code(Path(first), load_model(str(tiny_folder)))
    assert not list(out.glob(".*"))
