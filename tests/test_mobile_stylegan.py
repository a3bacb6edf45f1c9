"""MobileStyleGAN against the network written down once more, plainly, in float64: images and gradients."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.architectures import MOBILE, network
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.ops.separable import inverse_haar, modulated_separable

WAVELET = dataclasses.replace(MOBILE, channels={4: 16, 8: 12, 16: 8}, num_latents=8, randomized_layers=4)
PLAIN = dataclasses.replace(WAVELET, head="plain")
HALF = 1 / math.sqrt(2)


def haar_by_convolutions(x: Tensor) -> Tensor:
    """Four transposed convolutions of stride 2, one a band: (B, C, H, W) → (B, C/4, 2H, 2W)."""
    out = x.shape[1] // 4
    low, high = torch.tensor([[HALF, HALF], [HALF, -HALF]], dtype=torch.float64)
    bands = [x[:, :out], *(x[:, out + band :: 3] for band in range(3))]
    total: Tensor | float = 0.0
    # Along the rows' direction (vertical) and along the columns (horizontal).
    for band, (rows, columns) in zip(
        bands, ((low, low), (high, low), (low, high), (high, high)), strict=True
    ):
        taps = torch.outer(rows, columns).to(x).expand(out, 1, 2, 2)
        total = total + F.conv_transpose2d(band, taps, stride=2, groups=out)
    assert isinstance(total, Tensor)
    return total


def plainly(config: MobileStyleGANConfig, state: dict[str, Tensor], w: Tensor) -> Tensor:
    """Images of w (B, rows, style_dim), from a state dict alone; the means of the weights."""

    def style(name: str, row: int, scale: float = 1.0) -> Tensor:
        factors = w[:, row] @ state[f"{name}.modulation.weight"].T + state[f"{name}.modulation.bias"]
        return factors[:, :, None, None] * scale

    def styled(x: Tensor, name: str, row: int, number: int) -> Tensor:
        channels = x.shape[1]
        x = x * style(name, row, 1 / math.sqrt(9 * channels))
        if f"{name}.dense.weight" in state:
            x = F.conv2d(x, state[f"{name}.dense.weight"], padding=1)
        else:
            x = F.conv2d(x, state[f"{name}.depthwise.weight"], padding=1, groups=channels)
            x = torch.einsum("oi,bihw->bohw", state[f"{name}.pointwise.weight"][:, :, 0, 0], x)
        x = x + state[f"noises.noise_{number}"] * state[f"{name}.noise.weight"]
        x = x + state[f"{name}.bias"][:, None, None]
        return torch.where(x > 0, x, 0.2 * x)

    x = state["input.input"].expand(len(w), -1, -1, -1)
    x = styled(x, "conv1", 0, 0)
    for k in range(len(config.channels) - 1):
        x = haar_by_convolutions(x * style(f"layers.{k}.up", 2 * k + 1))
        x = styled(x, f"layers.{k}.conv1", 2 * k + 1, 2 * k + 1)
        x = styled(x, f"layers.{k}.conv2", 2 * k + 2, 2 * k + 2)
    x = x * style("to_img", 2 * len(config.channels) - 1, 1 / math.sqrt(x.shape[1]))
    x = torch.einsum("oi,bihw->bohw", state["to_img.conv.weight"][:, :, 0, 0], x)
    x = x + state["to_img.bias"][:, None, None]
    return haar_by_convolutions(x) if config.head == "wavelet" else x


@pytest.mark.parametrize("config", [WAVELET, PLAIN], ids=["wavelet", "plain"])
@pytest.mark.parametrize("batch", [1, 3])
def test_images_and_gradients(config: MobileStyleGANConfig, batch: int) -> None:
    generator = network(config).double().requires_grad_(True)
    state = dict(generator.state_dict(keep_vars=True))
    w = torch.randn(batch, config.num_latents, config.style_dim, dtype=torch.float64, requires_grad=True)
    image, expected = generator.synthesis(w), plainly(config, state, w)
    assert image.shape == (batch, 3, config.resolution, config.resolution)
    assert torch.allclose(image, expected, rtol=1e-9, atol=1e-12)
    tensors = [w, *generator.synthesis_parameters().values()]
    weighing = torch.randn_like(image)
    found = torch.autograd.grad((image * weighing).sum(), tensors)
    for given, wanted in zip(found, torch.autograd.grad((expected * weighing).sum(), tensors), strict=True):
        assert torch.allclose(given, wanted, rtol=1e-8, atol=1e-10)


def test_half_side_is_the_low_band() -> None:
    generator = network(WAVELET).double()
    w = torch.randn(2, 16, dtype=torch.float64)
    whole = generator.synthesis(w)
    for side in (16, 8, 12):
        assert torch.allclose(generator.synthesis(w, side=side), F.adaptive_avg_pool2d(whole, side))


def test_the_inverse_haar_transform_is_orthonormal() -> None:
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64)
    y = inverse_haar(x)
    assert torch.allclose(y, haar_by_convolutions(x))
    assert y.square().sum().item() == pytest.approx(x.square().sum().item())


@pytest.mark.parametrize("own", [False, True], ids=["one weight for all", "one for each image"])
def test_a_batch_is_its_images(own: bool) -> None:
    """What a GPU computes in one go, and the CPU image by image with the styles in the weights."""
    x, style = torch.randn(3, 8, 6, 6), torch.randn(3, 8)
    shape = (3,) if own else ()
    depthwise, mixing = torch.randn(*shape, 8, 1, 3, 3), torch.randn(*shape, 5, 8, 1, 1)
    noise, bias = torch.randn(1, 1, 6, 6), torch.randn(5)
    together = modulated_separable(x, style, depthwise, mixing, noise, bias)
    for row in range(3):
        weights = (depthwise[row], mixing[row]) if own else (depthwise, mixing)
        alone = modulated_separable(x[row : row + 1], style[row : row + 1], *weights, noise, bias)
        assert torch.allclose(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_names_rows_and_sides() -> None:
    """Rows are those of StyleGAN2: conv1 0, block k 2k + 1 and 2k + 2."""
    weights = network(WAVELET).weights()
    assert list(weights) == [
        "conv1.dense",
        *(
            f"layers.{k}.{c}.{p}"
            for k in (0, 1)
            for c in ("conv1", "conv2")
            for p in ("depthwise", "pointwise")
        ),
    ]
    assert [weight.row for weight in weights.values()] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [weight.side for weight in weights.values()] == [4, 8, 8, 8, 8, 16, 16, 16, 16]
    random = [name for name, weight in weights.items() if weight.std is not None]
    assert random == list(weights)[1:], "the last four styled convolutions have two weights each"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"channels": {4: 16, 16: 8}}, "without a gap"),
        ({"channels": {4: 14, 8: 8}}, "multiples of 4"),
        ({"head": "skip"}, "head 'skip'"),
        ({"num_latents": 5}, "6"),
        ({"randomized_layers": ("layers.9",)}, "layers.9"),
        ({"style_dim": 0}, "whole numbers"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        dataclasses.replace(WAVELET, **change)  # type: ignore[arg-type]


def test_ffhq_has_the_teachers_rows() -> None:
    channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
    config = MobileStyleGANConfig(channels, randomized_layers=("layers.3", "layers.4", "layers.5"))
    assert (config.resolution, config.num_latents) == (1024, 18)
    with torch.device("meta"):
        generator = MobileStyleGANGenerator(config)
    synthesis = sum(p.numel() for n, p in generator.synthesis_parameters().items())
    assert sum(weight.shape.numel() for weight in generator.random_weights().values()) == 461_504
    assert synthesis == sum(p.numel() for p in generator.parameters()) - 461_504 - 8 * (512 * 512 + 512)
