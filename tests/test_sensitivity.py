"""σ from sensitivity, against the exact Jacobian of a tiny generator."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.fakes import fake_perceptual
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.base.tensorfile import write_tensors
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.encoders import Encoder, EncoderConfig, load_encoder, save_encoder
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon, randomize
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator
from wrangan_cli.engine.training import sensitivity as module
from wrangan_cli.engine.training.sensitivity import (
    randomize_by_sensitivity,
    scaled_residuals,
    set_std,
    tied,
    weight_sensitivity,
)
from wrangan_cli.engine.training.settings import SensitivitySettings


def exact_diagonal(generator: StyleGAN2Generator, w: Tensor, name: str) -> Tensor:
    """diag(JᵀJ) for one image, a row of J at a time."""
    perceptual = fake_perceptual()
    conv = generator.random_weights()[name]
    epsilon = torch.zeros(conv.shape, requires_grad=True)
    parts = scaled_residuals(generator.synthesis(w, epsilon={name: epsilon}), perceptual)
    values = torch.cat([part.flatten() for part in parts])
    rows = torch.eye(len(values))
    (jacobian,) = torch.autograd.grad(values, epsilon, rows, is_grads_batched=True)
    return jacobian.square().sum(dim=0)


def test_estimate_agrees_with_the_exact_jacobian(
    tiny_generator: StyleGAN2Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = randomize(tiny_generator, 1).eval().requires_grad_(False)
    w = torch.randn(1, 16)
    monkeypatch.setattr(module, "_draw_w", lambda _, count, __: w.expand(count, -1))
    exact = exact_diagonal(random, w, "convs.3")
    estimate = weight_sensitivity(random, fake_perceptual(), probes=600, batch=50)["convs.3"].float()
    # Each number has a relative error of √(2 / 600) = 6 %, their sum much less.
    assert estimate.sum().item() == pytest.approx(exact.sum().item(), rel=0.06)
    spread = (estimate / exact - 1).square().mean().sqrt().item()
    assert 0.02 < spread < 0.12


def test_residuals_square_to_the_loss() -> None:
    perceptual = fake_perceptual()
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    parts = zip(scaled_residuals(a, perceptual), scaled_residuals(b, perceptual), strict=True)
    got = torch.stack([(x - y).square().flatten(1).sum(1) for x, y in parts]).sum(0)
    from wrangan_cli.engine.models.perceptual import for_loss

    wanted = 2 * (a - b).square().mean(dim=(1, 2, 3)) + perceptual(for_loss(a), for_loss(b))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_std_follows_the_formula(tiny_generator: StyleGAN2Generator) -> None:
    random = randomize(tiny_generator, 2).requires_grad_(False)
    layers = random.random_weights()
    given = {name: torch.rand(conv.shape).double() for name, conv in layers.items()}
    set_std(random, given, floor=0.5)
    mean = torch.cat([value.flatten() for value in given.values()]).mean()
    for name, conv in layers.items():
        assert conv.std is not None
        torch.testing.assert_close(conv.std.squeeze(0).double(), 1 / (given[name] + mean / 2).sqrt())
    with pytest.raises(WranganError, match="do not depend"):
        set_std(random, {name: torch.zeros_like(value) for name, value in given.items()}, floor=0.1)


@pytest.mark.parametrize("exponent", [0.25, 1.0])
def test_exponent_changes_the_proportions_and_not_the_size(
    tiny_generator: StyleGAN2Generator, exponent: float
) -> None:
    random = randomize(tiny_generator, 2).requires_grad_(False)
    given = {name: torch.rand(weight.shape).double() for name, weight in random.random_weights().items()}
    set_std(random, given, floor=0.5)
    even = {name: weight.std.double().clone() for name, weight in random.random_weights().items()}
    set_std(random, given, floor=0.5, exponent=exponent)
    found = {name: weight.std.double() for name, weight in random.random_weights().items()}
    ratios = torch.cat([(found[name] / even[name].pow(2 * exponent)).flatten() for name in given])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios), rtol=1e-4, atol=0)
    sizes = [torch.cat([v.flatten() for v in std.values()]).square().mean() for std in (even, found)]
    torch.testing.assert_close(*sizes, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("tie", "shape"), [("weight", (4, 3, 3, 3)), ("filter", (4, 1, 1, 1)), ("layer", (1, 1, 1, 1))]
)
def test_tied_sensitivities_are_means(tie: str, shape: tuple[int, ...]) -> None:
    given = {"a": torch.rand(4, 3, 3, 3).double(), "b": torch.rand(4, 5, 3, 3).double()}
    got = tied(given, tie)
    for name, value in given.items():
        assert got[name].shape == value.shape
        groups = value.reshape(shape[0], -1) if shape[1] == 1 else value.reshape(-1, 1)
        same = got[name].reshape(groups.shape)
        torch.testing.assert_close(same, groups.mean(dim=1, keepdim=True).expand_as(groups))


def test_one_sensitivity_for_all() -> None:
    given = {"a": torch.rand(2, 1, 3, 3), "b": torch.rand(3, 2, 3, 3)}
    mean = (given["a"].sum() + given["b"].sum()) / (18 + 54)
    for name, value in tied(given, "all").items():
        assert value.shape == given[name].shape
        torch.testing.assert_close(value, mean.expand_as(value))
    with pytest.raises(ValueError, match="tie 'net'"):
        SensitivitySettings(tie="net")


def test_a_redraw_costs_what_was_asked(tiny_generator: StyleGAN2Generator) -> None:
    perceptual = fake_perceptual()
    settings = SensitivitySettings(probes=64, distortion=0.05)
    random = randomize_by_sensitivity(tiny_generator, perceptual, 3, settings)
    rng = random_generator(99)
    with torch.no_grad():
        w = random.mapping(torch.randn(256, 16, generator=rng))
        still = scaled_residuals(random.synthesis(w), perceptual)
        moved = scaled_residuals(random.synthesis(w, epsilon=draw_epsilon(random, 256, rng=rng)), perceptual)
    cost = sum((a - b).square().sum().item() for a, b in zip(moved, still, strict=True)) / 256
    assert cost == pytest.approx(0.05, rel=0.3)
    for name, conv in random.random_weights().items():
        assert torch.equal(conv.mean, tiny_generator.styled_convs()[name].conv.weight[0])
        assert conv.std is not None
        assert conv.std.min() > 0


def test_command_needs_no_data(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    base = ["train", "randomize", "--model", str(tiny_folder), "--device", "cpu", "--layers", "2"]
    out = tmp_path / "run"
    arguments = [*base, "--from", "sensitivity", "--out", str(out), "--probes", "16"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(out / "model")]
    model = load_model(str(out / "model"))
    assert list(model.generator.random_weights()) == ["convs.2", "convs.3"]
    assert model.inversion == {"epsilon_lr": 0.01}
    for wrong, line in (
        (["--from", "sensitivity", "--data", "x"], "accepts none of --data"),
        (["--from", "elsewhere"], "'elsewhere' is not one of 'adversarial', 'sensitivity'"),
        (
            ["--keep-std", "--data", "x"],
            "--layers 2, but the random layers of tiny are: convs.1, convs.2, convs.3",
        ),
        ([], "needs --data"),
    ):
        result = CliRunner().invoke(app, [*base, "--out", str(tmp_path / "no"), *wrong])
        assert result.exit_code == 2
        assert line in result.stderr


def test_what_was_trained_for_the_start_is_carried_over(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    encoder = Encoder(EncoderConfig(tiny_model.generator.config.style_dim, (8,), (1,), 16))
    save_encoder(tiny_model.path, encoder, tiny_model, {"images": 3})
    write_tensors(tiny_model.path / "reference.safetensors", {"features": torch.ones(2)}, {"kind": "x"})
    write_tensors(tiny_model.path / "stale.safetensors", {"a": torch.ones(2)}, {"model_sha256": "of another"})
    arguments = ["train", "randomize", "--model", str(tiny_model.path), "--device", "cpu", "--layers", "2"]
    arguments += ["--from", "sensitivity", "--out", str(tmp_path / "run"), "--probes", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    made = load_model(str(tmp_path / "run" / "model"))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_encoder(made)(images), load_encoder(tiny_model)(images))
    names = {path.name for path in made.path.glob("*.safetensors")}
    assert {"encoder.safetensors", "reference.safetensors"} <= names
    assert "stale.safetensors" not in names
    assert "encoder.safetensors: copied unchanged" in result.stderr
