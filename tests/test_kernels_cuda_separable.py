"""The bodies of the depthwise convolution and of the Haar transform, and of their gradients, run on the CPU,
against formulas in float64."""

import ctypes

import pytest
import torch
from torch import Tensor

from tests.kernels_cuda_formulas import depthwise, haar_up
from tests.kernels_cuda_host import Strips, library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [
    (1, 4, 1, 1),
    (3, 8, 5, 9),  # fewer packs than stand beside each other, and lines than a strip has
    (2, 64, 17, 6),  # one strip of sums and a line
    (1, 72, 35, 18),  # packs that do not fill a group, columns likewise
    (2, 7, 33, 5),  # no packs
    (1, 33, 4, 19),
]
OFFSETS = pytest.mark.parametrize("offset", [0, 1])
pytestmark = [pytest.mark.cuda_build, pytest.mark.usefixtures("fresh_seed")]


@pytest.fixture(scope="module")
def driver() -> ctypes.CDLL:
    return library()


def near(got: Tensor, expected: Tensor, dtype: torch.dtype, terms: int) -> None:
    """Within 1e-6 of the largest number for each of the root of `terms`, and one rounding."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    allowed = expected.abs().max() * 1e-6 * terms**0.5 + expected.abs() * torch.finfo(dtype).eps + 1e-6
    error = (got.double() - expected).abs()
    assert bool((error <= allowed).all()), f"off by {(error / allowed).max().item():.3g} of what is allowed"


@OFFSETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise(driver: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, offset: int) -> None:
    x = torch.randn(shape).to(dtype)
    call = Strips(driver, shape, dtype, offset)
    for sets in {1, shape[0]}:
        taps = torch.randn(sets, shape[1], 3, 3)
        near(call.depthwise(x, taps, turned=False), depthwise(x, taps), dtype, 9)
        near(call.depthwise(x, taps, turned=True), depthwise(x, taps.flip(2, 3)), dtype, 9)


@OFFSETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_the_taps(
    driver: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, offset: int
) -> None:
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    taps = torch.zeros(shape[0], shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(depthwise(x, taps), taps, grad.double())
    found = Strips(driver, shape, dtype, offset).depthwise_taps(x, grad)
    near(found, expected, torch.float32, shape[2] * shape[3])


@OFFSETS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_haar_up(driver: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, offset: int) -> None:
    batch, quarter, height, width = shape
    x = torch.randn(batch, 4 * quarter, height, width).to(dtype)
    style = torch.randn(batch, 4 * quarter)
    call = Strips(driver, shape, dtype, offset)
    given = [x.double().requires_grad_(), style.double().requires_grad_()]
    expected = haar_up(*given)
    near(call.haar_up(x, style), expected.detach(), dtype, 4)
    grad = torch.randn(expected.shape).to(dtype)
    right_x, right_style = torch.autograd.grad(expected, given, grad.double())
    for want_x, want_style in ((True, True), (True, False), (False, True)):
        found = call.haar_up_grad(grad, x, style, want_x, want_style)
        assert len(found) == want_x + want_style
        if want_x:
            near(found[0], right_x, dtype, 4)
        if want_style:
            near(found[-1], right_style, torch.float32, height * width)


def test_a_number_that_is_none_stays_so(driver: ctypes.CDLL) -> None:
    """And does not spread beyond its neighbours."""
    x = torch.randn(1, 8, 20, 20)
    x[0, 3, 8, 8] = torch.nan
    found = Strips(driver, (1, 8, 20, 20), torch.float32).depthwise(x, torch.ones(1, 8, 3, 3), turned=False)
    assert found.isnan().nonzero().tolist() == [[0, 3, i, j] for i in (7, 8, 9) for j in (7, 8, 9)]


def test_no_image_depends_on_its_batch(driver: ctypes.CDLL) -> None:
    """Bit for bit, the parts of the sums too."""
    x, grad, taps = torch.randn(3, 12, 19, 7), torch.randn(3, 12, 19, 7), torch.randn(3, 12, 3, 3)
    call = Strips(driver, x.shape, torch.float32)
    whole, sums = call.depthwise(x, taps, turned=False), call.depthwise_taps(x, grad)
    for i in range(3):
        one = slice(i, i + 1)
        alone = Strips(driver, x[one].shape, torch.float32)
        assert torch.equal(alone.depthwise(x[one], taps[one], turned=False), whole[one])
        assert torch.equal(alone.depthwise_taps(x[one], grad[one]), sums[one])
