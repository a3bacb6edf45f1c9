"""`--dry-run`: what it prints is right, and it leaves no trace."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tests.fakes import fake_perceptual
from tests.test_adversarial import BRISK, trainer_for
from wrangan_cli.app import app
from wrangan_cli.engine.training.memory import _kept, adversarial_memory
from wrangan_cli.engine.training.settings import GeneratorSettings, RandomizeSettings

SMALL = ["--resolution", "16", "--channels", "8,8,8", "--style-dim", "8", "--mapping-layers", "2"]


def test_kept_tensors_are_counted_once_and_weights_not() -> None:
    linear = nn.Linear(6, 4, bias=False)
    x = torch.randn(5, 6)
    # The layer keeps x, the sine its input; the sum keeps nothing.
    assert _kept(lambda: linear(x).sin().sum(), [linear]) == (5 * 6 + 5 * 4) * 4
    assert _kept(lambda: (linear(x) + linear(x)).sum(), [linear]) == 5 * 6 * 4


def test_the_same_on_meta_as_measured_on_the_cpu() -> None:
    """R1 on real numbers: the graph of the penalty holds what the estimate says."""
    from wrangan_cli.engine.training.losses import r1_penalty

    trainer = trainer_for(GeneratorSettings(**BRISK))
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    held = _kept(lambda: r1_penalty(trainer.discriminator(images), images), [trainer.discriminator])
    assert adversarial_memory(trainer).activations["R1"] == pytest.approx(held, rel=0.02)


def test_weights_gradients_and_moments() -> None:
    trainer = trainer_for(GeneratorSettings(**BRISK))
    g = sum(p.numel() for p in trainer.generator.parameters())
    d = sum(p.numel() for p in trainer.discriminator.parameters())
    memory = adversarial_memory(trainer)
    assert memory.gradients == 4 * (g + d)
    assert memory.optimisers == 8 * (g + d)
    assert 4 * (2 * g + d) <= memory.weights < 4.1 * (2 * g + d) + 20_000
    assert memory.total == memory.weights + 12 * (g + d) + max(memory.activations.values())
    assert set(memory.activations) == {"discriminator", "R1", "generator", "path length"}


def test_smaller_micro_batches_and_lower_precision_need_less() -> None:
    def largest(**settings: object) -> int:
        chosen = RandomizeSettings(**{**BRISK, "batch": 16, **settings})  # type: ignore[arg-type]
        return max(adversarial_memory(trainer_for(chosen)).activations.values())

    whole = largest()
    assert largest(accumulate=4) < 0.35 * whole
    assert largest(precision="bf16") < 0.75 * whole


def lines(arguments: list[object], cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("WRANGAN_CACHE", str(cache))
    result = CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu", "--dry-run"])
    assert result.exit_code == 0, result.stderr
    return dict(line.split(": ", 1) for line in result.stdout.splitlines())


def test_dry_runs_of_all_trainings(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    before = sorted(tmp_path.rglob("*"))
    base = ["--data", tmp_path / "not-there", "--out", tmp_path / "run", "--batch", "8"]
    cache = tmp_path / "cache"
    printed = lines(["generator", *base, *SMALL, "--accumulate", "2"], cache, monkeypatch)
    assert (printed["batch"], printed["accumulate"], printed["lr"]) == ("8", "2", "0.002")
    assert printed["processes"] == "1"
    assert printed["generator"].endswith(" parameters")
    assert printed["memory, estimate for one process"].startswith("0.0")
    printed = lines(["randomize", *base, "--model", tiny_folder, "--layers", "2"], cache, monkeypatch)
    assert printed["layers"] == "2"
    body = ["--widths", "8,8", "--blocks", "1,1", "--input-side", "16"]
    printed = lines(["encoder", *base, "--model", tiny_folder, *body], cache, monkeypatch)
    assert printed["widths"] == "8,8"
    assert printed["memory, activations (encoder)"].endswith(" GB")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_batch_that_cannot_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path))
    arguments = ["train", "generator", "--data", "no", "--out", "no", *SMALL, "--batch", "12"]
    result = CliRunner().invoke(app, [*arguments, "--accumulate", "2", "--dry-run", "--device", "cpu"])
    assert result.exit_code == 2
    assert "batch 12: expected a multiple of 8" in result.stderr
