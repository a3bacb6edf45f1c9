"""FIR resampling against zero insertion + scipy, and its gradients of second order."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from wrangan_cli.engine.ops.fir import (
    down_conv_padding,
    fir_kernel,
    up_conv_padding,
    upfirdn2d,
    upsample_padding,
)


def direct(x: np.ndarray, kernel: np.ndarray, up: int, down: int, pad: tuple[int, int]) -> np.ndarray:
    """The definition: insert zeros, pad or crop, true convolution, keep every `down`-th sample."""
    batch, channels, height, width = x.shape
    spread = np.zeros((batch, channels, height * up, width * up))
    spread[:, :, ::up, ::up] = x
    grow = [(max(p, 0)) for p in pad]
    spread = np.pad(spread, ((0, 0), (0, 0), grow, grow))
    first, last = max(-pad[0], 0), max(-pad[1], 0)
    spread = spread[:, :, first : spread.shape[2] - last, first : spread.shape[3] - last]
    planes = [[convolve2d(plane, kernel, mode="valid") for plane in image] for image in spread]
    return np.array(planes)[:, :, ::down, ::down]


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (3, 6)])
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 4, 6, 4, 1, 2)])
@pytest.mark.parametrize(
    ("up", "down", "pad"),
    [
        (1, 1, (1, 2)),
        (1, 1, (2, 2)),
        (1, 2, (3, 3)),
        (1, 2, (2, 3)),
        (2, 1, (2, 1)),
        (2, 1, (3, 3)),
        (2, 2, (2, 2)),
        (3, 1, (4, 2)),
        (3, 2, (2, 4)),
        (1, 1, (4, -1)),
        (2, 1, (-1, 4)),
        (2, 1, (6, 5)),
    ],
)
def test_upfirdn_equals_direct_convolution(
    size: tuple[int, int], taps: tuple[int, ...], up: int, down: int, pad: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    # Not symmetric, so that a correlation in place of a convolution is noticed.
    kernel = torch.outer(torch.tensor(taps), torch.arange(1, len(taps) + 1)).double()
    got = upfirdn2d(x, kernel, up, down, pad)
    expected = direct(x.numpy(), kernel.numpy(), up, down, pad)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("up", "down", "pad"), [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 1)), (2, 2, (2, 2))]
)
def test_upfirdn_gives_gradients_twice(up: int, down: int, pad: tuple[int, int]) -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    kernel = fir_kernel().double()

    # Squared, because the second derivative of a linear map is zero.
    def function(value: torch.Tensor) -> torch.Tensor:
        return upfirdn2d(value, kernel, up, down, pad).square()

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_kernel_is_the_outer_product_with_the_wanted_gain() -> None:
    line = np.array([1, 3, 3, 1]) / 8
    np.testing.assert_allclose(fir_kernel().numpy(), np.outer(line, line), atol=1e-7)
    assert fir_kernel(gain=4.0).sum().item() == pytest.approx(4.0)


@pytest.mark.parametrize("taps", [2, 3, 4, 5, 6])
def test_paddings_double_and_halve_sizes(taps: int) -> None:
    kernel = fir_kernel([1.0] * taps)
    x = torch.ones(1, 1, 8, 8)
    assert upfirdn2d(x, kernel, up=2, pad=upsample_padding(taps)).shape[2:] == (16, 16)
    # A stride-2 transposed 3×3 convolution gives 2·8 + 1 rows; the FIR makes 16 of them.
    assert upfirdn2d(torch.ones(1, 1, 17, 17), kernel, pad=up_conv_padding(taps, 3)).shape[2:] == (16, 16)
    for size in (1, 3):
        blurred = upfirdn2d(x, kernel, pad=down_conv_padding(taps, size))
        assert (blurred.shape[2] - size) // 2 + 1 == 4


def test_upsampling_keeps_a_flat_image_flat_inside() -> None:
    kernel = fir_kernel(gain=4.0)
    up = upfirdn2d(torch.full((1, 2, 6, 6), 0.7), kernel, up=2, pad=upsample_padding(4))
    torch.testing.assert_close(up[:, :, 2:-2, 2:-2], torch.full((1, 2, 8, 8), 0.7))


def test_half_precision_input_stays_half() -> None:
    x = torch.randn(1, 2, 6, 6)
    half = upfirdn2d(x.bfloat16(), fir_kernel(), down=2, pad=(1, 1))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.float(), upfirdn2d(x, fir_kernel(), down=2, pad=(1, 1)), atol=0.03, rtol=0.03
    )
