"""Photographs smaller than the model's images are compared at their own side."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from tests.architectures import MOBILE, a_model
from tests.conftest import write_photo
from tests.fakes import codes_of, fake_perceptual, images_of, make_inverter
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.engine.inversion.inverter import Inverter, resolved
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics import lpips
from wrangan_cli.engine.metrics.consistency import codes_consistency, stored_settings
from wrangan_cli.engine.metrics.pairs import compare_pairs, pair_by_stem
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.reports.figures import one_side
from wrangan_cli.engine.reports.settings import parse_settings

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
    for module in ("models.perceptual", "inversion.inverter"):
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
    for found in compare_pairs(model, pairs, measures):
        photo = load_image(found.pair.photo, 16)
        drawn = render(model, [load_code(found.pair.code)], 16)[0].clamp(-1, 1)
        assert found.values["mse"] == pytest.approx((drawn - photo).square().mean().item(), rel=1e-3)


def test_codes_of_other_sides_are_not_compared_with_each_other(model: Model, tmp_path: Path) -> None:
    for index in range(3):
        write_photo(tmp_path / "photos" / f"{'abc'[index]}.png", side=40, seed=index)
    for folder, sizes in (("one", (0, 0, 0)), ("other", (0, 24, 0))):
        for stem, size in zip("abc", sizes, strict=True):
            inverter = make_inverter(model, steps=0, size=size, perceptual_weight=0)
            photo = inverter.load_photo(tmp_path / "photos" / f"{stem}.png")
            save_code(tmp_path / folder / f"{stem}.st", codes_of(inverter.invert(photo[None]))[0])
    words = ["evaluate", "--metric", "mse", "--model", model.path, "--photos", tmp_path / "photos", "--json"]
    words += ["--codes", tmp_path / "one", "--against", tmp_path / "other"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 1
    assert "b: made at 40 px in" in result.stderr.replace("\n", " ")
    mean, against = map(json.loads, result.stdout.splitlines())
    assert (mean["count"], against["count"], against["ties"]) == (3, 2, 2)


def test_photographs_of_several_sizes_are_inverted_together(model: Model) -> None:
    """Each as it is alone, and in the order given."""
    inverter = make_inverter(model, steps=2)
    photos = [images_of(1, side)[0] for side in (40, 64, 40, 32)]
    for code, photo in zip(codes_of(inverter.invert_each(photos)), photos, strict=True):
        (alone,) = codes_of(inverter.invert(photo[None]))
        torch.testing.assert_close(code.w, alone.w)
        assert code.info["side"] == photo.shape[-1]


@pytest.mark.parametrize("size", [0, 24])
def test_a_report_takes_each_photograph_at_its_own_side(
    model: Model, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, sweep and images of a folder of three sizes."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(lpips, "load_perceptual", lambda *_: fake_perceptual())
    photos, out = tmp_path / "photos", tmp_path / "out"
    sides = {"a": size or 40, "b": size or 64, "c": size or 32}
    for index, side in enumerate((40, 90, 32)):
        write_photo(photos / f"{'abc'[index]}.png", side=side, seed=index)
    wanted = {
        **dict.fromkeys(("samples", "separability_samples", "consistency"), 0),
        **{"perceptual_weight": 0, "steps": 2, "init": "mean", "metrics": "mse", "size": size},
        **{"sweep": 3, "alphas": "0.1,10", "influence_samples": 1},
    }
    words = ["evaluate", "--report", out, "--methods", "wrangan", "--photos", photos, "--model", model.path]
    sets = [word for name, value in wanted.items() for word in ("--set", f"{name}={value}")]
    result = CliRunner().invoke(app, list(map(str, [*words, *sets])))
    assert result.exit_code == 0, result.output

    def rows(name: str) -> list[dict[str, Any]]:
        return json.loads((out / "tables" / f"{name}.json").read_text())["rows"]

    def error(code: Code, stem: str) -> float:
        drawn = F.adaptive_avg_pool2d(render(model, [code]), sides[stem])[0].clamp(-1, 1)
        return (drawn - load_image(photos / f"{stem}.png", sides[stem])).square().mean().item()

    found = {row["photo"]: row["mse"] for row in rows("photographs")}
    expected = {stem: error(load_code(out / "codes" / "wrangan" / f"{stem}.st"), stem) for stem in sides}
    assert found == pytest.approx(expected, rel=1e-3)
    first, second = rows("figure-3-sweep")
    assert first["mse"]["value"] == pytest.approx(sum(expected.values()) / 3, rel=1e-3)
    inverter = make_inverter(model, steps=2, size=size, alpha=10.0, perceptual_weight=0)
    fitted = [codes_of(inverter.invert(inverter.load_photo(p)[None]))[0] for p in sorted(photos.iterdir())]
    by_hand = sum(error(code, stem) for code, stem in zip(fitted, "abc", strict=True)) / 3
    assert second["mse"]["value"] == pytest.approx(by_hand, rel=1e-3)
    for stem, side in sides.items():
        assert load_image(out / "images" / "photo" / f"{stem}.png").shape[-1] == side
        assert load_image(out / "images" / "wrangan" / f"{stem}.png").shape[-1] == 64


def test_a_reports_size_is_one_for_all_methods() -> None:
    with pytest.raises(UsageError, match="size: methods are compared at the same side"):
        parse_settings(["pti.size=64"], ("wrangan", "pti"))
    settings, _ = parse_settings(["size=64"], ("wrangan", "pti"))
    assert {one.size for one in settings.values()} == {64}


def test_rows_of_a_figure_have_the_largest_side() -> None:
    small, large = images_of(2, 16), images_of(2, 32)
    rows = one_side([small, large])
    assert [row.shape[-1] for row in rows] == [32, 32]
    assert torch.equal(rows[1], large)


def test_size_is_a_setting_of_every_method() -> None:
    assert "size" in inversion_settings(method="pti").relevant
    with pytest.raises(UsageError, match="size 8"):
        inversion_settings(size=8)


def test_unset_settings_of_another_method_stay_the_papers(model: Model) -> None:
    named = dataclasses.replace(model, inversion={"steps": 7, "perceptual_weight": 3.0})
    assert resolved(inversion_settings(), named).perceptual_weight == 3.0
    assert resolved(inversion_settings(method="pti"), named).perceptual_weight == 1.0


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
