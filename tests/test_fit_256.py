"""The script that makes a smaller form of a MobileStyleGAN."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import fit_256
from tests.architectures import network
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.folder import Model, read_config, sample_w, save_model
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import Pairs, render_pairs

WHOLE = MobileStyleGANConfig(
    {4: 16, 8: 16, 16: 12, 32: 8},
    num_latents=9,
    style_dim=8,
    mapping_layers=2,
    randomized_layers=("layers.1", "layers.2.conv1"),
)
SIDE = 16
SETTINGS = fit_256.FitSettings(samples=48, windows=4, window=6, steps=150, batch=16, lr=2e-2, average=0.9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its images have a standard deviation of .4, and none is far brighter than the others."""
    generator = network(WHOLE)
    for name, parameter in generator.named_parameters():
        if name.endswith("modulation.weight"):
            parameter.mul_(0.3)
    generator.to_img.bias.zero_()  # type: ignore[union-attr, operator]
    images = generator.synthesis(generator.mapping(torch.randn(32, WHOLE.style_dim)), side=SIDE)
    generator.to_img.conv.weight.mul_(0.4 / images.std())  # type: ignore[union-attr, operator]
    return load_model(str(save_model(tmp_path_factory.mktemp("fit") / "whole", generator)))


@pytest.fixture(scope="module")
def held_out(whole: Model) -> Pairs:
    return render_pairs(whole, whole.path / "held-out", 16, SIDE, seed=2)


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
    with pytest.raises(UsageError, match=rf"cannot cut at {side} px: the blocks have \[8, 16, 32\] px"):
        fit_256.cut(whole.generator, side)


def test_a_window_is_a_part_of_the_image(whole: Model) -> None:
    """Of the whole generator's image reduced by area, and of the small one's, where the mask says so."""
    assert isinstance(whole.generator, MobileStyleGANGenerator)
    generator = cut(whole)
    fit_256.fit_head(whole.generator, generator, sample_w(whole.generator, 4, seed=5))
    windows = fit_256.render_windows(whole.generator, generator, SETTINGS)
    size = 2 * SETTINGS.window
    assert windows.images.shape == (48 * 4, 3, size, size)
    corners = {tuple(corner) for corner in windows.corners.tolist()}
    assert {(0, 0), (2, 2)} <= corners <= {(r, c) for r in range(3) for c in range(3)}
    w = windows.w[::4]
    images, small = whole.generator.synthesis(w, side=SIDE), generator.synthesis(w)
    for n in range(48):
        row, column = windows.corners[n].tolist()
        part = (slice(2 * row, 2 * row + size), slice(2 * column, 2 * column + size))
        margin = fit_256.MARGIN
        top, left = (0 if at == 0 else margin for at in (row, column))
        bottom, right = (size if 2 * at + size == SIDE else size - margin for at in (row, column))
        inside = (..., slice(top, bottom), slice(left, right))
        stored = windows.images[n].float()[inside]
        # What is stored is in half precision.
        torch.testing.assert_close(stored, images[n // 4][:, *part][inside], rtol=1e-2, atol=4e-3)
        loss = fit_256._loss(generator, windows, torch.tensor([n]))
        wanted = (small[n // 4][:, *part][inside] - stored).square().mean()
        torch.testing.assert_close(loss, wanted, rtol=2e-2, atol=1e-5)


def test_a_head_that_is_there_is_found(whole: Model) -> None:
    """Images of a network that has such a head; the ridge alone keeps the error from 0."""
    known, generator = cut(whole), cut(whole)
    torch.manual_seed(3)
    known.to_img.conv.weight.normal_(std=0.1)
    known.to_img.bias.normal_(std=0.1)
    w = sample_w(known, 24, seed=1)
    images = known.synthesis(w)
    unfitted = (generator.synthesis(w) - images).square().mean()
    fit_256.fit_head(known, generator, w[:16])
    assert (generator.synthesis(w) - images).square().mean() < unfitted / 20


def test_the_fit(whole: Model, held_out: Pairs) -> None:
    assert isinstance(whole.generator, MobileStyleGANGenerator)
    generator = cut(whole)
    unfitted = fit_256.measure(generator, held_out).mean()
    fit_256.fit_head(whole.generator, generator, sample_w(whole.generator, 16, seed=5))
    head = fit_256.measure(generator, held_out).mean()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    losses: list[float] = []
    windows = fit_256.render_windows(whole.generator, generator, SETTINGS)
    fit_256.fit(generator, windows, SETTINGS, lambda _, loss: losses.append(loss))
    fitted = fit_256.measure(generator, held_out).mean()
    assert head > unfitted + 2
    assert fitted > head + 2
    assert len(losses) == SETTINGS.steps
    changed = {
        name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == set(fit_256.trained(generator))
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
    held_out: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(out: str, *more: str) -> Model:
        arguments = ["--model", str(whole.path), "--side", str(SIDE), "--steps", "3", "--window", "6"]
        arguments += ["--samples", "4", "--held-out", str(held_out.shards[0].parent), *more]
        monkeypatch.setattr(sys, "argv", ["fit_256.py", str(tmp_path / out), *arguments])
        fit_256.main()
        return load_model(str(tmp_path / out))

    first = run("first")
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "first")
    assert said.err.count("on 16 held-out pairs") == 2
    assert first.resolution == SIDE
    assert torch.equal(first.w_mean, whole.w_mean)
    assert first.w_std == pytest.approx(whole.w_std)
    longer = run("longer", "--start", str(first.path), "--lr", "0")
    assert read_config(longer.path)["source"]["start"] == read_config(first.path)["source"]
    for name, tensor in longer.generator.state_dict().items():
        torch.testing.assert_close(tensor, first.generator.state_dict()[name])
