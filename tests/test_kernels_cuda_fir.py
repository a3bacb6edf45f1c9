"""The bodies of the FIR kernels, run on the CPU, number by number against formulas in float64."""

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels_cuda_formulas import Pad, activated, direct, sides, slopes, transposed
from tests.kernels_cuda_host import Act, Fir, library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def driver() -> ctypes.CDLL:
    return library()


pytestmark = [pytest.mark.cuda_build, pytest.mark.usefixtures("fresh_seed")]


def assert_close(got: Tensor, expected: Tensor, magnitude: Tensor, taps: int) -> None:
    """Within what float32 sums of taps² numbers may lose, and one rounding to the type.

    magnitude: the same sum of absolute values.
    """
    assert got.shape == expected.shape
    rounding = torch.finfo(got.dtype).eps
    smallest = torch.finfo(got.dtype).smallest_normal * rounding
    allowed = magnitude.abs() * (2 * taps**2 + 16) * 2.0**-24 + expected.abs() * rounding + smallest
    error = (got.double() - expected).abs()
    assert bool((error <= allowed).all()), f"off by {(error / allowed).max().item():.3g} of what is allowed"


def maps(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    x = torch.randn(shape).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def fir(taps: int, separable: bool) -> Tensor:
    """Not symmetric, so that a correlation in place of a convolution is noticed."""
    return (
        torch.outer(torch.rand(taps) + 0.1, torch.rand(taps) + 0.1) if separable else torch.randn(taps, taps)
    )


def check_upfirdn(
    driver: ctypes.CDLL, x: Tensor, kernel: Tensor, up: int, down: int, pad: Pad, offset: int = 0
) -> None:
    taps = kernel.shape[0]
    shape = Fir(driver, x, kernel, sides(x, taps, up, down, pad), pad[0], offset=offset)
    got = shape.upfirdn2d(x, up, down)
    assert got.is_contiguous(memory_format=torch.channels_last if shape.last else torch.contiguous_format)
    magnitude = direct(x.abs(), kernel.abs(), up, down, pad)
    assert_close(got, direct(x, kernel, up, down, pad), magnitude, taps)


FACTORS = [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (4, 2), (3, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("up", "down"), FACTORS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_factors(driver: ctypes.CDLL, dtype: torch.dtype, up: int, down: int, channels_last: bool) -> None:
    for taps, separable, pad, shape in (
        (4, True, (2, 1), (1, 8, 9, 13)),
        (4, False, (-1, 4), (5, 4, 12, 8)),
        (8, True, (5, 3), (1, 4, 16, 24)),
        (8, False, (3, 6), (2, 12, 7, 11)),
        (3, False, (1, 1), (5, 3, 6, 5)),
    ):
        check_upfirdn(driver, maps(shape, dtype, channels_last), fir(taps, separable), up, down, pad)


@pytest.mark.parametrize("taps", range(1, 9))
@pytest.mark.parametrize("separable", [True, False])
def test_every_number_of_taps(driver: ctypes.CDLL, taps: int, separable: bool) -> None:
    for up, down in ((1, 1), (2, 1), (1, 2)):
        pad = (taps // 2 + 1, taps // 2)
        check_upfirdn(driver, torch.randn(2, 4, 10, 9), fir(taps, separable), up, down, pad)


@pytest.mark.parametrize("pad", [(0, 0), (7, 7), (-2, -3), (9, -4), (-4, 9), (12, 12), (0, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_padding_and_cropping(driver: ctypes.CDLL, pad: Pad, channels_last: bool) -> None:
    x = maps((2, 8, 17, 15), torch.float32, channels_last)
    for up, down in ((1, 1), (2, 1), (1, 2)):
        check_upfirdn(driver, x, fir(4, False), up, down, pad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 2, 70, 131), (1, 1, 33, 260), (3, 5, 4, 4), (1, 132, 9, 3), (2, 4, 1, 64)]
)
def test_more_than_one_tile(
    driver: ctypes.CDLL, dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...]
) -> None:
    x = maps(shape, dtype, channels_last)
    for up, down in ((1, 1), (2, 1), (1, 2)):
        check_upfirdn(driver, x, fir(4, True), up, down, (3, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_not_aligned(driver: ctypes.CDLL, dtype: torch.dtype, channels_last: bool) -> None:
    x = maps((2, 8, 16, 16), dtype, channels_last)
    for offset in (1, 2, 4):
        check_upfirdn(driver, x, fir(4, True), 1, 1, (2, 1), offset=offset)


def test_a_kernel_that_sums_to_nothing(driver: ctypes.CDLL) -> None:
    """Of rank one, but its factors cannot be had from its sums."""
    line = torch.tensor([1.0, -3.0, 5.0, 2.0, -2.0, -5.0, 3.0, -1.0])
    for kernel in (torch.outer(line, line), torch.zeros(8, 8), torch.outer(line, torch.arange(1.0, 9.0))):
        check_upfirdn(driver, torch.randn(2, 3, 12, 12), kernel, 1, 1, (4, 3))


def test_nearly_separable_is_not_separable(driver: ctypes.CDLL) -> None:
    kernel = fir(8, True)
    kernel[2, 5] *= 1.001
    check_upfirdn(driver, torch.randn(1, 3, 12, 12), kernel, 1, 1, (4, 3))


def test_a_number_that_is_not_one_stays_where_it_belongs(driver: ctypes.CDLL) -> None:
    x = torch.randn(1, 1, 24, 24)
    x[0, 0, 12, 12] = torch.nan
    got = Fir(driver, x, fir(4, True), (23, 23), 1).upfirdn2d(x, 1, 1)
    rows, cols = got[0, 0].isnan().nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (10, 13, 10, 13)
    assert len(rows) == 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 4, 9, 5), (1, 8, 40, 72)])
@pytest.mark.parametrize("taps", [2, 4, 6])
def test_add_upsampled(
    driver: ctypes.CDLL, dtype: torch.dtype, channels_last: bool, shape: tuple[int, ...], taps: int
) -> None:
    skip, kernel = maps(shape, dtype, channels_last), fir(taps, True)
    pad = ((taps - 1) // 2 + 1, (taps - 2) // 2)
    y = maps((*shape[:2], 2 * shape[2], 2 * shape[3]), dtype, channels_last)
    got = Fir(driver, skip, kernel, y.shape[2:], pad[0]).add_upsampled(y, skip)
    expected = y.double() + direct(skip, kernel, 2, 1, pad)
    assert_close(got, expected, y.double().abs() + direct(skip.abs(), kernel, 2, 1, pad), taps)


NUMBERS = {"plain": (0.2, 2**0.5, -1.0), "clamped": (0.1, 1.5, 1.0), "linear": (1.0, 1.0, -1.0)}
ACTS = {name: Act(*numbers) for name, numbers in NUMBERS.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("taps", [0, 4, 6])
@pytest.mark.parametrize("act", ACTS)
def test_fir_act(driver: ctypes.CDLL, dtype: torch.dtype, channels_last: bool, taps: int, act: str) -> None:
    for shape, noises, given in (
        ((1, 8, 16, 16), 1, "scale bias noise"),
        ((5, 4, 9, 7), 5, "scale bias noise"),
        ((5, 3, 12, 40), 1, "bias noise"),
        ((2, 8, 5, 5), 2, "scale"),
        ((1, 16, 4, 4), 1, ""),
    ):
        x = maps(shape, dtype, channels_last)
        kernel = fir(taps, True) if taps else None
        pad = (taps - 3, 1) if taps else (0, 0)
        out = sides(x, taps, 1, 1, pad) if taps else shape[2:]
        scale = torch.rand(shape[:2]) + 0.5 if "scale" in given else None
        bias = torch.randn(shape[1]) if "bias" in given else None
        noise = torch.randn(noises, 1, *out) if "noise" in given else None
        strength = torch.randn(1) if "noise" in given else None
        got = Fir(driver, x, kernel, out, pad[0]).fir_act(x, scale, bias, noise, strength, ACTS[act])

        filtered = x.double() if kernel is None else direct(x, kernel, 1, 1, pad)
        magnitude = x.double().abs() if kernel is None else direct(x.abs(), kernel.abs(), 1, 1, pad)
        factor = 1.0 if scale is None else scale.double()[:, :, None, None]
        extra: Any = 0.0 if noise is None or strength is None else noise.double() * strength.double()
        offset = 0.0 if bias is None else bias.double()[:, None, None]
        expected = activated(factor * filtered + extra + offset, *NUMBERS[act])
        bound = factor * magnitude + abs(extra) + (0.0 if bias is None else offset.abs())
        assert_close(got, expected, bound * max(1.0, ACTS[act].gain), taps)


def test_fir_act_keeps_what_is_not_a_number(driver: ctypes.CDLL) -> None:
    x = torch.full((1, 1, 8, 8), torch.nan)
    for kernel, side in ((None, 8), (fir(4, True), 7)):
        call = Fir(driver, x, kernel, (side, side), int(kernel is not None))
        assert bool(call.fir_act(x, None, None, None, None, ACTS["clamped"]).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_act_grad(driver: ctypes.CDLL, dtype: torch.dtype, channels_last: bool, act: str) -> None:
    for shape in ((1, 8, 16, 16), (5, 4, 9, 7), (5, 3, 3, 3)):
        grad = maps(shape, dtype, channels_last)
        y = activated(maps(shape, dtype, channels_last).double(), *NUMBERS[act]).to(dtype)
        scale = torch.rand(shape[:2]) + 0.5
        pre = grad.double() * slopes(y, *NUMBERS[act])
        call = Fir(driver, grad, None, shape[2:])
        grad_pre, grad_x = call.act_grad(grad, y, scale, ACTS[act])
        assert_close(grad_pre, pre, pre, 1)
        scaled = pre * scale.double()[:, :, None, None]
        assert_close(grad_x, scaled, scaled, 1)
        (alone,) = call.act_grad(grad, y, None, ACTS[act], want_x=False)
        assert torch.equal(alone, grad_pre)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("taps", "pad"),
    [(4, (1, 1)), (4, (2, 1)), (4, (0, 0)), (4, (3, 3)), (3, (2, 0)), (8, (4, 3)), (6, (0, 5))],
)
def test_fir_act_grad(driver: ctypes.CDLL, dtype: torch.dtype, act: str, taps: int, pad: Pad) -> None:
    for shape in ((1, 2, 16, 16), (5, 3, 9, 11), (1, 2, 70, 133), (2, 2, 64, 65), (3, 5, 32, 128)):
        kernel = fir(taps, taps != 8)
        out = sides(torch.empty(shape), taps, 1, 1, pad)
        grad = maps((*shape[:2], *out), dtype, False)
        y = activated(maps(grad.shape, dtype, False).double(), *NUMBERS[act]).to(dtype)
        scale = torch.rand(shape[:2]) + 0.5 if taps != 3 else None
        # FIRᵀ is the FIR with the kernel as it is (not flipped) and other paddings.
        call = Fir(driver, grad, kernel, shape[2:], taps - 1 - pad[0], flip=False)
        grad_x, grad_pre = call.fir_act_grad(grad, y, scale, ACTS[act])
        pre = grad.double() * slopes(y, *NUMBERS[act])
        assert_close(grad_pre, pre, pre, 1)
        factor = 1.0 if scale is None else scale.double()[:, :, None, None]
        bound = transposed(pre.abs(), kernel.abs(), pad, shape[2:])
        assert_close(grad_x, factor * transposed(pre, kernel, pad, shape[2:]), factor * bound, taps)


@pytest.mark.parametrize("pad", [(4, 1), (1, 4)])
def test_one_pass_is_declined_where_a_place_has_no_tile(driver: ctypes.CDLL, pad: Pad) -> None:
    """Padding beyond taps − 1: outputs without inputs. operators.cpp then takes two passes."""
    out = sides(torch.empty(1, 1, 8, 8), 4, 1, 1, pad)
    grad = torch.randn(1, 1, *out)
    call = Fir(driver, grad, fir(4, True), (8, 8), 3 - pad[0], flip=False)
    with pytest.raises(AssertionError):
        call.fir_act_grad(grad, grad, None, ACTS["plain"])


@pytest.mark.parametrize("channels_last", [False, True])
def test_two_passes_of_the_backward(driver: ctypes.CDLL, channels_last: bool) -> None:
    """As operators.cpp calls them: act_grad without grad_x, then the FIR without flip, scaled."""
    kernel, pad, shape = fir(4, True), (4, 1), (2, 8, 9, 10)
    out = sides(torch.empty(shape), 4, 1, 1, pad)
    grad, y = (maps((*shape[:2], *out), torch.float32, channels_last) for _ in range(2))
    scale = torch.rand(shape[:2]) + 0.5
    (grad_pre,) = Fir(driver, grad, None, out).act_grad(grad, y, None, ACTS["plain"], want_x=False)
    call = Fir(driver, grad, kernel, shape[2:], 3 - pad[0], flip=False)
    grad_x = call.upfirdn2d(grad_pre, 1, 1, scale)
    pre = grad.double() * slopes(y, *NUMBERS["plain"])
    factor = scale.double()[:, :, None, None]
    bound = transposed(pre.abs(), kernel, pad, shape[2:])
    assert_close(grad_x, factor * transposed(pre, kernel, pad, shape[2:]), factor * bound, 5)
