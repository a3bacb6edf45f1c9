"""KID in training: when, of what, what is kept, and that the training does not notice."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import TINY, random_generator_network, write_photo
from wrangan_cli.app import app
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.metrics.samples import Reference, save_reference
from wrangan_cli.engine.training.quality import KidMonitor, best_kid
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot

pytest.importorskip("torch_fidelity")

SHAPE = ["--resolution", "16", "--channels", "8,8,8", "--style-dim", "8", "--device", "cpu"]


def features(images: Tensor) -> Tensor:
    """(B, 2048) in place of Inception's."""
    projection = torch.randn(images[0].numel(), 2048, generator=torch.Generator().manual_seed(1))
    return (images.flatten(1) @ projection).relu() / 10


def test_when_it_is_due() -> None:
    monitor = KidMonitor(10, 4, features, torch.zeros(4, 2048))
    assert [n for n in range(4, 45, 4) if monitor.due(n, 4, 44)] == [12, 20, 32, 40, 44]


def test_the_value_is_kid_of_the_generators_images() -> None:
    reference = features(torch.randn(20, 3, 16, 16))
    monitor = KidMonitor(10, 24, features, reference)
    plain = random_generator_network(seed=2)
    for conv in plain.styled_convs().values():
        if conv.conv.std is not None:
            torch.nn.init.zeros_(conv.conv.std)
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(24, TINY.style_dim, generator=rng)
    with torch.no_grad():
        images = plain.synthesis(plain.mapping(z))
    assert monitor.measure(plain).value == pytest.approx(kid(features(images), reference).value, rel=1e-4)
    # With σ, each image has an ε of its own; again and again the same.
    noisy = random_generator_network(seed=2)
    assert monitor.measure(noisy).value != monitor.measure(plain).value
    assert monitor.measure(noisy) == monitor.measure(noisy)


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("wrangan_cli.engine.metrics.inception.load_inception", lambda *_, **__: features)
    for seed in range(8):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    return tmp_path / "faces"


def run(faces: Path, out: Path, *options: str) -> str:
    base = ["train", "generator", "--data", str(faces), "--out", str(out), *SHAPE]
    base += ["--batch", "4", "--snapshot-images", "8", "--keep-snapshots", "1"]
    result = CliRunner().invoke(app, [*base, *options])
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_the_best_snapshot_is_kept(faces: Path, tmp_path: Path) -> None:
    watched = ["--kid-images", "8", "--kid-reference", str(faces), "--kid-samples", "16"]
    said = run(faces, tmp_path / "g", "--images", "32", *watched)
    assert said.count("KID") == 4
    rows = [json.loads(line) for line in (tmp_path / "g" / "stats.jsonl").read_text().splitlines()]
    measured = {row["images"]: row["kid"] for row in rows if "kid" in row}
    assert list(measured) == [8, 16, 24, 32]
    assert all(row["kid/standard_error"] > 0 for row in rows if "kid" in row)
    best = min(measured, key=lambda images: measured[images])
    assert load_snapshot(tmp_path / "g" / "best.pt")["images"] == best
    assert best_kid(tmp_path / "g") == measured[best]
    assert load_model(str(tmp_path / "g" / "best-model")).resolution == 16
    assert len(list_snapshots(tmp_path / "g")) == 1
    # The training is the one that would have been without looking.
    run(faces, tmp_path / "blind", "--images", "32")
    states = [load_snapshot(list_snapshots(tmp_path / name)[-1]) for name in ("g", "blind")]
    for name, tensor in states[0]["ema"].items():
        assert torch.equal(tensor, states[1]["ema"][name])


def test_a_worse_model_does_not_replace_the_best(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "g"
    watched = ["--kid-images", "8", "--kid-reference", str(faces), "--kid-samples", "16"]
    run(faces, out, "--images", "8", *watched)
    config = out / "best-model" / "config.json"
    record = json.loads(config.read_text())
    record["source"]["kid"] = -100.0
    config.write_text(json.dumps(record))
    run(faces, out, "--images", "16", *watched)
    assert load_snapshot(out / "best.pt")["images"] == 8
    assert best_kid(out) == -100.0
    assert best_kid(tmp_path) == float("inf")


def test_a_file_of_features_is_a_reference_too(faces: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    save_reference(path, Reference(features(torch.randn(8, 3, 16, 16)), "made up", 16))
    said = run(
        faces,
        tmp_path / "g",
        *("--images", "8", "--kid-images", "8", "--kid-samples", "8", "--kid-reference", str(path)),
    )
    assert "KID" in said


def test_kid_without_a_reference(faces: Path, tmp_path: Path) -> None:
    arguments = ["train", "generator", "--data", str(faces), "--out", str(tmp_path / "g"), *SHAPE]
    result = CliRunner().invoke(app, [*arguments, "--kid-images", "8"])
    assert result.exit_code == 2
    assert "kid_images needs kid_reference" in result.stderr
