"""The script that makes a smaller form of a MobileStyleGAN."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import fit_256
from tests.architectures import network
from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.model_folder import Model, load_model, save_model
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.training.pairs import Pairs, draw_pairs, open_pairs

WHOLE = MobileStyleGANConfig(
    {4: 16, 8: 16, 16: 12, 32: 8},
    num_latents=9,
    style_dim=8,
    mapping_layers=2,
    randomized_layers=("layers.1", "layers.2.conv1"),
)
SIDE = 16
SETTINGS = fit_256.FitSettings(head_pairs=16, windows=4, window=6, steps=150, batch=16, lr=2e-2, average=0.9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its images have a standard deviation of .4."""
    generator = network(WHOLE)
    generator.to_img.bias.zero_()  # type: ignore[union-attr, operator]
    images = generator.synthesis(generator.mapping(torch.randn(32, WHOLE.style_dim)), side=SIDE)
    generator.to_img.conv.weight.mul_(0.4 / images.std())  # type: ignore[union-attr, operator]
    return load_model(str(save_model(tmp_path_factory.mktemp("fit") / "whole", generator)))


@pytest.fixture(scope="module")
def pairs(whole: Model) -> Pairs:
    return draw_pairs(whole, whole.path / "pairs", 48, SIDE, seed=1)


@pytest.fixture(scope="module")
def held_out(whole: Model) -> Pairs:
    return draw_pairs(whole, whole.path / "held-out", 16, SIDE, seed=2)


def cut(whole: Model) -> MobileStyleGANGenerator:
    assert isinstance(whole.generator, MobileStyleGANGenerator)
    return fit_256.cut(whole.generator, SIDE)


def entering(generator: MobileStyleGANGenerator, name: str, w: Tensor) -> tuple[Tensor, Tensor]:
    """What a module's modulation is given, and what the module is."""
    module, styles, maps = generator.get_submodule(name), [], []
    module.modulation.register_forward_pre_hook(lambda _, given: styles.append(given[0]))  # type: ignore[union-attr, operator]
    module.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    generator.synthesis(w)
    return maps[0], styles[0]


def test_the_cut_network_goes_on_to_the_same_feature_maps(whole: Model) -> None:
    generator = cut(whole)
    config = generator.config
    assert (config.resolution, config.num_latents, config.head) == (SIDE, WHOLE.num_latents, "plain")
    assert sorted(generator.random_weights()) == [
        f"layers.1.conv{i}.{part}" for i in (1, 2) for part in ("depthwise", "pointwise")
    ]
    w_plus = torch.randn(2, WHOLE.num_latents, WHOLE.style_dim)
    assert isinstance(whole.generator, MobileStyleGANGenerator)
    theirs = fit_256.copy.deepcopy(whole.generator)
    for given, wanted in zip(
        entering(generator, "to_img", w_plus), entering(theirs, "layers.2.up", w_plus), strict=True
    ):
        assert torch.equal(given, wanted)
    z = torch.randn(3, WHOLE.style_dim)
    assert torch.equal(generator.mapping(z), whole.generator.mapping(z))


@pytest.mark.parametrize("side", [4, 32, 64, 15])
def test_where_it_cannot_be_cut(whole: Model, side: int) -> None:
    assert isinstance(whole.generator, MobileStyleGANGenerator)
    with pytest.raises(UsageError, match=rf"cut at {side} px: there are blocks of \[8, 16, 32\] px"):
        fit_256.cut(whole.generator, side)


def test_a_window_is_a_part_of_the_image(whole: Model, pairs: Pairs) -> None:
    generator = cut(whole)
    fit_256.fit_head(generator, pairs, range(4))
    windows = fit_256.take_windows(generator, pairs, SETTINGS)
    size = 2 * SETTINGS.window
    assert windows.images.shape == (48 * 4, 3, size, size)
    corners = {tuple(corner) for corner in windows.corners.tolist()}
    assert {(0, 0), (2, 2)} <= corners <= {(r, c) for r in range(3) for c in range(3)}
    for n in range(12):
        (row, column), pair = windows.corners[n].tolist(), int(windows.pair[n])
        drawn = fit_256._drawn(
            generator, windows.x[n : n + 1].float(), pairs.w[pair][None], windows.corners[n][None]
        )
        image = generator.synthesis(pairs.w[pair][None])
        part = (slice(2 * row, 2 * row + size), slice(2 * column, 2 * column + size))
        stored = pairs.images(range(pair, pair + 1))[0][:, *part]
        torch.testing.assert_close(windows.images[n].float(), stored, rtol=0, atol=1e-3)
        # Where the window ends within the image, the two outermost pixels want for their neighbours.
        top, left = (fit_256.MARGIN if at else 0 for at in (row, column))
        bottom, right = (size - (0 if 2 * at + size == SIDE else fit_256.MARGIN) for at in (row, column))
        seen = (..., slice(top, bottom), slice(left, right))
        # x is kept in half precision.
        torch.testing.assert_close(drawn[seen], image[..., *part][seen], rtol=1e-2, atol=2e-3)
        wanted = (image[0][:, *part] - stored)[seen].square().mean()
        loss = fit_256._loss(generator, windows, pairs.w, torch.tensor([n]))
        if stored.abs().max() < 1:
            torch.testing.assert_close(loss, wanted, rtol=2e-2, atol=1e-5)


def test_a_head_that_is_there_is_found(whole: Model, tmp_path: Path) -> None:
    """Pairs of a network that has such a head; the ridge alone keeps the error from 0."""
    known = cut(whole)
    torch.manual_seed(3)
    known.to_img.conv.weight.normal_(std=0.1)
    known.to_img.bias.normal_(std=0.1)
    model = load_model(str(save_model(tmp_path / "known", known)))
    pairs = draw_pairs(model, tmp_path / "pairs", 24, SIDE)
    generator = cut(whole)
    unfitted = fit_256.measure(generator, pairs)
    fit_256.fit_head(generator, pairs, range(16))
    assert (fit_256.measure(generator, pairs) > unfitted + 10).all()


def test_the_fit(whole: Model, pairs: Pairs, held_out: Pairs) -> None:
    generator = cut(whole)
    unfitted = fit_256.measure(generator, held_out).mean()
    fit_256.fit_head(generator, pairs, range(16))
    head = fit_256.measure(generator, held_out).mean()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    seen: list[float] = []
    windows = fit_256.take_windows(generator, pairs, SETTINGS)
    fit_256.fit(generator, windows, pairs.w, SETTINGS, lambda _, loss: seen.append(loss))
    fitted = fit_256.measure(generator, held_out).mean()
    assert head > unfitted + 2
    assert fitted > head + 2
    assert len(seen) == SETTINGS.steps
    changed = {
        name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(fit_256.trained(generator))
    assert {name.split(".")[0] for name in changed} == {"to_img", "layers"}
    assert all(name.startswith(("to_img.", "layers.1.")) for name in changed)
    assert not any(name.endswith((".std", "noise.weight")) for name in changed)
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_psnr_is_that_of_the_clipped_image(whole: Model, held_out: Pairs) -> None:
    generator = cut(whole)
    generator.to_img.bias.fill_(3)
    images = held_out.images(range(len(held_out)))
    wanted = [10 * (4 / (1 - image).square().mean()).log10() for image in images]
    torch.testing.assert_close(fit_256.measure(generator, held_out), torch.stack(wanted))


def test_the_script(
    whole: Model,
    pairs: Pairs,
    held_out: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = [str(given.shards[0].parent) for given in (pairs, held_out)]
    arguments = ["--model", str(whole.path), "--held-out", folders[1], "--steps", "3", "--window", "6"]
    monkeypatch.setattr(sys, "argv", ["fit_256.py", folders[0], str(tmp_path / "small"), *arguments])
    fit_256.main()
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "small")
    assert "held-out pairs" in said.err
    made = load_model(str(tmp_path / "small"))
    assert made.resolution == SIDE
    assert torch.equal(made.w_mean, whole.w_mean)
    assert made.w_std == pytest.approx(whole.w_std)
    # Pairs are those of the whole generator.
    assert len(open_pairs(pairs.shards[0].parent, whole.generator)) == 48
