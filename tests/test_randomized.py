"""μ, σ, ε: which layers are random, how ε is drawn, and what `randomize` keeps."""

from typing import get_args

import pytest
import torch

from tests.conftest import TINY
from wrangan_cli.engine.base.choices import StdForm
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.randomized import (
    draw_epsilon,
    num_randomized,
    parametrise_std,
    randomize,
    small_std_fraction,
    tunable_weights,
    with_plain_std,
)
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator


def test_the_last_layers_are_random(tiny_generator: StyleGAN2Generator) -> None:
    assert list(tiny_generator.random_weights()) == ["convs.1", "convs.2", "convs.3"]
    assert num_randomized(tiny_generator) == 9 * (12 * 12 + 12 * 8 + 8 * 8)


def test_draws_are_standard_normal_and_seeded(tiny_generator: StyleGAN2Generator) -> None:
    one = draw_epsilon(tiny_generator, batch=50, rng=random_generator(3))
    values = torch.cat([value.flatten() for value in one.values()])
    assert abs(values.mean().item()) < 0.01
    assert values.std().item() == pytest.approx(1.0, abs=0.01)
    again = draw_epsilon(tiny_generator, batch=50, rng=random_generator(3))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert one["convs.2"].shape == (50, 8, 12, 3, 3)
    half = draw_epsilon(tiny_generator, scale=0.5, rng=random_generator(3))
    whole = draw_epsilon(tiny_generator, rng=random_generator(3))
    torch.testing.assert_close(half["convs.1"], whole["convs.1"] * 0.5)
    assert half["convs.1"].shape == (12, 12, 3, 3)


@pytest.mark.parametrize("layers", [0, 2, 5])
def test_randomize_keeps_the_mean_image(tiny_generator: StyleGAN2Generator, layers: int) -> None:
    copy = randomize(tiny_generator, layers, std=0.3)
    assert copy.config.randomized_layers == layers
    assert all((conv.std == 0.3).all() for conv in copy.random_weights().values())
    assert len(copy.random_weights()) == layers
    w = torch.randn(2, TINY.style_dim)
    with torch.no_grad():
        torch.testing.assert_close(copy.synthesis(w), tiny_generator.synthesis(w))
    # A copy: training it leaves the original alone.
    with torch.no_grad():
        copy.conv1.conv.weight.zero_()
    assert tiny_generator.conv1.conv.weight.abs().sum() > 0


def test_too_many_layers_are_refused(tiny_generator: StyleGAN2Generator) -> None:
    with pytest.raises(ValueError, match="randomized_layers"):
        randomize(tiny_generator, 6)


def test_tunable_weights_are_the_random_ones_or_all(tiny_generator: StyleGAN2Generator) -> None:
    assert list(tunable_weights(tiny_generator)) == list(tiny_generator.random_weights())
    plain = randomize(tiny_generator, 0)
    assert list(tunable_weights(plain)) == ["conv1", "convs.0", "convs.1", "convs.2", "convs.3"]


@pytest.mark.parametrize("form", get_args(StdForm))
def test_forms_of_std_keep_its_size_and_can_be_undone(tiny_generator: StyleGAN2Generator, form: str) -> None:
    std = tiny_generator.get_parameter("convs.3.conv.std")
    with torch.no_grad():
        std.uniform_(-2, 2)
    before, w = std.detach().clone(), torch.randn(2, TINY.style_dim)
    epsilon = draw_epsilon(tiny_generator, rng=random_generator(1))
    parametrise_std(tiny_generator, form)
    got = tiny_generator.random_weights()["convs.3"].std
    assert got is not None
    torch.testing.assert_close(got, before if form == "raw" else before.abs(), atol=1e-5, rtol=1e-4)
    # The trained parameter moves σ by the derivative of its form.
    got.sum().backward()
    (rho,) = [p for n, p in tiny_generator.named_parameters() if n.startswith("convs.3.conv.") and "std" in n]
    slope = {"raw": torch.ones_like(before), "softplus": 1 - (-before.abs()).exp(), "log": before.abs()}[form]
    assert rho.grad is not None
    torch.testing.assert_close(rho.grad, slope, atol=1e-4, rtol=1e-3)
    plain = with_plain_std(tiny_generator)
    assert (plain is tiny_generator) == (form == "raw")
    assert set(plain.state_dict()) == set(StyleGAN2Generator(TINY).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            plain.synthesis(w, epsilon=epsilon), tiny_generator.synthesis(w, epsilon=epsilon)
        )


def test_share_of_small_std(tiny_generator: StyleGAN2Generator) -> None:
    std = tiny_generator.get_parameter("convs.3.conv.std")
    with torch.no_grad():
        std.fill_(0.5)
        std[:2] = -0.0005
        std[2] = -0.002
    assert small_std_fraction(tiny_generator)["convs.3"] == 2 / 8


def test_no_random_weights_to_draw_for(plain_config: StyleGAN2Config) -> None:
    with pytest.raises(UsageError, match="no random weights"):
        draw_epsilon(StyleGAN2Generator(plain_config))
