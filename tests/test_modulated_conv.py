"""Modulated convolution: both forms against explicitly modulated and demodulated weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels.modulated import demodulation

from wrangan_cli.engine.ops.bias_act import bias_act
from wrangan_cli.engine.ops.fir import fir_kernel
from wrangan_cli.engine.ops.modulated_conv import modulated_conv2d, weight_energy

SCALE = 0.3


def explicit(
    x: Tensor, weights: Tensor, style: Tensor, demodulate: bool, up: bool, fir: Tensor | None = None
) -> Tensor:
    """One image at a time, with weights (B, O, I, k, k) modulated and demodulated as in eq. 1 and 3."""
    images = []
    for image, weight, row in zip(x, weights, style, strict=True):
        weight = SCALE * weight * row[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not up:
            images.append(F.conv2d(image[None], weight, padding=weight.shape[-1] // 2))
            continue
        assert fir is not None
        # Zero insertion, the true convolution with every weight, and then the FIR.
        size = weight.shape[-1]
        spread = torch.zeros(1, image.shape[0], 2 * image.shape[1], 2 * image.shape[2], dtype=x.dtype)
        spread[:, :, ::2, ::2] = image
        full = F.conv2d(spread, weight.flip(2, 3), padding=size - 1)[:, :, :-1, :-1]
        planes = full.transpose(0, 1)
        blurred = F.conv2d(planes, fir.flip(0, 1)[None, None], padding=1)
        images.append(blurred.transpose(0, 1))
    return torch.cat(images)


def case(dtype: torch.dtype = torch.float64, size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 4, 6, 7, dtype=dtype)
    weights = torch.randn(3, 5, 4, size, size, dtype=dtype)
    style = torch.randn(3, 4, dtype=dtype) + 1
    return x, weights, style


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("up", "size"), [(False, 3), (False, 1), (True, 3)])
def test_both_forms_equal_explicit_weights(demodulate: bool, up: bool, size: int) -> None:
    x, weights, style = case(size=size)
    fir = fir_kernel(gain=4.0).double() if up else None
    shared = modulated_conv2d(x, weights[0], style * SCALE, demodulate, up, fir)
    expected = explicit(x, weights[:1].expand_as(weights), style, demodulate, up, fir)
    torch.testing.assert_close(shared, expected, atol=1e-10, rtol=1e-8)
    own = modulated_conv2d(x, weights, style * SCALE, demodulate, up, fir)
    torch.testing.assert_close(own, explicit(x, weights, style, demodulate, up, fir), atol=1e-10, rtol=1e-8)
    assert own.shape[2:] == ((12, 14) if up else (6, 7))


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_shared_and_per_image_forms_agree_in_float32(up: bool, batch: int) -> None:
    x = torch.randn(batch, 16, 8, 8)
    weight = torch.randn(8, 16, 3, 3)
    style = torch.randn(batch, 16) + 1
    fir = fir_kernel(gain=4.0)
    scale = 1 / math.sqrt(16 * 9)
    shared = modulated_conv2d(x, weight, style * scale, up=up, fir=fir)
    grouped = modulated_conv2d(x, weight.expand(batch, -1, -1, -1, -1), style * scale, up=up, fir=fir)
    assert (shared - grouped).abs().max() < 1e-5


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("up", [False, True])
def test_gradients_of_second_order(per_image: bool, up: bool) -> None:
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    shape = (2, 2, 2, 3, 3) if per_image else (2, 2, 3, 3)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    style = (torch.rand(2, 2, dtype=torch.float64) + 0.5).requires_grad_(True)
    fir = fir_kernel(gain=4.0).double()

    def function(x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
        return modulated_conv2d(x, weight, style * SCALE, True, up, fir)

    assert torch.autograd.gradcheck(function, (x, weight, style), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, weight, style), fast_mode=True)


def test_demodulated_weights_have_unit_norm() -> None:
    _, weights, style = case()
    modulated = SCALE * weights * style[:, None, :, None, None]
    factor = demodulation(weight_energy(weights), style * SCALE)
    norms = (modulated * factor[:, :, None, None, None]).square().sum(dim=(2, 3, 4))
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)
    shared = demodulation(weight_energy(weights[0]), style * SCALE)
    torch.testing.assert_close(shared[0], factor[0])


def test_upsampling_without_a_filter_is_refused() -> None:
    x, weights, style = case()
    with pytest.raises(ValueError, match="FIR"):
        modulated_conv2d(x, weights[0], style * SCALE, up=True)


def test_bias_act_is_leaky_relu_with_gain_and_clamp() -> None:
    x = torch.tensor([[-2.0, -0.5, 0.5, 2.0]]).t()[None, :, :, None]
    bias = torch.tensor([1.0, 0.0, 0.0, 0.5])
    expected = torch.tensor([-0.2, -0.1, 0.5, 2.5]) * math.sqrt(2)
    torch.testing.assert_close(bias_act(x, bias).flatten(), expected)
    torch.testing.assert_close(bias_act(x, bias, clamp=0.25).flatten(), expected.clamp(-0.25, 0.25))
    torch.testing.assert_close(
        bias_act(x, bias, activate=False, clamp=2.0).flatten(), torch.tensor([-1.0, -0.5, 0.5, 2.0])
    )
