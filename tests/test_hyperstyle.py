"""The hypernetwork: offsets of the weights, their passes, and codes that hold them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY, random_generator_network
from tests.fakes import fake_perceptual, images_of
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.encoders import (
    Encoder,
    EncoderConfig,
    Hypernet,
    HypernetConfig,
    encoder_sha256,
    layer_shapes,
    load_hypernet,
    refined,
    save_encoder,
    weight_offsets,
)
from wrangan_cli.engine.models.folder import Model, carry_companions, save_model
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

SIZES = {
    "widths": (8, 8, 16),
    "blocks": (1, 1, 1),
    "input_side": 16,
    "features": 12,
    "inner": 6,
    "shared_inner": 6,
}
LAYERS = layer_shapes(random_generator_network())


def config_of(**changes: object) -> HypernetConfig:
    return HypernetConfig(**{"layers": LAYERS, "shared_width": 16, "passes": 2, **SIZES, **changes})  # type: ignore[arg-type]


def lively(config: HypernetConfig, seed: int = 0, size: float = 0.1) -> Hypernet:
    """A hypernetwork that says something: what begins at 0 is drawn."""
    torch.manual_seed(seed)
    network = Hypernet(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bias" not in name and not parameter.any():
                parameter.normal_(std=size)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("backbone", ["resnet", "ir-se"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("separate", ["separable", "linear"])
def test_offsets_for_each_kernel_of_each_layer(separate: str, kernel: int, backbone: str) -> None:
    config = config_of(separate=separate, kernel=kernel, rank=2, backbone=backbone)
    images = images_of()
    offsets = lively(config)(images, images)
    assert list(offsets) == ["conv1", *(f"convs.{i}" for i in range(4))]
    for name, offset in offsets.items():
        own = 1 if separate == "linear" and name != "conv1" else kernel
        assert offset.shape == (2, *LAYERS[name], own, own)
        assert float(offset[0].std()) > 0
        assert not torch.equal(offset[0], offset[1])
    assert [name for name in LAYERS if config.shares(name)] == ["conv1"]
    assert lively(dataclasses.replace(config, shared_width=0)).shared_head is None


@pytest.mark.parametrize("resolution", [64, 256])
def test_larger_generators(resolution: int) -> None:
    sizes = [2**i for i in range(2, resolution.bit_length())]
    config = StyleGAN2Config(resolution, {size: 8 if size < 32 else 4 for size in sizes}, style_dim=8)
    shapes = layer_shapes(StyleGAN2Generator(config))
    network = lively(config_of(layers=shapes, shared_width=8, input_side=64))
    images = images_of(1, resolution)
    offsets = network(images, images)
    assert {name: tuple(offset.shape[1:3]) for name, offset in offsets.items()} == shapes
    assert sum(network.config.shares(name) for name in shapes) == 5  # at 4, 8 and 16 px


def test_training_starts_at_the_generator_as_it_is() -> None:
    images = images_of()
    offsets = Hypernet(config_of()).eval()(images, images)
    assert all(not offset.any() for offset in offsets.values())


def drawn_by_changed_weights(offsets: dict[str, Tensor], w: Tensor) -> Tensor:
    """Each image by a generator of its own, whose weights were multiplied by 1 + Δ."""
    images = []
    for row in range(len(w)):
        generator = random_generator_network()
        with torch.no_grad():
            for name, layer in generator.styled_convs().items():
                o, i = layer.conv.weight.shape[1:3]
                for y in range(3):
                    for x in range(3):
                        at = (y, x) if offsets[name].shape[-1] == 3 else (0, 0)
                        layer.conv.weight[0, :, :, y, x] *= 1 + offsets[name][row, :o, :i, at[0], at[1]]
            images.append(generator.synthesis(w[row : row + 1]))
    return torch.cat(images)


@pytest.mark.parametrize("kernel", [1, 3])
def test_passes_add_up_and_draw_by_changed_weights(kernel: int, tiny_model: Model) -> None:
    network, images = lively(config_of(kernel=kernel)), images_of()
    w = torch.randn(2, TINY.style_dim)
    once = refined(network, tiny_model.generator, images, w, passes=1)
    shown = tiny_model.generator.synthesis(w)
    for name, offset in network(images, shown).items():
        torch.testing.assert_close(once[name], offset)
    between = drawn_by_changed_weights(once, w)
    assert float((between - shown).abs().max()) > 0.01
    twice = refined(network, tiny_model.generator, images, w)
    for name, offset in network(images, between).items():
        torch.testing.assert_close(twice[name], once[name] + offset, atol=1e-4, rtol=1e-3)
    drawn = tiny_model.generator.synthesis(w, delta=weight_offsets(tiny_model.generator, twice))
    torch.testing.assert_close(drawn, drawn_by_changed_weights(twice, w), atol=1e-4, rtol=1e-3)


def with_networks(model: Model, seed: int = 0) -> Hypernet:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(TINY.style_dim, (4, 8), (1, 1), 16))
    save_encoder(model.path, encoder.eval(), model, {}, torch.float32)
    network = lively(config_of(), size=0.02)
    save_encoder(model.path, network, model, {"encoder_sha256": encoder_sha256(model)}, torch.float32)
    return network


def test_inversion_stores_what_it_draws(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", lambda *_: fake_perceptual())
    network, images = with_networks(tiny_model), images_of(3)
    inverter = Inverter.load(tiny_model, inversion_settings(method="hyperstyle"))
    w = inverter.initial_w(images)
    codes = inverter.invert(images)
    expected = drawn_by_changed_weights(refined(network, tiny_model.generator, images, w), w)
    for index, code in enumerate(codes):
        assert isinstance(code, Code)
        assert set(code.delta) == set(LAYERS)
        assert code.info["steps"] == 0
        torch.testing.assert_close(code.w, w[index])
        save_code(tmp_path / "a.st", code)
        drawn = render(tiny_model, [load_code(tmp_path / "a.st", tiny_model)])[0]
        # The offsets are stored in 16 bits.
        torch.testing.assert_close(drawn, expected[index], atol=5e-3, rtol=5e-3)
        error = float((drawn - images[index]).square().mean())
        assert code.info["distortion"]["after"]["mse"] == pytest.approx(error, rel=1e-4)
        plain = tiny_model.generator.synthesis(w[index : index + 1])[0]
        before = float((plain - images[index]).square().mean())
        assert code.info["distortion"]["before"]["mse"] == pytest.approx(before, rel=1e-4)
    # No image depends on its batch.
    (alone,) = inverter.invert(images[1:2])
    assert isinstance(alone, Code)
    for name, delta in alone.delta.items():
        torch.testing.assert_close(delta, codes[1].delta[name], atol=1e-3, rtol=1e-2)  # type: ignore[union-attr]


def test_networks_go_along_with_a_model_that_draws_the_same(tiny_model: Model, tmp_path: Path) -> None:
    """The hypernetwork still knows its encoder, whose file is another one there."""
    network = with_networks(tiny_model)
    # What a killed process was writing is no companion.
    (tiny_model.path / ".encoder-x7.safetensors").write_bytes(b"half")
    folder = save_model(tmp_path / "again", random_generator_network(), w_mean=tiny_model.w_mean + 1)
    names = [path.name for path in carry_companions(tiny_model, folder)]
    assert names == ["encoder.safetensors", "hypernet.safetensors"]
    again = load_model(str(folder))
    assert again.sha256 != tiny_model.sha256
    assert encoder_sha256(again) != encoder_sha256(tiny_model)
    assert load_hypernet(again).config == network.config
    # With another encoder put beside it, it does not.
    encoder = Encoder(EncoderConfig(TINY.style_dim, (4, 8), (1, 1), 16))
    save_encoder(folder, encoder, again, {})
    with pytest.raises(FileError, match=r"another encoder\.safetensors than that of again"):
        load_hypernet(again)


def test_what_does_not_belong_together(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", lambda *_: fake_perceptual())
    with pytest.raises(UsageError, match=r"has no encoder\.safetensors"):
        Inverter.load(tiny_model, inversion_settings(method="hyperstyle"))
    with_networks(tiny_model)
    with pytest.raises(UsageError, match="needs init encoder"):
        Inverter.load(tiny_model, inversion_settings(method="hyperstyle", init="mean"))
    encoder = Encoder(EncoderConfig(TINY.style_dim, (4, 8), (1, 1), 16))
    save_encoder(tiny_model.path, encoder, tiny_model, {})
    with pytest.raises(FileError, match=r"was trained with another encoder\.safetensors than that of tiny"):
        load_hypernet(tiny_model)
    wide = lively(config_of(layers={"conv1": (8, 8)}, shared_width=0))
    save_encoder(tiny_model.path, wide, tiny_model, {})
    with pytest.raises(FileError, match=r"changes a layer conv1 of \(8, 8\), which tiny does not have"):
        load_hypernet(tiny_model)
    for wrong, message in (
        ({"kernel": 2}, "kernel 2"),
        ({"separate": "x"}, "separate 'x'"),
        ({"rank": 0}, "1 or more"),
        ({"layers": {}}, "there must be layers"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(**wrong)  # type: ignore[arg-type]
