"""The inversion loop against its formulas, and its independence of the batch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import random_generator_network
from tests.fakes import codes_of, fake_perceptual, images_of, in_float64, make_inverter
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.inversion import wrangan
from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.inverter import Inverter, resolved
from wrangan_cli.engine.inversion.method_settings import METHODS, inversion_settings
from wrangan_cli.engine.inversion.methods import METHOD_TABLE
from wrangan_cli.engine.inversion.offsets import random_weights, small_offsets, squared_norm
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.encoders import Encoder, EncoderConfig, load_encoder, save_encoder
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.perceptual import for_loss
from wrangan_cli.engine.models.stylegan2 import ModulatedConv2d


def test_defaults_are_the_papers_but_for_alpha(tiny_model: Model) -> None:
    settings = resolved(inversion_settings(), tiny_model)
    assert (settings.method, settings.steps, settings.lr) == ("wrangan", 500, 1e-3)
    assert (settings.l2_weight, settings.perceptual_weight) == (2.0, 1.0)
    assert (settings.alpha, settings.penalty, settings.epsilon_init) == (0.1, "mean", 1e-4)


def test_loss_is_algorithm_1(tiny_model: Model) -> None:
    inverter = make_inverter(tiny_model, alpha=0.3, penalty="sum", epsilon_init=0.5)
    images = images_of(2)
    fit = inverter.fit(images, inverter.initial_w(images))
    epsilon = small_offsets(random_weights(tiny_model), fit.initial_w, inverter.settings)
    variables = Variables(fit.initial_w, epsilon)
    loss, _ = wrangan.loss(fit, Batch(variables, images, fit.target, torch.arange(2), []))
    drawn = tiny_model.generator.synthesis(variables.w, epsilon=variables.epsilon)
    distance = fake_perceptual()
    for index in range(2):
        error = (drawn[index] - images[index]).double().pow(2).mean()
        lpips = distance(for_loss(drawn[index : index + 1]), for_loss(images[index : index + 1]))[0]
        penalty = sum(value[index].double().pow(2).sum() for value in variables.epsilon.values())
        assert loss[index].item() == pytest.approx((2 * error + lpips + 0.3 * penalty).item(), rel=1e-5)


def test_penalty_reductions() -> None:
    epsilon = {"convs.0": torch.full((2, 3, 2, 3, 3), 2.0), "convs.1": torch.full((2, 1, 1, 3, 3), 1.0)}
    assert squared_norm(epsilon, "sum").tolist() == [54 * 4 + 9, 54 * 4 + 9]
    assert squared_norm(epsilon, "mean").tolist() == pytest.approx([225 / 63, 225 / 63])


def test_penalty_has_the_gradients_of_a_sum_of_squares() -> None:
    epsilon = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        epsilon[1] = 0  # as in weight-tuning at its start

    def norm(x: torch.Tensor) -> torch.Tensor:
        return squared_norm({"convs.0": x}, "sum")

    torch.testing.assert_close(norm(epsilon), epsilon.square().sum(dim=(1, 2, 3, 4)))
    assert torch.autograd.gradcheck(norm, (epsilon,))
    assert torch.autograd.gradgradcheck(norm, (epsilon,))


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning", "sg2-w"])
def test_first_adam_step_has_the_learning_rate(tiny_model: Model, method: str) -> None:
    """Adam's first step is lr · sign(gradient): an independent check of what is free."""
    inverter = make_inverter(tiny_model, method=method, steps=1, lr=1e-3, epsilon_init=0.0)
    (code,) = codes_of(inverter.invert(images_of(1)))
    moved = (code.w - tiny_model.w_mean).abs()
    if method == "sg2-w":
        assert moved.max() == 0  # its schedule ramps up from 0
        assert not code.epsilon
        assert not code.delta
        return
    assert moved.median().item() == pytest.approx(1e-3, rel=1e-2)
    offsets = code.epsilon if method == "wrangan" else code.delta
    assert set(offsets) == set(tiny_model.generator.random_weights())
    for value in offsets.values():
        assert value.abs().median().item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning"])
def test_epsilon_may_have_a_learning_rate_of_its_own(tiny_model: Model, method: str) -> None:
    inverter = make_inverter(tiny_model, method=method, steps=1, lr=1e-3, epsilon_lr=2e-2, epsilon_init=0.0)
    (code,) = codes_of(inverter.invert(images_of(1)))
    assert (code.w - tiny_model.w_mean).abs().median().item() == pytest.approx(1e-3, rel=1e-2)
    for value in (code.epsilon or code.delta).values():
        assert value.abs().median().item() == pytest.approx(2e-2, rel=1e-2)
    with pytest.raises(UsageError, match="epsilon_lr"):
        inversion_settings(epsilon_lr=float("nan"))


def test_a_model_names_the_settings_that_suit_its_std(tmp_path: Path) -> None:
    named = {"epsilon_lr": 0.03, "steps": 77, "lr": 0.02, "alpha": 1.5, "perceptual_weight": 3.0}
    folder = save_model(tmp_path / "m", random_generator_network(), inversion=named)
    model = load_model(str(folder))
    assert model.inversion == named
    own = resolved(inversion_settings(), model)
    assert {name: getattr(own, name) for name in named} == named
    assert (own.optimizer, own.decay) == ("adam", 0.0)
    assert resolved(inversion_settings(epsilon_lr=0.1, alpha=0.0), model).alpha == 0.0
    tuning = resolved(inversion_settings(method="weight-tuning"), model)
    assert (tuning.steps, tuning.epsilon_lr, tuning.lr, tuning.alpha) == (77, None, 1e-3, 0.1)
    assert resolved(inversion_settings(method="sg2-w"), model).steps == 500


@pytest.mark.parametrize("bad", ['"fast"', "-1", "true", "null"])
def test_settings_of_a_model_that_cannot_be(tmp_path: Path, bad: str) -> None:
    folder = save_model(tmp_path / "m", random_generator_network(), inversion={"epsilon_lr": 0.03})
    config = folder / "config.json"
    config.write_text(config.read_text().replace("0.03", bad))
    with pytest.raises(FileError, match=r"config\.json: inversion: .*epsilon_lr"):
        load_model(str(folder))


def test_a_setting_that_no_model_may_name(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_generator_network(), inversion={"seed": 3})
    with pytest.raises(FileError, match=r"config\.json: inversion: expected settings among"):
        load_model(str(folder))


def test_what_the_user_asks_for_does_not_go_with_what_the_model_names(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", random_generator_network(), inversion={"optimizer": "lbfgs"})
    with pytest.raises(UsageError, match=r"m, by its config\.json: optimizer lbfgs"):
        resolved(inversion_settings(decay=0.5), load_model(str(folder)))


def test_a_schedule_is_of_the_optimizer_that_the_model_names(tmp_path: Path) -> None:
    named = {"lr": 0.05, "epsilon_warmup": 0.5, "decay": 0.5, "steps": 7}
    folder = save_model(tmp_path / "m", random_generator_network(), inversion=named)
    model = load_model(str(folder))
    adam = resolved(inversion_settings(), model)
    assert (adam.lr, adam.epsilon_warmup, adam.decay, adam.steps) == (0.05, 0.5, 0.5, 7)
    other = resolved(inversion_settings(optimizer="lbfgs"), model)
    assert (other.lr, other.epsilon_warmup, other.decay, other.steps) == (0.05, 0, 0, 7)


def test_image_does_not_depend_on_its_batch(tiny_model: Model) -> None:
    """Alone and in a batch of 4 an image gets the same code. In float64: Adam makes whole steps of noise."""
    images = images_of(4).double()
    inverter = make_inverter(in_float64(tiny_model), steps=20, lr=1e-2)
    together = codes_of(inverter.invert(images))
    for index in (0, 3):
        (alone,) = codes_of(inverter.invert(images[index : index + 1]))
        assert torch.allclose(alone.w, together[index].w, rtol=0, atol=1e-8)
        for name, value in alone.epsilon.items():
            # Stored in half precision: the last digit may fall to either side.
            assert torch.allclose(value.float(), together[index].epsilon[name].float(), rtol=2e-3, atol=1e-6)
        mse = alone.info["distortion"]["after"]["mse"]
        assert mse == pytest.approx(together[index].info["distortion"]["after"]["mse"], rel=1e-3)
    w = [code.w for code in together]
    assert not torch.allclose(w[0], w[1], atol=1e-3)


def test_wrangan_beats_w_alone_and_states_what_it_reached(tiny_model: Model) -> None:
    images = images_of(2)
    reached = {}
    for method in ("encoder", "sg2-w", "wrangan"):
        inverter = make_inverter(tiny_model, method=method, steps=60, lr=5e-2, perceptual_weight=0.0)
        codes = codes_of(inverter.invert(images))
        reached[method] = [code.info["distortion"]["after"]["mse"] for code in codes]
        drawn = (render(tiny_model, codes) - images).square().mean(dim=(1, 2, 3))
        assert drawn.tolist() == pytest.approx(reached[method], rel=1e-4)
        assert codes[0].info["steps"] == (0 if method == "encoder" else 60)
    for index in range(2):
        assert reached["wrangan"][index] < reached["sg2-w"][index] < reached["encoder"][index]


def test_alpha_holds_epsilon_back(tiny_model: Model) -> None:
    norms = []
    for alpha in (0.0, 1.0):
        inverter = make_inverter(tiny_model, steps=40, lr=1e-2, alpha=alpha, penalty="sum")
        (code,) = codes_of(inverter.invert(images_of(1)))
        norms.append(sum(value.float().square().sum().item() for value in code.epsilon.values()))
    assert norms[1] < norms[0] / 4


def test_sigma_scales_the_reach(tiny_model: Model) -> None:
    """A weight with σ = 0 cannot move, whatever ε does."""
    layers = tiny_model.generator.random_weights()
    name, conv = next(iter(layers.items()))
    assert conv.std is not None
    conv.std.zero_()
    (code,) = codes_of(make_inverter(tiny_model, steps=10, lr=1e-2, alpha=0.0).invert(images_of(1)))
    assert isinstance(conv.owner, ModulatedConv2d)
    kernel = conv.owner.kernel(code.epsilon[name].float())
    assert torch.equal(kernel, conv.mean)
    # With neither a gradient of the data nor a penalty it stays where it starts: N(0, 1e-8).
    assert code.epsilon[name].abs().max() < 1e-3


def test_diverging_image_fails_alone(tiny_model: Model) -> None:
    images = images_of(3)
    images[1] = float("nan")
    results = make_inverter(tiny_model, steps=3).invert(images)
    assert isinstance(results[1], WranganError)
    assert isinstance(results[0], Code)
    assert isinstance(results[2], Code)


def test_same_seed_same_code(tiny_model: Model) -> None:
    first, second = (codes_of(make_inverter(tiny_model).invert(images_of(1)))[0] for _ in range(2))
    assert torch.equal(first.w, second.w)
    other = codes_of(make_inverter(tiny_model, seed=1).invert(images_of(1)))[0]
    name = next(iter(first.epsilon))
    assert torch.equal(first.epsilon[name], second.epsilon[name])
    assert not torch.equal(first.epsilon[name], other.epsilon[name])


def test_model_without_random_layers(tmp_path: Path, plain_config) -> None:
    plain = load_model(str(save_model(tmp_path / "plain", random_generator_network(plain_config))))
    for fails in (
        lambda: make_inverter(plain).invert(images_of(1)),
        lambda: Inverter.load(plain, inversion_settings()),
    ):
        with pytest.raises(UsageError, match="no random layers"):
            fails()
    (code,) = codes_of(make_inverter(plain, method="weight-tuning", steps=1).invert(images_of(1)))
    assert set(code.delta) == set(plain.generator.styled_convs())


def test_weights_of_the_model_stay(tiny_model: Model) -> None:
    before = {k: v.clone() for k, v in tiny_model.generator.state_dict().items()}
    make_inverter(tiny_model).invert(images_of(1))
    assert all(torch.equal(before[k], v) for k, v in tiny_model.generator.state_dict().items())
    assert all(p.grad is None for p in tiny_model.generator.parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "magic"), ("penalty", "max"), ("lr", float("nan")), ("alpha", -1.0), ("steps", -1)],
)
def test_bad_settings(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(inversion_settings(), **{field: value})


def test_every_method_is_in_the_table() -> None:
    assert tuple(METHOD_TABLE) == METHODS


def test_encoder_of_another_model_is_refused(tiny_folder: Path, other_folder: Path) -> None:
    model, other = load_model(str(tiny_folder)), load_model(str(other_folder))
    config = EncoderConfig(16, widths=(8, 16), blocks=(1, 1), input_side=16)
    save_encoder(tiny_folder, Encoder(config), other, {})
    with pytest.raises(WranganError, match="trained for another model"):
        load_encoder(model)
    save_encoder(tiny_folder, Encoder(config), model, {})
    inverter = Inverter.load(model, inversion_settings(method="encoder", perceptual_weight=0))
    (code,) = codes_of(inverter.invert(images_of(1)))
    assert code.w.shape == (16,)


def test_no_encoder_names_the_way_out(tiny_model: Model) -> None:
    with pytest.raises(UsageError, match="--init mean"):
        load_encoder(tiny_model)


def test_code_file_is_small_and_complete(tiny_model: Model, tmp_path: Path) -> None:
    (code,) = codes_of(make_inverter(tiny_model, steps=3).invert(images_of(1)))
    save_code(tmp_path / "a.st", code)
    loaded = load_code(tmp_path / "a.st", tiny_model)
    numbers = sum(conv.shape.numel() for conv in tiny_model.generator.random_weights().values())
    assert (tmp_path / "a.st").stat().st_size < 2 * numbers + 4 * 16 + 4096
    assert torch.equal(render(tiny_model, [loaded]), render(tiny_model, [code]))
    assert loaded.info["model_sha256"] == tiny_model.sha256
    assert loaded.info["distortion"]["before"]["mse"] > 0


STOPPED: dict[str, dict[str, object]] = {
    "wrangan": {"steps": 9},
    "sg2-w": {"steps": 9, "noise_weight": 0.0},
}


@pytest.mark.parametrize("method", STOPPED)
def test_who_looks_on_sees_the_images_and_can_end_the_steps(tiny_model: Model, method: str) -> None:
    inverter = make_inverter(tiny_model, method=method, **STOPPED[method])
    seen: list[Tensor] = []

    def watch(draw: Callable[[int], Tensor]) -> bool:
        seen.append(draw(8))
        return len(seen) < 3

    codes = codes_of(inverter.watched(watch).invert(images_of()))
    assert [code.info["steps"] for code in codes] == [3, 3]
    assert not torch.equal(seen[0], seen[2])
    # What was seen last is what is kept, but for the file's rounding.
    assert torch.allclose(seen[2], render(tiny_model, codes, 8), atol=2e-2)
