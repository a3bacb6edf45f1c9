"""Pivotal tuning: what it tunes, when it stops, and that its codes can be used like all others."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.code_files import LATENTS, make_code
from tests.conftest import TINY, write_photo
from tests.fakes import codes_of, fake_perceptual, images_of, make_inverter
from tests.test_editing import SMILE
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.editing.directions import Move, directions_file, edit_code, save_directions
from wrangan_cli.engine.editing.interpolation import interpolate_codes
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.inverter import Inverter, resolved
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.pti import locality, nearby_w, tuning_distance, zero_differences
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.corruption import moved_images
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import for_loss
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator


def make_pti(model: Model, **settings: object) -> Inverter:
    """Pivot of 6 steps, tuning of 10, with the stand-in for the perceptual distance."""
    few = {"method": "pti", "pti_pivot_steps": 6, "pti_steps": 10, "pti_lr": 3e-3, "stop_at": 0.0}
    inverter = make_inverter(model, **{**few, **settings})
    pivot = inverter.settings.pivot
    if pivot is None:
        return inverter
    return replace(inverter, pivot=Inverter(model, pivot, None, inverter.perceptual))


def tuned_network(model: Model, code: Code) -> StyleGAN2Generator:
    """The model's network with the differences added, as a network of its own."""
    network = copy.deepcopy(model.generator)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in code.parameters:
                parameter.add_(code.parameters[name].float())
    return network


def test_all_of_the_synthesis_is_tuned(tiny_model: Model) -> None:
    names = set(tiny_model.generator.synthesis_parameters())
    assert {"input.input", "conv1.conv.weight", "conv1.conv.modulation.weight", "to_rgbs.0.bias"} <= names
    assert {"convs.0.activate.bias", "convs.3.noise.weight", "to_rgb1.conv.weight"} <= names
    assert not any(name.startswith("style.") or name.endswith(".std") for name in names)
    (code,) = codes_of(make_pti(tiny_model, pti_pivot_steps=1, pti_steps=1).invert(images_of(1)))
    assert set(code.parameters) == names
    # Adam's first step is the rate, wherever there is a gradient.
    for name in names - {"to_rgb1.conv.modulation.bias"}:
        assert code.parameters[name].float().abs().median().item() == pytest.approx(3e-3, rel=2e-2), name


def test_code_draws_the_tuned_network(tiny_model: Model, tmp_path: Path) -> None:
    images = images_of(2)
    before = {k: v.clone() for k, v in tiny_model.generator.state_dict().items()}
    codes = codes_of(make_pti(tiny_model, pti_steps=25).invert(images))
    assert all(torch.equal(before[k], v) for k, v in tiny_model.generator.state_dict().items())
    for index, code in enumerate(codes):
        save_code(tmp_path / "a.st", code)
        loaded = load_code(tmp_path / "a.st", tiny_model)
        assert {value.dtype for value in loaded.parameters.values()} == {torch.float16}
        drawn = render(tiny_model, [loaded])
        with torch.no_grad():
            expected = tuned_network(tiny_model, code).synthesis(code.w[None])
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-4)
        mse = (drawn[0] - images[index]).square().mean().item()
        assert mse == pytest.approx(code.info["distortion"]["after"]["mse"], rel=1e-4)
        # The pivot alone is the "before", and the tuning has improved on it.
        with torch.no_grad():
            pivot = tiny_model.generator.synthesis(code.w[None])
        at_pivot = (pivot[0] - images[index]).square().mean().item()
        assert code.info["distortion"]["before"]["mse"] == pytest.approx(at_pivot, rel=1e-4)
        assert mse < 0.8 * at_pivot
        assert code.info["pivot"]["steps"] == 6
        assert code.info["steps"] == 25


def test_rounding_to_half_precision_is_all_that_is_lost(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image of the code is that of the tuned network before it was stored, to fp16."""
    kept = []
    finish = Inverter._codes

    def spy(self: Inverter, fit: Fit, variables: Variables):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            kept.append(fit.synthesized(variables))
        return finish(self, fit, variables)

    monkeypatch.setattr(Inverter, "_codes", spy)
    codes = codes_of(make_pti(tiny_model, pti_pivot="encoder", init=None).invert(images_of(2)))
    torch.testing.assert_close(render(tiny_model, codes), kept[-1], atol=2e-3, rtol=1e-3)


def test_pivot_is_that_of_the_projector_and_stays(tiny_model: Model) -> None:
    inverter = make_pti(tiny_model)
    projected = make_inverter(tiny_model, method="sg2-w", steps=6, projection_lr=0.01)
    images = images_of(2)
    for code, pivot in zip(inverter.invert(images), projected.invert(images), strict=True):
        assert isinstance(code, Code)
        assert isinstance(pivot, Code)
        assert torch.equal(code.w, pivot.w)
        assert not code.noise
    direct = make_pti(tiny_model, pti_pivot="encoder", init=None)
    assert direct.pivot is None
    (code,) = codes_of(direct.invert(images[:1]))
    assert torch.equal(code.w, tiny_model.w_mean)  # what the stand-in for the encoder gives


def test_image_does_not_depend_on_its_batch(tiny_model: Model) -> None:
    images = images_of(3)
    inverter = make_pti(tiny_model, pti_locality=0.1, pti_steps=5)
    together = codes_of(inverter.invert(images))
    (alone,) = codes_of(inverter.invert(images[1:2]))
    torch.testing.assert_close(alone.w, together[1].w, atol=1e-4, rtol=1e-3)
    both = render(tiny_model, [alone, together[1]])
    torch.testing.assert_close(both[0], both[1], atol=2e-3, rtol=1e-3)


def test_stops_before_the_step_at_the_threshold(tiny_model: Model) -> None:
    images = images_of(2)
    full = codes_of(make_pti(tiny_model, pti_steps=16).invert(images))
    names = [code.info["distortion"] for code in full]
    start, end = (d["fake (loss)"] for d in (names[0]["before"], names[0]["after"]))
    halfway = (start + end) / 2
    (code,) = codes_of(make_pti(tiny_model, pti_steps=16, stop_at=halfway).invert(images[:1]))
    assert 0 < code.info["steps"] < 16
    assert code.info["distortion"]["after"]["fake (loss)"] <= halfway * 1.001
    fewer = make_pti(tiny_model, pti_steps=code.info["steps"] - 1).invert(images[:1])[0]
    assert isinstance(fewer, Code)
    assert fewer.info["distortion"]["after"]["fake (loss)"] > halfway
    (code,) = codes_of(make_pti(tiny_model, stop_at=10 * start).invert(images[:1]))
    assert code.info["steps"] == 0
    assert all(value.abs().max() == 0 for value in code.parameters.values())


def test_settings_of_its_own(tiny_model: Model) -> None:
    settings = resolved(inversion_settings(method="pti"), tiny_model)
    assert (settings.stop_at, settings.init, settings.total_steps) == (0.0, "mean", 800)
    plain = replace(tiny_model, perceptual="lpips-vgg")
    assert resolved(inversion_settings(method="pti"), plain).stop_at == 0.06
    assert resolved(inversion_settings(method="pti", perceptual_weight=0.0), plain).stop_at == 0
    named = inversion_settings(method="pti", pti_perceptual="lpips-vgg")
    assert resolved(named, tiny_model).stop_at == 0.06
    assert (settings.pti_lr, settings.data_l2_weight, settings.perceptual_weight) == (3e-4, 1.0, 1.0)
    assert resolved(inversion_settings(method="pti", stop_at=0.0), tiny_model).stop_at == 0
    assert resolved(inversion_settings(), tiny_model).stop_at is None
    assert inversion_settings(method="pti", pti_pivot="encoder").start == "encoder"
    assert inversion_settings(method="pti", pti_pivot="encoder").total_steps == 350
    with pytest.raises(UsageError, match="pti_pivot encoder and init mean"):
        inversion_settings(method="pti", pti_pivot="encoder", init="mean")
    with pytest.raises(UsageError, match="pti_l2_weight"):
        inversion_settings(method="pti", perceptual_weight=0.0, pti_l2_weight=0.0)


def test_the_threshold_is_of_images_at_the_generators_own_side(tiny_model: Model) -> None:
    """Where the perceptual distance of a loss sees 8 px, the pivot's sees 8 and that of the tuning all 16."""
    settings = resolved(inversion_settings(method="pti", loss_side=8), tiny_model)
    assert settings.pivot is not None
    assert (settings.pivot.distance_side, replace(settings, pti_loss_side=12).distance_side) == (8, 12)
    inverter = make_inverter(tiny_model, method="pti", loss_side=8, stop_at=0.0)
    images = images_of(2)
    assert inverter.perceptual is not None
    seen = inverter.fit(images, tiny_model.w_mean[None]).target
    for found, whole in zip(seen, inverter.perceptual.features(for_loss(images, 16)), strict=True):
        assert torch.equal(found, whole)
    smaller = (
        make_inverter(tiny_model, method="sg2-w", loss_side=8).fit(images, tiny_model.w_mean[None]).target
    )
    assert not torch.equal(smaller[0], seen[0])
    with pytest.raises(UsageError, match="pti_loss_side -1"):
        inversion_settings(method="pti", pti_loss_side=-1)


def test_perceptual_is_alex_of_the_family(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, shifted = inversion_settings(method="pti"), replace(tiny_model, perceptual="st-lpips-vgg")
    assert tuning_distance(settings, shifted) == "st-lpips-alex"
    assert tuning_distance(replace(settings, perceptual="lpips-vgg"), shifted) == "lpips-alex"
    assert tuning_distance(replace(settings, pti_perceptual="st-lpips-vgg"), tiny_model) == "st-lpips-vgg"
    asked: list[str] = []

    def fake(name: str, device: object) -> object:  # noqa: ARG001
        asked.append(name)
        net = fake_perceptual()
        net.name = name
        return net

    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", fake)
    inverter = Inverter.load(replace(tiny_model, perceptual="lpips-vgg"), inversion_settings(method="pti"))
    assert asked == ["lpips-alex", "lpips-vgg"]
    assert inverter.pivot is not None
    assert inverter.pivot.perceptual is not None
    assert inverter.pivot.perceptual.name == "lpips-vgg"
    assert inverter.pivot.settings.projection_lr == 0.01
    asked.clear()
    inverter = Inverter.load(tiny_model, inversion_settings(method="pti"))
    assert asked == ["st-lpips-alex"]
    assert inverter.pivot is not None
    assert inverter.pivot.perceptual is inverter.perceptual


def test_locality_is_the_authors_formula(tiny_model: Model) -> None:
    settings = inversion_settings(method="pti", pti_locality=0.1, pti_locality_distance=7.0)
    w = torch.randn(2, TINY.style_dim)
    variables = Variables(w, parameters=zero_differences(tiny_model, 2))
    rng = torch.Generator().manual_seed(0)
    for value in variables.parameters.values():
        value.copy_(torch.randn(value.shape, generator=rng) * 0.05)
    distance = fake_perceptual()
    given = locality(tiny_model, settings, distance, variables, random_generator(4))
    z = torch.randn(1, TINY.style_dim, generator=random_generator(4))
    generator = tiny_model.generator
    with torch.no_grad():
        target = tiny_model.w_mean.lerp(generator.mapping(z)[0], 0.5)
        for index in range(2):
            way = (target - w[index]).repeat(LATENTS, 1)
            moved = (w[index] + 7.0 * way / way.norm())[None]
            torch.testing.assert_close(
                nearby_w(w[index].expand(1, LATENTS, -1), target.expand(1, LATENTS, -1), 7.0), moved
            )
            code = Code(w[index], parameters={k: v[index] for k, v in variables.parameters.items()})
            old = generator.synthesis(moved, noise="none")
            new = tuned_network(tiny_model, code).synthesis(moved, noise="none")
            expected = 0.1 * (new - old).square().mean() + 0.1 * distance(enlarged(new), enlarged(old))[0]
            assert given[index].item() == pytest.approx(expected.item(), rel=1e-4)


def enlarged(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=32, mode="bilinear")


def test_locality_keeps_the_neighbourhood(tiny_model: Model) -> None:
    """With the regulariser the images near the pivot change less."""
    images, change = images_of(1), []
    for weight in (0.0, 3.0):
        inverter = make_pti(
            tiny_model, pti_steps=25, pti_locality=weight, pti_locality_distance=3.0, perceptual_weight=0.0
        )
        (code,) = codes_of(inverter.invert(images))
        rng = torch.Generator().manual_seed(8)
        moves = torch.randn(8, TINY.style_dim, generator=rng)
        around = [code.w + 1.3 * move / move.norm() for move in moves]
        tuned = render(tiny_model, [replace(code, w=w) for w in around])
        change.append((tuned - render(tiny_model, [Code(w) for w in around])).square().mean().item())
    assert change[1] < 0.8 * change[0]


def test_codes_can_be_edited_interpolated_and_measured(tiny_model: Model) -> None:
    (code,) = codes_of(make_pti(tiny_model).invert(images_of(1)))
    edited = edit_code(code, [Move(SMILE, 2.0)], LATENTS)
    assert all(edited.parameters[name] is value for name, value in code.parameters.items())
    with torch.no_grad():
        expected = tuned_network(tiny_model, code).synthesis(edited.w[None])
    torch.testing.assert_close(render(tiny_model, [edited]), expected, atol=1e-5, rtol=1e-4)
    other = make_code(tiny_model, 4)
    way = list(interpolate_codes([code, other], 3, LATENTS))
    for name, value in code.parameters.items():
        torch.testing.assert_close(way[1].parameters[name], value.float() / 2)
        assert way[2].parameters[name].abs().max() == 0
    drawn = render(tiny_model, way)
    ends = torch.cat([render(tiny_model, [code]), render(tiny_model, [other])])
    torch.testing.assert_close(drawn[[0, 2]], ends, atol=1e-4, rtol=1e-3)
    (moved,) = moved_images(tiny_model, [code, other], [0, 1, 2])
    assert moved.shape == (3, 3, 16, 16)


def test_commands_on_such_codes(tiny_folder: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "b.png")):
        write_photo(tmp_path / "photos" / name, seed=seed)
    model = load_model(str(tiny_folder))
    save_directions(directions_file(model), model, [SMILE])
    codes = tmp_path / "codes"

    def run(*arguments: object) -> None:
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
        assert result.exit_code == 0, result.stderr

    few = ["--pti-pivot-steps", 2, "--pti-steps", 2, "--perceptual-weight", 0]
    run("invert", tmp_path / "photos", "--model", tiny_folder, "--out", codes, "--method", "pti", *few)
    info = load_code(codes / "a.st", model).info
    assert info["settings"]["stop_at"] == 0
    assert info["steps"] == 2
    named = ["--model", tiny_folder]
    run("edit", codes / "a.st", *named, "--direction", "smile", "--strength", 2, "--out", tmp_path / "e")
    run("interpolate", codes / "a.st", codes / "b.st", *named, "--steps", 3, "--out", tmp_path / "way.png")
    run("evaluate", "--photos", tmp_path / "photos", "--codes", codes, *named, "--metric", "mse")
