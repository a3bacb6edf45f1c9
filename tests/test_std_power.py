"""Another power of σ while a photograph is inverted (engine/inversion/std_power.py)."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.fakes import codes_of, images_of, make_inverter
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.std_power import with_std_power
from wrangan_cli.engine.models.codes import render
from wrangan_cli.engine.models.folder import Model


@pytest.fixture
def model(tiny_model: Model) -> Model:
    """σ of either sign, uneven, and 0 somewhere."""
    rng = torch.Generator().manual_seed(3)
    for weight in tiny_model.generator.random_weights().values():
        assert weight.std is not None
        weight.std.data.copy_(torch.randn(weight.shape, generator=rng) * 0.1)
        weight.std.data.view(-1)[0] = 0.0
    return tiny_model


def stds(model: Model) -> dict[str, Tensor]:
    return {name: weight.std.detach() for name, weight in model.generator.random_weights().items()}


def powered_inverter(model: Model, power: float, **settings: object) -> Inverter:
    return dataclasses.replace(make_inverter(model, **settings), powered=with_std_power(model, power))


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_proportions_are_the_power_and_the_size_stays(model: Model, power: float) -> None:
    before = torch.cat([std.flatten() for std in stds(model).values()])
    powered = with_std_power(model, power)
    after = torch.cat([std.flatten() for std in stds(powered.model).values()])
    assert torch.equal(
        torch.cat([std.flatten() for std in stds(model).values()]), before
    )  # a copy was raised
    assert after.square().mean().sqrt().item() == pytest.approx(
        before.square().mean().sqrt().item(), rel=1e-5
    )
    known = before != 0
    ratio = after[known] / (before[known].sign() * before[known].abs() ** power)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    assert (after[~known] == 0).all()


def test_the_first_step_moves_each_weight_by_the_rate_times_the_power_of_its_std(model: Model) -> None:
    """Adam's first step is rate · sign(gradient), so |θ − μ| = rate · σ² · rms(σ) / rms(σ²)."""
    inverter = powered_inverter(model, 2.0, steps=1, epsilon_lr=1e-2, epsilon_init=0.0)
    (code,) = codes_of(inverter.invert(images_of(1)))
    size = torch.cat([std.flatten() for std in stds(model).values()])
    scale = size.square().mean().sqrt() / size.pow(4).mean().sqrt()
    for name, std in stds(model).items():
        moved = (code.epsilon[name] * std).abs()
        expected = 1e-2 * std.square() * scale
        # Adam's own ε shortens the step of gradients near 0; float16 keeps three digits.
        near = (moved - expected).abs() <= 0.02 * expected + 1e-8
        assert near.float().mean() > 0.9


def test_codes_have_the_epsilon_of_the_model_itself(model: Model) -> None:
    inverter = powered_inverter(model, 2.0, steps=5, lr=1e-2)
    images = images_of(1)
    (code,) = codes_of(inverter.invert(images))
    error = (render(model, [code])[0] - images[0]).square().mean().item()
    assert code.info["distortion"]["after"]["mse"] == pytest.approx(error, rel=1e-4)
    assert code.info["model_sha256"] == model.sha256
    (plain,) = codes_of(make_inverter(model, steps=5, lr=1e-2).invert(images))
    assert any(not torch.equal(code.epsilon[name], plain.epsilon[name]) for name in plain.epsilon)


def test_loading_makes_it_where_the_settings_ask(model: Model) -> None:
    settings = inversion_settings(perceptual_weight=0.0, init="mean")
    assert Inverter.load(model, settings).powered is None
    powered = Inverter.load(model, dataclasses.replace(settings, std_power=2.0)).powered
    assert powered is not None
    expected = stds(with_std_power(model, 2.0).model)
    assert all(torch.equal(std, expected[name]) for name, std in stds(powered.model).items())
    with pytest.raises((UsageError, ValueError), match="std_power"):
        inversion_settings(std_power=-1.0)
    with pytest.raises(UsageError, match="std_power"):
        inversion_settings(method="weight-tuning", std_power=2.0)
