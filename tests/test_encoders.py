"""The encoders into W+, ReStyle's passes, their files and the inversion methods that use them."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import TINY, random_generator_network
from tests.fakes import fake_perceptual, images_of
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code, load_code, render, save_code
from wrangan_cli.engine.models.encoders import (
    KINDS,
    Encoder,
    EncoderConfig,
    StyleEncoder,
    StyleEncoderConfig,
    average_image,
    encoded,
    kind_of,
    load_style_encoder,
    read_any,
    read_encoder,
    save_encoder,
)
from wrangan_cli.engine.models.encoders.blocks import StyleHead, stage_side
from wrangan_cli.engine.models.folder import Model

LATENTS = {16: 6, 64: 10, 256: 14}


def small(resolution: int = 16, **changes: object) -> StyleEncoderConfig:
    sizes = {"widths": (4, 6, 8), "blocks": (1, 1, 1), "input_side": min(resolution, 64), "style_dim": 16}
    return StyleEncoderConfig(**{**sizes, "num_latents": LATENTS[resolution], **changes})  # type: ignore[arg-type]


def again(**changes: object) -> StyleEncoderConfig:
    """A ReStyle encoder for the tiny model."""
    return small(**{"input_channels": 6, "passes": 3, "heads": "single", **changes})


def trained(config: StyleEncoderConfig, seed: int = 0) -> StyleEncoder:
    """An encoder in which every head says something."""
    torch.manual_seed(seed)
    encoder = StyleEncoder(config)
    with torch.no_grad():
        for head in encoder.heads:
            assert isinstance(head, StyleHead)
            head.linear.weight.normal_()
            head.linear.bias.normal_(std=0.1)
        encoder.w_mean.normal_()
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("backbone", ["ir-se", "resnet"])
@pytest.mark.parametrize("heads", ["pyramid", "single"])
@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_shapes(resolution: int, heads: str, backbone: str) -> None:
    config = small(resolution, heads=heads, backbone=backbone)
    encoder = StyleEncoder(config).eval()
    assert encoder(images_of(2, resolution)).shape == (2, LATENTS[resolution], 16)
    # Each head reduces its own map to one pixel: 8, 16, 32 px at an input of 64.
    for index, head in enumerate(encoder.heads):
        level = 0 if heads == "single" else (index >= 3) + (index >= 7)
        side = stage_side(config.input_side, 2 - level)
        assert side == config.input_side // 2 ** (3 - level)
        assert isinstance(head, StyleHead)
        assert 2 ** sum(isinstance(layer, torch.nn.Conv2d) for layer in head.convs) == side


def test_e4e_is_one_w_and_deltas_from_three_depths() -> None:
    """The whole network again, by its weights and plain functions."""
    encoder, images = trained(small(64)), images_of(2, 64)
    x, taps = images, []
    for index, layer in enumerate(encoder.body):
        x = layer(x)
        if index in (3, 4, 5):
            taps.append(x)
    assert [tap.shape[1:] for tap in taps] == [(4, 32, 32), (6, 16, 16), (8, 8, 8)]
    pyramid = [taps[2]]
    for depth in (1, 2):
        lateral = encoder.laterals[depth - 1]
        finer = F.conv2d(taps[2 - depth], lateral.weight, lateral.bias)
        pyramid.append(
            F.interpolate(pyramid[-1], size=finer.shape[2:], mode="bilinear", align_corners=True) + finer
        )
    rows = []
    for index, head in enumerate(encoder.heads):
        y = pyramid[0 if index < 3 else 1 if index < 7 else 2]
        for conv in [m for m in head.convs if isinstance(m, torch.nn.Conv2d)]:
            y = F.leaky_relu(F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1), 0.01)
        rows.append(y[:, :, 0, 0] @ head.linear.weight.t() / 16**0.5 + head.linear.bias)
    expected = torch.stack([rows[0], *(rows[0] + row for row in rows[1:])], dim=1) + encoder.w_mean
    torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_stages_switch_deltas_on() -> None:
    encoder, images = trained(small()), images_of()
    whole = encoder(images)
    for stage in range(8):
        codes = encoder(images, stage=stage)
        differ = [not torch.equal(codes[:, row], codes[:, 0]) for row in range(6)]
        assert differ == [0 < row <= stage for row in range(6)]
        torch.testing.assert_close(codes[:, : stage + 1], whole[:, : stage + 1])
    plain = trained(small(deltas=False))
    torch.testing.assert_close(plain(images, stage=0), plain(images))


def test_deltas_are_silent_until_trained() -> None:
    codes = StyleEncoder(small()).eval()(images_of())
    assert torch.equal(codes, codes[:, :1].expand_as(codes))


def test_restyle_adds_codes_and_sees_the_average_image_first(tiny_model: Model) -> None:
    encoder, images, generator = trained(again()), images_of(), tiny_model.generator
    encoder.w_mean.copy_(tiny_model.w_mean)
    seen: list[Tensor] = []
    encoder.body.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    stem = encoder.body[0]
    stem.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    average = average_image(generator, tiny_model.w_mean)
    codes = encoded(encoder, generator, images, average)
    assert len(seen) == 3
    torch.testing.assert_close(
        seen[0], torch.cat([images, generator.synthesis(tiny_model.w_mean.expand(2, -1))], 1)
    )
    before = tiny_model.w_mean.expand(2, 6, 16)
    for index in range(3):
        torch.testing.assert_close(seen[index][:, :3], images)
        if index:
            torch.testing.assert_close(seen[index][:, 3:], generator.synthesis(before))
        step = encoder(images, seen[index][:, 3:], torch.zeros(2, 6, 16))
        before = before + step
    torch.testing.assert_close(codes, before)
    # As many channels as it has, no more and no less.
    with pytest.raises(ValueError, match="6 channels, images without"):
        encoder(images)
    with pytest.raises(ValueError, match="3 channels, images with a"):
        trained(small())(images, images)


def test_sizes_that_make_no_network() -> None:
    for wrong, message in (
        ({"widths": (4, 4), "blocks": (1, 1)}, "three stages"),
        ({"heads": "none"}, "heads 'none'"),
        ({"passes": 2}, "one pass"),
        ({"input_channels": 4}, "3 input channels"),
        ({"style_dim": 0}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**wrong)  # type: ignore[arg-type]
    for wrong, message in (
        ({"backbone": "vgg"}, "backbone 'vgg'"),
        ({"blocks": (1,)}, "3 widths for 1 stages"),
        ({"widths": (4, 0, 4)}, "1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            StyleEncoder(small(**wrong))  # type: ignore[arg-type]


def test_files_read_back_and_belong_to_a_model(tiny_model: Model, tmp_path: Path) -> None:
    for kind, encoder in (("e4e", trained(small())), ("restyle", trained(again()))):
        assert kind_of(encoder) == kind
        path = save_encoder(tiny_model.path, encoder, tiny_model, {"images": 3}, torch.float32)
        assert path == tiny_model.path / KINDS[kind].file
        back = load_style_encoder(tiny_model, kind)
        assert back.config == encoder.config
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], value)
        assert read_any(path, kind)[1] == tiny_model.sha256
        with pytest.raises(FileError, match=f"holds '{KINDS[kind].record}', not 'encoder'"):
            read_encoder(path)
        other = dataclasses.replace(tiny_model, sha256="0" * 64)
        with pytest.raises(FileError, match="trained for another model"):
            load_style_encoder(other, kind)
    # The first encoders' files did not say what they are.
    tensors, record = read_tensors(path)
    write_tensors(path, tensors, {name: value for name, value in record.items() if name != "kind"})
    with pytest.raises(FileError, match="holds 'encoder', not 'encoder-restyle'"):
        load_style_encoder(tiny_model, "restyle")
    with pytest.raises(UsageError, match=r"has no encoder-e4e\.safetensors.*--kind e4e"):
        load_style_encoder(dataclasses.replace(tiny_model, path=tmp_path), "e4e")
    wide = trained(small(num_latents=8))
    path = save_encoder(tiny_model.path, wide, tiny_model, {})
    with pytest.raises(FileError, match="predicts 8 latents, tiny needs 6"):
        load_style_encoder(tiny_model, "e4e")


def test_damaged_files_are_one_line(tiny_model: Model) -> None:
    path = save_encoder(tiny_model.path, trained(small()), tiny_model, {})
    tensors, record = read_tensors(path)
    for change, message in (
        ({"heads": 7}, "bad encoder settings"),
        ({"widths": None}, "bad encoder settings"),
        ({"novel": 1}, "bad encoder settings"),
    ):
        write_tensors(path, tensors, {**record, "encoder": {**record["encoder"], **change}})
        with pytest.raises(FileError, match=message):
            load_style_encoder(tiny_model, "e4e")
    write_tensors(path, {k: v for k, v in tensors.items() if k != "heads.2.linear.bias"}, record)
    with pytest.raises(FileError, match=r"lacks the tensor heads\.2\.linear\.bias"):
        load_style_encoder(tiny_model, "e4e")


@pytest.mark.parametrize("kind", ["e4e", "restyle"])
def test_inversion_gives_the_networks_codes(
    kind: str, tiny_model: Model, tmp_path: Path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", lambda *_: fake_perceptual())
    config = small() if kind == "e4e" else again()
    save_encoder(tiny_model.path, trained(config), tiny_model, {}, torch.float32)
    inverter = Inverter.load(tiny_model, inversion_settings(method=kind))
    images = images_of(3)
    codes = inverter.invert(images)
    encoder = load_style_encoder(tiny_model, kind)
    average = average_image(tiny_model.generator, encoder.w_mean)
    expected = encoded(encoder, tiny_model.generator, images, average)
    for index, code in enumerate(codes):
        assert isinstance(code, Code)
        assert code.info["steps"] == 0
        assert not code.delta
        torch.testing.assert_close(code.w, expected[index], atol=1e-6, rtol=1e-5)
        save_code(tmp_path / "a.st", code)
        drawn = render(tiny_model, [load_code(tmp_path / "a.st", tiny_model)])
        error = float((drawn[0] - images[index]).square().mean())
        assert code.info["distortion"]["after"]["mse"] == pytest.approx(error, rel=1e-4)
    # Its first row is what another method may start from.
    start = Inverter.load(tiny_model, inversion_settings(method="wrangan", init=kind, steps=0))
    torch.testing.assert_close(start.initial_w(images), expected[:, 0])


@pytest.mark.parametrize("missing", [WranganError("no weights"), FileError("x.pth", "broken")])
def test_methods_that_optimise_nothing_need_no_perceptual_network(
    missing: WranganError,
    tiny_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load(name: str, device: object) -> object:  # noqa: ARG001
        raise missing

    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", load)
    for kind, network in (("e4e", trained(small())), ("restyle", trained(again()))):
        save_encoder(tiny_model.path, network, tiny_model, {}, torch.float32)
        inverter = Inverter.load(tiny_model, inversion_settings(method=kind))
        (code,) = inverter.invert(images_of(1))
        assert isinstance(code, Code)
        assert list(code.info["distortion"]["after"]) == ["mse"]
        assert code.info["perceptual"] is None
        assert f"{kind} needs no perceptual distance" in caplog.messages[-1]
        assert str(missing) in caplog.messages[-1]
    with pytest.raises(WranganError, match=str(missing)):
        Inverter.load(tiny_model, inversion_settings(init="mean"))
    monkeypatch.undo()
    with pytest.raises(UsageError, match="perceptual distance 'none'"):
        Inverter.load(dataclasses.replace(tiny_model, perceptual="none"), inversion_settings(method="e4e"))


def test_a_start_needs_a_common_w(tiny_model: Model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("wrangan_cli.engine.inversion.inverter.load_perceptual", lambda *_: fake_perceptual())
    save_encoder(tiny_model.path, trained(small(deltas=False)), tiny_model, {})
    with pytest.raises(UsageError, match="init e4e: the model's network predicts separate latents"):
        Inverter.load(tiny_model, inversion_settings(init="e4e"))
    assert Inverter.load(tiny_model, inversion_settings(method="e4e")).predict is not None


def test_the_encoder_into_w_keeps_its_file(tiny_model: Model) -> None:
    """Names and shapes as bundled models have them."""
    bundled = load_model("faces-64")
    encoder, trained_for = read_encoder(bundled.path / "encoder.safetensors")
    assert trained_for == bundled.sha256
    assert set(encoder.state_dict()) >= {"body.0.weight", "body.3.body.6.down.bias", "head.weight", "w_mean"}
    own = Encoder(EncoderConfig(TINY.style_dim, (8, 8), (1, 1), 16))
    assert kind_of(own) == "w"
    assert save_encoder(tiny_model.path, own, tiny_model, {}).name == "encoder.safetensors"
    assert random_generator_network().config.num_latents == LATENTS[16]
