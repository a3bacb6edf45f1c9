"""The convolution of the image: its gradients against those of PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.models.perceptual import shift_tolerant_taps
from wrangan_cli.engine.ops.image_conv import FrozenConv3x3, ImageConv2d, with_frozen_convs

CASES = [(3, 1, 12, 9), (11, 2, 20, 17), (5, 0, 9, 9), (5, 4, 8, 7), (1, 0, 5, 6)]


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("side", "padding", "height", "width"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(
    side: int, padding: int, height: int, width: int, layout: torch.memory_format
) -> None:
    conv = ImageConv2d(3, 8, side, padding=padding).double().requires_grad_(False)
    conv = conv.to(memory_format=layout)
    ours, theirs = images(height, width), images(height, width)
    theirs.data = ours.data.clone()
    found = conv(ours)
    expected = F.conv2d(theirs, conv.weight, conv.bias, padding=padding)
    assert type(found.grad_fn).__name__ == "_ByRowsBackward"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    seed = torch.randn_like(found)
    found.backward(seed)
    expected.backward(seed)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_second_derivatives() -> None:
    conv = ImageConv2d(3, 4, 5, padding=2).double().requires_grad_(False)
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: conv(x).square(), (x,))


def test_weights_that_learn_get_their_gradient() -> None:
    conv = ImageConv2d(3, 4, 3, padding=1)
    conv(torch.randn(1, 3, 8, 8, requires_grad=True)).sum().backward()
    assert conv.weight.grad is not None
    assert float(conv.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("vgg", [True, False])
def test_the_first_layer_of_the_distances_is_one(vgg: bool) -> None:
    kinds = [type(layer) for tap in shift_tolerant_taps(vgg) for layer in tap if hasattr(layer, "weight")]
    assert kinds[0] is ImageConv2d
    assert set(kinds[1:]) == {torch.nn.Conv2d}


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 4, 4), (5, 3, 3), (1, 18, 20), (1, 40, 33)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_convolutions_are_pytorchs(shape: tuple[int, int, int], layout: torch.memory_format) -> None:
    batch, height, width = shape
    own = torch.nn.Sequential(
        torch.nn.Conv2d(5, 7, 3, padding=1), torch.nn.Conv2d(7, 4, 3, padding=1, bias=False)
    )
    plain = [F.conv2d, *(conv.weight.double().detach() for conv in own), own[0].bias.double().detach()]
    own = own.requires_grad_(False).to(memory_format=layout)
    with_frozen_convs(own)
    assert all(type(conv) is FrozenConv3x3 and conv.weight.is_contiguous() for conv in own)
    convolve, first, second, bias = plain
    x = torch.randn(batch, 5, height, width)
    mine, reference = x.to(memory_format=layout).requires_grad_(), x.double().requires_grad_()
    found = own(mine)
    expected = convolve(convolve(reference, first, bias, padding=1), second, padding=1)
    seed = torch.randn(expected.shape)
    (gradient,) = torch.autograd.grad(found, mine, seed)
    (wanted,) = torch.autograd.grad(expected, reference, seed.double())
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max())
    )
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_other_convolutions_stay_as_they_are() -> None:
    kinds = [
        {"stride": 2, "padding": 1},
        {"padding": 0},
        {"padding": 1, "groups": 2},
        {"padding": 2, "dilation": 2},
    ]
    network = torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 3, **kind) for kind in kinds))
    with_frozen_convs(network)
    assert {type(conv) for conv in network} == {torch.nn.Conv2d}
