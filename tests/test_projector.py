"""StyleGAN2's projector: its penalty, its noise on w, its noise maps, against their formulas."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import TINY, random_generator_network, write_photo
from tests.fakes import codes_of, images_of, make_inverter
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion import projector
from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.inverter import resolved
from wrangan_cli.engine.inversion.learning_rates import projector_ramp, warm_and_decay
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.projector import (
    autocorrelation,
    noise_penalty,
    noisy_w,
    normalise_noise,
    w_noise_size,
    zero_noise,
)
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code, render, save_code
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.rendering import noise_maps


def slow_autocorrelation(values: np.ndarray) -> float:
    """The penalty of one map by loops over its pixels."""
    total = 0.0
    while True:
        side = len(values)
        down = [values[i, j] * values[(i - 1) % side, j] for i in range(side) for j in range(side)]
        right = [values[i, j] * values[i, (j - 1) % side] for i in range(side) for j in range(side)]
        total += np.mean(down) ** 2 + np.mean(right) ** 2
        if side <= 8:
            return total
        half = side // 2
        values = np.array(
            [[values[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(half)] for i in range(half)]
        )


@pytest.mark.parametrize("side", [4, 8, 32])
def test_autocorrelation_is_that_of_loops_over_pixels(side: int) -> None:
    maps = torch.randn(3, side, side, dtype=torch.float64)
    maps[1] = maps[1].cumsum(dim=1)  # far from white
    expected = [slow_autocorrelation(image.numpy()) for image in maps]
    assert autocorrelation(maps).tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[1] > 10 * expected[0]


def test_the_published_protocol(tiny_model: Model) -> None:
    """Perceptual distance alone, 1000 steps, in the loss and in the record; the name fixes them."""
    for method in ("sg2-w", "sg2-w-plus"):
        settings = resolved(inversion_settings(method=method, protocol="published"), tiny_model)
        assert (settings.steps, settings.l2_weight, settings.total_steps) == (1000, 0.0, 1000)
        assert inversion_settings(**dataclasses.asdict(settings)) == settings
        plain = resolved(inversion_settings(method=method), tiny_model)
        assert (plain.steps, plain.l2_weight) == (500, 2.0)
        assert "protocol" in settings.relevant
    images = images_of(1)
    inverter = make_inverter(tiny_model, method="sg2-w", protocol="published", steps=None, w_noise=0)
    assert inverter.perceptual is not None
    fit = inverter.fit(images, tiny_model.w_mean[None])
    variables = Variables(fit.initial_w, noise=zero_noise(tiny_model, 1))
    loss, distance = projector.loss(fit, Batch(variables, images, fit.target, torch.arange(1), [], 0.9))
    assert distance is not None
    penalty = inverter.settings.noise_weight * noise_penalty(tiny_model, variables)
    torch.testing.assert_close(loss, distance + penalty)
    pivot = resolved(inversion_settings(method="pti", protocol="published"), tiny_model).pivot
    assert pivot is not None
    assert (pivot.method, pivot.steps, pivot.l2_weight) == ("sg2-w", 450, 0.0)
    ours = resolved(inversion_settings(method="pti"), tiny_model).pivot
    assert ours is not None
    assert ours.l2_weight == 2.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "wrangan"}, "no setting protocol: only sg2-w, sg2-w-plus, pti have it"),
        ({"steps": 500}, "steps 500: protocol published takes 1000"),
        ({"l2_weight": 1.0}, "l2_weight 1.0"),
        ({"seconds": 5.0}, "seconds"),
        ({"perceptual_weight": 0.0}, "perceptual_weight 0"),
        ({"protocol": "paper"}, "expected one of equal-cost, published"),
    ],
)
def test_what_the_published_protocol_does_not_take(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        inversion_settings(**{"method": "sg2-w", "protocol": "published", **given})


def test_w_noise_fades_out_by_three_quarters() -> None:
    settings = inversion_settings(method="sg2-w")
    fractions = [0.0, 0.25, 0.5, 0.75, 0.9]
    expected = [0.05 * 8.0 * factor for factor in (1.0, (2 / 3) ** 2, (1 / 3) ** 2, 0.0, 0.0)]
    assert [w_noise_size(settings, fraction, 8.0) for fraction in fractions] == pytest.approx(expected)


def test_w_noise_is_one_draw_for_all_images(tiny_model: Model) -> None:
    settings = inversion_settings(method="sg2-w", w_noise=0.5)
    w = torch.randn(4, TINY.style_dim)
    moved = noisy_w(tiny_model, settings, w, 0.25, random_generator(3)) - w
    drawn = torch.randn(TINY.style_dim, generator=random_generator(3))
    expected = drawn * 0.5 * tiny_model.w_std * (1 - 0.25 / 0.75) ** 2
    torch.testing.assert_close(moved, expected.expand(4, -1), atol=1e-5, rtol=1e-4)


def test_projector_ramp() -> None:
    values = [projector_ramp(progress) for progress in (0.0, 0.025, 0.05, 0.5, 0.75, 0.875, 1.0)]
    assert values == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])


def test_warmup_and_decay() -> None:
    plain = inversion_settings(steps=100)
    assert all(warm_and_decay(plain, step / 100) == 1 for step in range(100))
    shaped = dataclasses.replace(plain, warmup=0.1, decay=0.5)
    factors = [warm_and_decay(shaped, step / 100) for step in range(100)]
    assert factors[:11] == pytest.approx([min(1, (step + 1) / 10) for step in range(11)])
    assert factors[10:51] == pytest.approx([1] * 41)
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 1e-2
    with pytest.raises(UsageError, match="warmup"):
        inversion_settings(warmup=1.5)


def test_offsets_rise_after_w(tiny_model: Model) -> None:
    """With epsilon_warmup 0.5 of 4 steps, ε takes half of its rate in the first step and all from the second;
    w its own from the first."""
    rates: list[list[float]] = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: object) -> object:
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments)

    inverter = make_inverter(tiny_model, steps=4, lr=1e-3, epsilon_lr=2e-2, epsilon_warmup=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        inverter.invert(images_of(1))
    assert rates == [pytest.approx([1e-3, 2e-2 * factor]) for factor in (0.5, 1, 1, 1)]


def test_schedule_scales_both_rates(tiny_model: Model) -> None:
    """Adam's first step is the rate: a tenth of it, at the first of 10 steps of warm-up."""
    inverter = make_inverter(tiny_model, steps=1, lr=1e-3, epsilon_lr=2e-2, epsilon_init=0.0, decay=1.0)
    full = make_inverter(tiny_model, steps=1, lr=1e-3, epsilon_lr=2e-2, epsilon_init=0.0)
    (a,), (b,) = (codes_of(i.invert(images_of(1))) for i in (inverter, full))
    assert torch.allclose(a.w, b.w)  # the cosine starts at 1
    half = make_inverter(
        tiny_model, steps=2, lr=1e-3, epsilon_lr=2e-2, epsilon_init=0.0, warmup=1.0, beta2=0.95
    )
    rates: list[list[float]] = []
    betas: set[tuple[float, float]] = set()
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *arguments: object) -> object:
        rates.append([group["lr"] for group in self.param_groups])
        betas.update(group["betas"] for group in self.param_groups)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        half.invert(images_of(1))
    assert rates == [pytest.approx([5e-4, 1e-2]), pytest.approx([1e-3, 2e-2])]
    assert betas == {(0.9, 0.95)}
    with pytest.raises(UsageError, match="beta2"):
        inversion_settings(beta2=1.0)


def test_noise_penalty_and_normalisation_are_of_each_image(tiny_model: Model) -> None:
    variables = Variables(torch.zeros(3, TINY.style_dim), noise=zero_noise(tiny_model, 3))
    variables.free = [variables.w, *variables.noise.values()]
    rng = torch.Generator().manual_seed(0)
    for scale, values in zip((0.1, 1.0, 3.0, 0.5, 2.0), variables.noise.values(), strict=True):
        values.copy_(torch.randn(values.shape, generator=rng) * scale + 0.3)
    alone = variables.select(torch.tensor([1]))
    maps = noise_maps(tiny_model.generator, variables.noise)
    expected = sum(slow_autocorrelation(m[1, 0].double().numpy()) for m in maps)
    assert noise_penalty(tiny_model, variables)[1].item() == pytest.approx(expected, rel=1e-4)
    assert noise_penalty(tiny_model, alone)[0].item() == pytest.approx(expected, rel=1e-4)
    normalise_noise(tiny_model, variables)
    normalise_noise(tiny_model, alone)
    for name, drawn in enumerate(noise_maps(tiny_model.generator, variables.noise)):
        torch.testing.assert_close(drawn.mean(dim=(1, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(drawn.square().mean(dim=(1, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
        assert torch.allclose(variables.noise[str(name)][1], alone.noise[str(name)][0], atol=1e-5)


@pytest.mark.parametrize("method", ["sg2-w", "sg2-w-plus"])
def test_image_does_not_depend_on_its_batch(tiny_model: Model, method: str) -> None:
    images = images_of(3)
    inverter = make_inverter(tiny_model, method=method, steps=12, noise_weight=10.0)
    together = codes_of(inverter.invert(images))
    (alone,) = codes_of(inverter.invert(images[1:2]))
    torch.testing.assert_close(alone.w, together[1].w, atol=2e-3, rtol=1e-3)
    assert set(alone.noise) == {str(index) for index in range(5)}
    for name, value in alone.noise.items():
        assert (value.float() - together[1].noise[name].float()).abs().mean() < 1e-2
    assert not torch.allclose(together[0].w, together[1].w, atol=1e-2)


def test_w_plus_has_a_row_for_each_layer_and_fits_better(tiny_model: Model, tmp_path: Path) -> None:
    images, reached = images_of(2), {}
    for method in ("sg2-w", "sg2-w-plus"):
        inverter = make_inverter(tiny_model, method=method, steps=40, noise_weight=0.0)
        codes = codes_of(inverter.invert(images))
        assert not codes[0].noise
        reached[method] = np.mean([code.info["distortion"]["after"]["mse"] for code in codes])
    assert codes[0].w.shape == (TINY.num_latents, TINY.style_dim)
    assert codes[0].w.std(dim=0).max() > 0
    assert reached["sg2-w-plus"] < reached["sg2-w"]
    save_code(tmp_path / "a.st", codes[0])
    assert torch.equal(load_code(tmp_path / "a.st", tiny_model).w, codes[0].w)


def test_noise_maps_are_stored_and_drawn(tmp_path: Path) -> None:
    generator = random_generator_network()
    with torch.no_grad():
        for layer in generator.styled_convs().values():
            layer.noise.weight.fill_(0.5)
    model = load_model(str(save_model(tmp_path / "m", generator)))
    images, reached = images_of(1), {}
    for weight in (0.0, 0.1):
        inverter = make_inverter(model, method="sg2-w", steps=40, noise_weight=weight)
        (code,) = codes_of(inverter.invert(images))
        reached[weight] = code.info["distortion"]["after"]["mse"]
    assert reached[0.1] < reached[0.0]
    save_code(tmp_path / "a.st", code)
    loaded = load_code(tmp_path / "a.st", model)
    assert {value.dtype for value in loaded.noise.values()} == {torch.float16}
    drawn = render(model, [loaded])
    assert (drawn - images).square().mean().item() == pytest.approx(reached[0.1], rel=1e-4)
    maps = [getattr(model.generator.noises, f"noise_{i}") + loaded.noise[str(i)].float() for i in range(5)]
    with torch.no_grad():
        torch.testing.assert_close(drawn, model.generator.synthesis(loaded.w[None], noise=maps))
    for made in maps:
        assert made.mean().abs() < 1e-2
        assert made.square().mean().item() == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("method", ["sg2-w", "sg2-w-plus", "pti"])
def test_a_generator_without_noise_inputs_gets_none(method: str, tmp_path: Path) -> None:
    generator = random_generator_network()
    with torch.no_grad():
        for layer in generator.styled_convs().values():
            layer.noise.weight.zero_()
    model = load_model(str(save_model(tmp_path / "m", generator)))
    (code,) = codes_of(make_inverter(model, method=method, steps=3, pti_steps=3).invert(images_of(1)))
    assert not code.noise
    assert not [name for name in code.parameters if "noise" in name]
    assert bool(code.parameters) == (method == "pti")


def test_maps_of_layers_without_noise_stay(tiny_model: Model) -> None:
    with torch.no_grad():
        tiny_model.generator.styled_convs()["convs.1"].noise.weight.zero_()
    (code,) = codes_of(make_inverter(tiny_model, method="sg2-w", steps=3).invert(images_of(1)))
    assert set(code.noise) == {"0", "1", "3", "4"}


def test_projectors_start_at_the_mean_unless_told_otherwise() -> None:
    for method in ("sg2-w", "sg2-w-plus", "pti"):
        assert inversion_settings(method=method).start == "mean"
    assert inversion_settings().start == inversion_settings(method="weight-tuning").start == "encoder"
    assert inversion_settings(method="sg2-w", init="encoder").start == "encoder"
    assert inversion_settings(init="mean").start == "mean"
    assert inversion_settings(method="sg2-w").projection_lr == 0.1


def test_command(tiny_folder: Path, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a.png")
    arguments = ["invert", photo, "--model", tiny_folder, "--out", tmp_path / "codes", "--device", "cpu"]
    more = ["--method", "sg2-w-plus", "--steps", "3", "--perceptual-weight", "0"]
    result = CliRunner().invoke(app, [*map(str, arguments), *more])
    assert result.exit_code == 0, result.stderr
    info = load_code(tmp_path / "codes" / "a.st", load_model(str(tiny_folder))).info
    assert (info["method"], info["steps"], info["settings"]["init"]) == ("sg2-w-plus", 3, "mean")
    again = CliRunner().invoke(app, [*map(str, arguments), *more])
    assert again.exit_code == 0, again.stderr
