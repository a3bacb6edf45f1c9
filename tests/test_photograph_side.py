"""Photographs smaller than the model's images are compared at their own side."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from tests.architectures import MOBILE, a_model
from tests.conftest import write_photo
from tests.fakes import codes_of, fake_perceptual, images_of, make_inverter
from wrangan_cli.app import app
from wrangan_cli.engine.codes import Code, load_code, render
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.engine.errors import WranganError
from wrangan_cli.engine.images import load_image
from wrangan_cli.engine.inversion.loop import Inverter, resolved
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics.consistency import codes_consistency, stored_settings
from wrangan_cli.engine.metrics.pairs import compare_pairs, pair_by_stem
from wrangan_cli.engine.model_folder import Model

Results = list[Code | WranganError]
LARGE = dataclasses.replace(MOBILE, channels={4: 16, 8: 12, 16: 8, 32: 8}, num_latents=8)
"""64 px."""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return a_model(LARGE, tmp_path)


def test_a_small_photograph_keeps_its_side(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a.png", side=40)
    assert load_image(photo, 64, enlarge=False).shape == (3, 40, 40)
    assert load_image(photo, 64).shape == (3, 64, 64)
    large = load_image(photo, 20, enlarge=False)
    assert torch.equal(large, load_image(photo, 20))


def test_the_loss_is_that_of_the_image_reduced_by_area(model: Model) -> None:
    for side in (32, 24):
        inverter = make_inverter(model, steps=0, init="mean", epsilon_init=0.3)
        images = images_of(2, side)
        for code, image in zip(codes_of(inverter.invert(images)), images, strict=True):
            drawn = F.adaptive_avg_pool2d(render(model, [code]), side)[0]
            expected = (drawn - image).square().mean().item()
            assert code.info["distortion"]["after"]["mse"] == pytest.approx(expected, rel=1e-3)
            assert code.info["side"] == side


def test_images_larger_than_the_models_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="for a model of 64 px"):
        make_inverter(model, steps=0, init="mean").invert(images_of(1, 128))


def test_photographs_of_several_sizes(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder, three sizes: each at its own, one at the model's; `--size` overrides."""
    for module in ("perceptual", "inversion.loop"):
        monkeypatch.setattr(f"wrangan_cli.engine.{module}.load_perceptual", lambda *_: fake_perceptual())
    photos, codes = tmp_path / "photos", tmp_path / "codes"
    for index, side in enumerate((40, 90, 40, 32)):
        write_photo(photos / f"{'abcd'[index]}.png", side=side, seed=index)
    words = ["invert", photos, "--out", codes, "--model", model.path, "--steps", 2, "--init", "mean"]

    def run(*more: object) -> list[str]:
        result = CliRunner().invoke(app, [str(word) for word in (*words, *more)])
        assert result.exit_code == 0, result.stderr
        return result.stdout.splitlines()

    assert run() == [str(codes / f"{stem}.st") for stem in "abcd"]
    sides = [load_code(codes / f"{stem}.st").info["side"] for stem in "abcd"]
    assert sides == [40, 64, 40, 32]
    pairs, _ = pair_by_stem(photos, codes)
    measures = {"mse": lambda x, y: (x - y).square().mean(dim=(1, 2, 3))}
    for found, side in zip(compare_pairs(model, pairs, measures), sides, strict=True):
        code, photo = load_code(found.pair.code), load_image(found.pair.photo, side)
        drawn = F.adaptive_avg_pool2d(render(model, [code]), side)[0].clamp(-1, 1)
        assert found.values["mse"] == pytest.approx((drawn - photo).square().mean().item(), rel=1e-3)
    run("--size", 16, "--overwrite")
    assert {load_code(codes / f"{stem}.st").info["side"] for stem in "abcd"} == {16}


def test_size_is_a_setting_of_every_method() -> None:
    assert "size" in InversionSettings(method="pti").heeded
    with pytest.raises(ValueError, match="size 8"):
        InversionSettings(size=8)


def test_unset_settings_of_another_method_stay_the_papers(model: Model) -> None:
    named = dataclasses.replace(model, inversion={"steps": 7, "perceptual_weight": 3.0})
    assert resolved(InversionSettings(), named).perceptual_weight == 3.0
    assert resolved(InversionSettings(method="pti"), named).perceptual_weight == 1.0


def test_consistency_is_measured_at_the_codes_own_side(model: Model) -> None:
    """There and back at 32 px."""
    (code,) = codes_of(make_inverter(model, steps=2).invert(images_of(1, 32)))
    settings = stored_settings(code)
    assert isinstance(settings, InversionSettings)
    assert settings.size == 32
    seen: list[torch.Size] = []

    class Spied(Inverter):
        def invert(self, images: Tensor, on_step: Callable[[int], None] | None = None) -> Results:
            seen.append(images.shape)
            return super().invert(images, on_step)

    def load(model: Model, settings: InversionSettings) -> Inverter:
        inverter = make_inverter(model, **dataclasses.asdict(settings))
        return Spied(model, settings, None, inverter.perceptual)

    direction = Direction("still", F.one_hot(torch.tensor(0), 16).float(), std=0.0)
    (found,) = codes_consistency(model, [code], direction, load=load)
    assert set(seen) == {torch.Size([1, 3, 32, 32])}
    assert not isinstance(found, Exception)
