"""Weights that draw what only images larger than the photograph show stay as they are."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.architectures import MOBILE, a_model, network, w_of
from tests.conftest import TINY
from tests.fakes import codes_of, images_of, make_inverter
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
