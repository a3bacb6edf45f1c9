"""`wrangan train …` end to end on a handful of tiny pictures: from nothing to an edited photograph."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import write_photo
from tests.fakes import fake_perceptual
from wrangan_cli.app import app
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.encoders import load_encoder, read_encoder
from wrangan_cli.engine.models.folder import load_discriminator, save_model
from wrangan_cli.engine.training.snapshots import list_snapshots, save_snapshot

runner = CliRunner()
SHORT = ["--images", "16", "--batch", "4", "--snapshot-images", "8", "--device", "cpu"]


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures and a text file named .jpg; the cache of decoded images is kept apart."""
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    for seed in range(8):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    (tmp_path / "faces" / "broken.jpg").write_text("no image")
    return tmp_path / "faces"


def run(*arguments: object) -> list[str]:
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_generator_then_randomize(faces: Path, tmp_path: Path) -> None:
    shape = ["--resolution", "16", "--channels", "8,8,8", "--style-dim", "8", "--mapping-layers", "2"]
    out = tmp_path / "g"
    assert run("train", "generator", "--data", faces, "--out", out, *shape, *SHORT) == [str(out / "model")]
    model = load_model(str(out / "model"))
    assert model.resolution == 16
    assert not model.generator.random_weights()
    for name in ("settings.json", "stats.jsonl", "grid-0000000016.png"):
        assert (out / name).is_file()
    assert list(out.glob("events.out.tfevents.*"))
    assert len(list_snapshots(out)) == 2
    # A longer run goes on from the snapshot.
    run("train", "generator", "--data", faces, "--out", out, *shape, *SHORT, "--images", "24")
    assert list_snapshots(out)[-1].name == "snapshot-0000000024.pt"

    random = tmp_path / "r"
    run(
        "train",
        "randomize",
        "--data",
        faces,
        "--out",
        random,
        "--model",
        out / "model",
        "--layers",
        "2",
        "--std-form",
        "log",
        *SHORT,
    )
    randomized = load_model(str(random / "model"))
    layers = randomized.generator.random_weights()
    assert list(layers) == ["convs.2", "convs.3"]
    assert all(conv.std is not None and not torch.all(conv.std == 1) for conv in layers.values())
    load_discriminator(random / "model", randomized.generator.config)


def test_generator_from_another_model(faces: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """Its sizes and weights, σ left out; D is that of the model, or missing by name."""
    start = load_model(str(tiny_folder))
    base = ["train", "generator", "--data", faces, "--out", tmp_path / "g", "--model", tiny_folder]
    (tiny_folder / "discriminator.safetensors").unlink()
    line = runner.invoke(app, list(map(str, [*base, *SHORT])))
    assert line.exit_code == 1
    assert "discriminator.safetensors" in line.stderr
    discriminator = Discriminator(start.generator.config)
    save_model(tiny_folder, start.generator, discriminator, perceptual=start.perceptual)
    run(*base, *SHORT, "--images", "4", "--lr", "1e-9", "--style-dim", "16")
    model = load_model(str(tmp_path / "g" / "model"))
    assert model.generator.config == dataclasses.replace(start.generator.config, randomized_layers=0)
    assert model.perceptual == start.perceptual
    given = start.generator.state_dict()
    for name, value in model.generator.state_dict().items():
        torch.testing.assert_close(value, given[name], atol=1e-6, rtol=1e-6)
    other = runner.invoke(app, list(map(str, [*base, *SHORT, "--style-dim", "8"])))
    assert (other.exit_code, other.stderr) == (
        2,
        "wrangan: style_dim 8: the model to start from has 16\n",
    )


def test_broken_picture_is_named(faces: Path, tmp_path: Path) -> None:
    arguments = ["train", "generator", "--data", faces, "--out", tmp_path / "g", "--resolution", "16"]
    arguments += ["--channels", "8,8,8", "--style-dim", "8", *SHORT, "--images", "4"]
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0
    assert "; left out" in result.stderr


def test_encoder_is_installed_and_used(
    faces: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fakes import fake_perceptual

    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", lambda *_: fake_perceptual())
    body = ["--widths", "8,8", "--blocks", "1,1", "--input-side", "16"]
    out = tmp_path / "e"
    lines = run(
        "train", "encoder", "--data", faces, "--out", out, "--model", tiny_folder, *body, *SHORT, "--install"
    )
    assert lines == [str(tiny_folder / "encoder.safetensors"), str(out / "encoder.safetensors")]
    encoder = load_encoder(load_model(str(tiny_folder)))
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, 16)
    (code,) = run(
        "invert", faces / "0.png", "--model", tiny_folder, "--out", tmp_path / "codes", "--steps", "2"
    )
    assert Path(code).is_file()
    # Another one goes on from it, whatever sizes are the default.
    again = tmp_path / "again"
    start = ["--start", tiny_folder / "encoder.safetensors", "--lr", "1e-9", "--images", "4"]
    run("train", "encoder", "--data", faces, "--out", again, "--model", tiny_folder, *SHORT, *start)
    further, _ = read_encoder(again / "encoder.safetensors")
    for name, value in further.named_parameters():
        torch.testing.assert_close(value, dict(encoder.named_parameters())[name], atol=1e-3, rtol=1e-3)
    losses = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss/total"]) for row in losses)


def test_attributes(faces: Path, tmp_path: Path) -> None:
    with open(tmp_path / "labels.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "Smiling"])
        writer.writerows([f"{seed}.png", seed % 2] for seed in range(8))
    out = tmp_path / "a"
    labels = tmp_path / "labels.csv"
    result = runner.invoke(
        app,
        [
            *("train", "attributes", "--data", str(faces), "--labels", str(labels), "--out", str(out)),
            *("--attributes", "Smiling", "--resolution", "16", "--widths", "8,8", *SHORT),
            *("--held-out", str(faces), "--held-out-labels", str(labels)),
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(out / "attributes.safetensors")]
    assert "Smiling: " in result.stderr
    assert "balanced_accuracy" in result.stderr


def test_attributes_take_the_labels_that_stand_beside_the_data(faces: Path, tmp_path: Path) -> None:
    options = ["--attributes", "Smiling", "--resolution", "16", "--widths", "8,8", *SHORT]
    arguments = ["train", "attributes", "--data", str(faces), "--out", str(tmp_path / "a"), *options]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert f"give --labels, or a file {tmp_path / 'faces.csv'}" in result.stderr
    rows = "".join(f"{seed}.png,{seed % 2}\n" for seed in range(8))
    (tmp_path / "faces.csv").write_text(f"file,Smiling\n{rows}")
    assert run(*arguments) == [str(tmp_path / "a" / "attributes.safetensors")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resolution", "20"], "not a power of two"),
        (["--channels", "8,8"], "2 widths for the sizes"),
        (["--channels", "a,b"], "expected positive whole numbers"),
        (["--augment", "much"], "expected ada, none, or a probability"),
        (["--channels", "8,8,8", "--batch", "6"], "batch 6: expected a multiple of 4"),
        (["--batch", "0"], "batch 0: expected 1 or more"),
        (["--r1-interval", "0"], "r1_interval 0"),
        (["--seed", "-1"], "seed -1"),
        (["--lr", "nan"], "lr nan"),
        (["--style-dim", "0"], "whole numbers from 1 up"),
        (["--perceptual", "nonsense"], "'nonsense' is not one of 'lpips-vgg'"),
    ],
)
def test_usage_errors(options: list[str], words: str, faces: Path, tmp_path: Path) -> None:
    base = ["train", "generator", "--data", str(faces), "--out", str(tmp_path / "g"), "--resolution", "16"]
    result = runner.invoke(app, [*base, *options])
    assert result.exit_code == 2, result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layers", "99"], "layers 99 is outside 0…5"),
        (["--layers", "0"], "layers 0: expected 1 or more"),
        (["--initial-std", "nan"], "initial_std nan"),
        (["--epsilon-per", "day"], "'day' is not one of 'batch', 'image'"),
    ],
)
def test_randomize_usage_errors(
    options: list[str], words: str, faces: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    base = ["train", "randomize", "--data", faces, "--out", tmp_path / "r", "--model", tiny_folder]
    result = runner.invoke(app, [*map(str, base), *options])
    assert result.exit_code == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_an_encoder_in_the_folder_of_another_training(
    faces: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    save_snapshot(tmp_path / "run", 8, {"images": 8, "generator": {}}, keep=1)
    options = ["--data", faces, "--out", tmp_path / "run", "--model", tiny_folder, "--device", "cpu"]
    small = ["--widths", "8", "--blocks", "1", "--input-side", "16"]
    result = runner.invoke(app, ["train", "encoder", *map(str, options), *small])
    assert result.exit_code == 2, result.stderr
    assert "another kind of training" in result.stderr


def test_no_data(tmp_path: Path, tiny_folder: Path) -> None:
    result = runner.invoke(
        app, ["train", "generator", "--data", str(tmp_path / "no.zip"), "--out", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "no.zip: no such file or folder" in result.stderr
    (tiny_folder / "discriminator.safetensors").unlink()
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "r"), "--model", str(tiny_folder)]
    result = runner.invoke(app, ["train", "randomize", *arguments, "--layers", "2"])
    assert result.exit_code == 1
    assert "discriminator.safetensors: no such file" in result.stderr
