"""Detail finer than the photograph shows: weights that render only that stay fixed, excess is penalised."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.architectures import MOBILE, a_model, network, w_of
from tests.conftest import TINY
from tests.fakes import codes_of, images_of, make_inverter
from wrangan_cli.engine.inversion.detail import FLOOR, RATIO, excess_detail
from wrangan_cli.engine.models.codes import render
from wrangan_cli.engine.models.folder import Model

WHOLE = dataclasses.replace(MOBILE, channels={4: 16, 8: 12, 16: 8, 32: 8}, num_latents=8, randomized_layers=7)
"""Images of 64 px, all weights random."""


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return a_model(WHOLE, tmp_path)


def test_what_a_weight_shows_at_which_side() -> None:
    weights = network(WHOLE).weights()
    mixing, depthwise = weights["layers.1.conv2.pointwise"], weights["layers.1.conv2.depthwise"]
    assert (mixing.side, mixing.shape[0]) == (16, 8)
    assert [mixing.visible_outputs(side) for side in (8, 15, 16, 31, 32, 64)] == [0, 0, 2, 2, 8, 8]
    assert [depthwise.visible_outputs(side) for side in (15, 16, 31)] == [0, 8, 8]
    assert [weights["layers.1.conv1.pointwise"].visible_outputs(side) for side in (15, 16)] == [0, 8]
    assert (
        weights["layers.2.conv2.pointwise"].visible_outputs(32) == 8
    )  # before the image: no upsampling follows
    assert weights["conv1.dense"].visible_outputs(4) == 4
    plain = network(TINY).weights()
    assert {name: weight.visible_outputs(weight.side) for name, weight in plain.items()} == {
        name: weight.shape[0] for name, weight in plain.items()
    }


def test_the_other_channels_make_the_high_bands() -> None:
    """By the definition: they change no mean over 2×2 px of what the upsampling gives."""
    generator = network(WHOLE)
    block, weight = generator.get_submodule("layers.2"), generator.weights()["layers.1.conv2.pointwise"]
    x, w = torch.rand(1, weight.shape[0], 16, 16), w_of(generator, 1)
    moved = x.clone()
    moved[:, weight.visible_outputs(16) :] += torch.randn(
        1, weight.shape[0] - weight.visible_outputs(16), 16, 16
    )
    with torch.no_grad():
        before, after = (block.up(v, w) for v in (x, moved))  # type: ignore[operator]
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(F.avg_pool2d(before, 2), F.avg_pool2d(after, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["wrangan", "wrangan lbfgs", "weight-tuning"])
@pytest.mark.parametrize("side", [16, 24, 64])
def test_they_are_not_moved(model: Model, method: str, side: int) -> None:
    few = {"method": method.split()[0], "steps": 3, "init": "mean", "lr": 0.02, "epsilon_lr": 0.02}
    few |= {"optimizer": "lbfgs", "probes": 2} if "lbfgs" in method else {}
    weights = model.generator.weights()
    for unseen in (False, True):
        (code,) = codes_of(make_inverter(model, **few, unseen=unseen).invert(images_of(1, side)))
        for name, offsets in {**code.epsilon, **code.delta}.items():
            visible = weights[name].shape[0] if unseen else weights[name].visible_outputs(side)
            assert bool((offsets[:visible] != 0).any()) == (visible > 0)
            assert not offsets[visible:].any()


def test_the_projector_and_pti_are_the_authors(model: Model) -> None:
    few = {"steps": 2, "pti_steps": 2, "pti_pivot_steps": 1, "init": "mean", "method": "pti"}
    (code,) = codes_of(make_inverter(model, **few).invert(images_of(1, 16)))
    assert code.parameters["layers.2.conv2.pointwise.weight"].any()


def variance_of_blocks(image: torch.Tensor, block: int) -> torch.Tensor:
    """Mean over the channels of the variance in each block of (3, S, S): (S / block, S / block)."""
    blocks = image.unfold(1, block, block).unfold(2, block, block).flatten(3)
    return blocks.var(dim=3, correction=0).mean(0)


def test_excess_detail_is_what_exceeds_the_finest_octave_of_the_photograph() -> None:
    generator = torch.Generator().manual_seed(0)
    photographs = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    images = torch.rand(2, 3, 128, 128, generator=generator, dtype=torch.float64) * 2 - 1
    photographs[1, :, :, :16] = 0  # flat: nothing but FLOOR is allowed there
    for image, photograph, found in zip(images, photographs, excess_detail(images, photographs), strict=True):
        unseen = variance_of_blocks(image, 4).reshape(4, 8, 4, 8).mean((1, 3))
        octave = variance_of_blocks(photograph, 2).reshape(4, 4, 4, 4).mean((1, 3))
        expected = (unseen - RATIO * octave - FLOOR).clamp_min(0).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_weave_is_excess_and_an_enlarged_photograph_is_not() -> None:
    across = torch.linspace(-1, 1, 48)
    photographs = (across[:, None] * across).sin().expand(1, 3, 48, 48)
    enlarged = F.interpolate(photographs, size=(100, 100), mode="bilinear")  # not a whole number of times
    assert excess_detail(enlarged, photographs).item() == 0
    lines = 0.1 * (-1.0) ** torch.arange(100)
    assert excess_detail(enlarged + lines, photographs).item() == pytest.approx(0.01, rel=0.2)
    assert excess_detail(enlarged, photographs.new_zeros(1, 3, 1, 1)).item() > 0  # the smallest photograph


@pytest.mark.parametrize("method", ["wrangan", "weight-tuning"])
def test_inversions_leave_less_excess(model: Model, method: str) -> None:
    few = {"method": method, "steps": 30, "init": "mean", "lr": 0.05, "epsilon_lr": 0.05, "unseen": True}
    photographs = F.avg_pool2d(images_of(2, 64), 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    left = []
    for weight in (0.0, 20.0):
        codes = codes_of(make_inverter(model, **few, detail_weight=weight).invert(photographs))
        left.append(excess_detail(render(model, codes), photographs))
    assert bool((left[0] > 0).all())
    assert bool((left[1] < 0.7 * left[0]).all())


def test_photographs_of_the_models_side_and_coarse_steps_have_no_such_term(model: Model) -> None:
    few = {"steps": 3, "init": "mean", "epsilon_lr": 0.02}
    for side, others in ((64, {}), (16, {"coarse": 1.0, "loss_side": 8})):
        found = [
            codes_of(make_inverter(model, **few, **others, detail_weight=weight).invert(images_of(1, side)))[
                0
            ]
            for weight in (0.0, 50.0)
        ]
        assert torch.equal(found[0].w, found[1].w)
