"""The CUDA operators as PyTorch sees them: values, gradients, second gradients, layouts, errors.

On a GPU:                 python -m pytest -m gpu tests/test_kernels_cuda_operators.py
and under the sanitizer:  docs/kernels-cuda.md
Without one, `test_on_the_cpu` runs this file in a process of its own, where the operators are those
of kernels/wrangan_kernels/cuda/operators.cpp with the kernels' bodies run on the CPU. What only a GPU has
(streams, captured graphs, sizes beyond 2^31) stays skipped there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels_cuda_checks import (
    DEVICE,
    DTYPES,
    anywhere,
    check_gradients,
    close,
    cpu64,
    leaves,
    maps,
    operators,
    ops,
    poison,
    run_on_the_cpu,
    starts_a_process,
)
from tests.kernels_cuda_formulas import Pad, activated, before_activation, direct, modulated, slopes

__all__ = ["operators", "poison"]
pytestmark = [pytest.mark.cuda_build, pytest.mark.usefixtures("fresh_seed", "operators", "poison")]


@starts_a_process
def test_on_the_cpu() -> None:
    run_on_the_cpu(__file__)


def fir(taps: int) -> Tensor:
    """Neither symmetric nor separable."""
    return (torch.rand(taps, taps) + 0.1).to(DEVICE) / taps


FACTORS = [
    (1, 1, (1, 2)),
    (2, 1, (2, 1)),
    (1, 2, (2, 2)),
    (4, 1, (5, 2)),
    (1, 4, (3, 3)),
    (2, 2, (3, 1)),
    (1, 2, (4, -1)),
]
LAYOUTS = pytest.mark.parametrize("last", [False, True])


@anywhere
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("up", "down", "pad"), FACTORS)
def test_upfirdn2d(dtype: torch.dtype, up: int, down: int, pad: Pad, last: bool) -> None:
    for shape, taps in (((5, 4, 9, 7), 4), ((1, 3, 16, 16), 6), ((1, 8, 12, 40), 3)):
        x, kernel = maps(shape, dtype, last), fir(taps)
        got = ops.upfirdn2d(*leaves(x), kernel, up, down, *pad)
        close(got, direct(x.cpu(), kernel.cpu(), up, down, pad), dtype)
        assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        (mine,), (right,) = leaves(x), cpu64(x)
        result = ops.upfirdn2d(mine, kernel, up, down, *pad)
        check_gradients([mine], result, [right], direct(right, kernel.cpu(), up, down, pad))


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(dtype: torch.dtype) -> None:
    kernel = fir(4)
    wide = maps((3, 8, 12, 20), dtype)
    views = [wide[:, ::2], wide[:, :, :, 3:16], wide.transpose(2, 3), wide[:1].expand(3, -1, -1, -1)]
    for x in views:
        got = ops.upfirdn2d(x, kernel, 1, 1, 2, 1)
        close(got, direct(x.cpu(), kernel.cpu(), 1, 1, (2, 1)), dtype)
        got = ops.fir_act(x, None, 0, 0, None, None, None, None, 0.2, 1.0, -1.0)
        close(got, activated(x.double().cpu(), 0.2, 1.0, -1.0), dtype)


@anywhere
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 4, 9, 5)])
def test_add_upsampled(dtype: torch.dtype, last: bool, shape: tuple[int, ...]) -> None:
    for taps in (4, 2, 6):
        skip, kernel = maps(shape, dtype, last), fir(taps)
        y = maps((*shape[:2], 2 * shape[2], 2 * shape[3]), dtype, last)
        pad = ((taps - 1) // 2 + 1, (taps - 2) // 2)
        mine, right = leaves(y, skip), cpu64(y, skip)
        got = ops.add_upsampled(*mine, kernel)
        expected = right[0] + direct(right[1], kernel.cpu(), 2, 1, pad)
        close(got, expected, dtype)
        check_gradients(mine, got, right, expected)


@anywhere
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["all", "no noise", "no scale", "nothing"])
@pytest.mark.parametrize(("taps", "pad"), [(0, (0, 0)), (4, (1, 1)), (3, (0, 2)), (4, (4, 1))])
def test_fir_act(dtype: torch.dtype, last: bool, given: str, taps: int, pad: Pad) -> None:
    for shape, noises in (((5, 4, 9, 7), 5), ((1, 8, 16, 16), 1), ((5, 4, 8, 8), 1)):
        numbers = (0.2, 2**0.5, 1.5 if noises > 1 else -1.0)
        kernel = fir(taps) if taps else None
        extra = sum(pad) - taps + 1 if taps else 0
        noise = maps((noises, 1, shape[2] + extra, shape[3] + extra))
        scale = torch.rand(shape[:2]).to(DEVICE) + 0.5
        parts: list[Tensor | None] = [maps(shape, dtype, last), noise, maps((1,)), scale, maps((shape[1],))]
        if given in ("no noise", "nothing"):
            parts[1] = parts[2] = None
        if given in ("no scale", "nothing"):
            parts[3] = None
        if given == "nothing":
            parts[4] = None
        mine, right = leaves(*parts), cpu64(*parts)
        got = ops.fir_act(mine[0], kernel, *pad, *mine[1:], *numbers)
        on_cpu = None if kernel is None else kernel.cpu()
        pre = before_activation(right[0], on_cpu, pad, *right[1:])
        close(got, activated(pre, *numbers), dtype)
        # Which piece of the activation a number is on is told by the result as it is stored.
        expected = pre * slopes(got.detach().cpu(), *numbers)
        check_gradients(mine, got, right, expected)


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kind", ["image", "shared", "half", "none"])
@pytest.mark.parametrize("shape", [(1, 4, 8, 3), (5, 3, 7, 3), (2, 3, 12, 1)])
def test_modulated_weight(
    dtype: torch.dtype, demodulate: bool, kind: str, shape: tuple[int, int, int, int]
) -> None:
    batch, outputs, inputs, size = shape
    own = (outputs, inputs, size, size)
    std = None if kind == "none" else torch.rand(own).to(DEVICE)
    epsilon = None if kind == "none" else maps(own if kind == "shared" else (batch, *own))
    if kind == "half" and epsilon is not None:
        epsilon = epsilon.half()
    parts = [maps(own), std, epsilon, maps((batch, inputs)) + 1]
    mine, right = leaves(*parts), cpu64(*parts)
    code = {torch.float16: 5, torch.float32: 6, torch.bfloat16: 15}[dtype]
    weight, demod = ops.modulated_weight(*mine, 0.1, demodulate, code)
    expected, factor = modulated(*right, 0.1, demodulate)
    close(weight, expected, dtype)
    assert demod.numel() == 0 or demodulate
    if demodulate:
        close(demod, factor, torch.float32)
    check_gradients(mine, weight, right, expected, twice=dtype == torch.float32 and kind != "half")


@anywhere
def test_only_the_gradients_that_are_needed() -> None:
    """As in an inversion (ε and the style) and in the first phase of a training (μ and the style)."""
    mu, std, epsilon, style = maps((6, 8, 3, 3)), maps((6, 8, 3, 3)), maps((5, 6, 8, 3, 3)), maps((5, 8))
    for free in ((2, 3), (0, 3), (1,), (3,)):
        given = [t.detach().requires_grad_(i in free) for i, t in enumerate((mu, std, epsilon, style))]
        right = cpu64(mu, std, epsilon, style)
        weight, _ = ops.modulated_weight(*given, 0.2, True, 6)
        expected, _ = modulated(*right, 0.2, True)
        grad = torch.randn(weight.shape)
        mine = torch.autograd.grad(weight, [given[i] for i in free], grad.to(DEVICE))
        wanted = torch.autograd.grad(expected, [right[i] for i in free], grad.double())
        for got, want in zip(mine, wanted, strict=True):
            close(got, want, torch.float32, loss=20)


@anywhere
def test_no_image_depends_on_its_batch() -> None:
    """Bit for bit, forward and backward."""
    x, scale, kernel = maps((5, 8, 17, 16)), maps((5, 8)), fir(4)
    whole = ops.fir_act(x, kernel, 1, 1, None, None, scale, None, 0.2, 1.4, -1.0)
    mu, std, epsilon, style = maps((6, 8, 3, 3)), maps((6, 8, 3, 3)), maps((5, 6, 8, 3, 3)), maps((5, 8))
    weights, demod = ops.modulated_weight(mu, std, epsilon, style, 0.2, True, 6)
    for i in range(5):
        one = slice(i, i + 1)
        alone = ops.fir_act(x[one], kernel, 1, 1, None, None, scale[one], None, 0.2, 1.4, -1.0)
        assert torch.equal(alone, whole[one])
        weight, own = ops.modulated_weight(mu, std, epsilon[one], style[one], 0.2, True, 6)
        assert torch.equal(weight, weights[one])
        assert torch.equal(own, demod[one])


@anywhere
def test_empty_batches() -> None:
    kernel = fir(4)
    assert ops.upfirdn2d(maps((0, 3, 8, 8)), kernel, 2, 1, 2, 1).shape == (0, 3, 16, 16)
    assert ops.fir_act(maps((0, 3, 8, 8)), kernel, 1, 1, *[None] * 4, 0.2, 1.0, -1.0).shape == (0, 3, 7, 7)
    weight, demod = ops.modulated_weight(maps((4, 3, 3, 3)), None, None, maps((0, 3)), 1.0, True, 6)
    assert weight.shape == (0, 4, 3, 3, 3)
    assert demod.shape == (0, 4)


ERRORS = ["float64", "integers", "3 dimensions", "9 taps", "not square", "up 0", "too small", "overflow"]
ERRORS += ["noise", "noise alone", "scale", "bias", "padding", "sides", "types", "gradient"]
ERRORS += ["style", "epsilon", "type"]


def calls() -> dict[str, tuple[Callable[[], Any], str]]:
    x, k, w = maps((2, 3, 8, 8)), fir(4), maps((4, 3, 3, 3))
    act = (0.2, 1.0, -1.0)
    none = [None] * 4
    return {
        "float64": (lambda: ops.upfirdn2d(x.double(), k, 1, 1, 0, 0), "float32, float16 or bfloat16"),
        "integers": (lambda: ops.fir_act(x.int(), None, 0, 0, *none, *act), "float32, float16 or bfloat16"),
        "3 dimensions": (lambda: ops.upfirdn2d(x[0], k, 1, 1, 0, 0), "expected (B, C, H, W)"),
        "9 taps": (lambda: ops.upfirdn2d(x, fir(9), 1, 1, 4, 4), "1 to 8 taps"),
        "not square": (lambda: ops.upfirdn2d(x, k[:2], 1, 1, 0, 0), "expected a square FIR kernel"),
        "up 0": (lambda: ops.upfirdn2d(x, k, 0, 1, 0, 0), "expected 1 to 1024"),
        "too small": (lambda: ops.upfirdn2d(x, k, 1, 1, -3, -3), "4 taps do not fit on 2 px"),
        "overflow": (lambda: ops.upfirdn2d(x, k, 1, 1, 2**40, 0), "sides beyond"),
        "noise": (lambda: ops.fir_act(x, k, 1, 1, x[:, :1], k[0, :1], None, None, *act), "noise: expected"),
        "noise alone": (lambda: ops.fir_act(x, k, 1, 1, x, None, None, None, *act), "go together"),
        "scale": (lambda: ops.fir_act(x, k, 1, 1, None, None, x[0, 0], None, *act), "scale: expected (B, C)"),
        "bias": (lambda: ops.fir_act(x, k, 1, 1, None, None, None, x[0, 0, 0], *act), "bias: expected (3,)"),
        "padding": (lambda: ops.fir_act(x, None, 1, 0, *none, *act), "padding needs a kernel"),
        "sides": (lambda: ops.add_upsampled(x, x, k), "twice the sides"),
        "types": (lambda: ops.add_upsampled(x, x[:, :, :4, :4].half(), k), "y is Float, skip Half"),
        "gradient": (
            lambda: ops.fir_act_backward(x, x, k, 1, 1, None, *act, 8, 8),
            "not the result for an input of 8 × 8",
        ),
        "style": (lambda: ops.modulated_weight(w, None, None, maps((2, 5)), 1.0, True, 6), "style: expected"),
        "epsilon": (
            lambda: ops.modulated_weight(w, w, maps((3, 4, 3, 3, 3)), maps((2, 3)), 1.0, True, 6),
            "epsilon [3, 4, 3, 3, 3] for mu [4, 3, 3, 3] and 2 images",
        ),
        "type": (lambda: ops.modulated_weight(w, None, None, maps((2, 3)), 1.0, True, 7), "not Double"),
    }


@anywhere
@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_clear_line(name: str) -> None:
    call, told = calls()[name]
    with pytest.raises((RuntimeError, IndexError)) as caught:
        call()
    line = str(caught.value).splitlines()[0]
    assert told in line, line


@anywhere
@LAYOUTS
def test_backward_without_filter_and_scale(last: bool) -> None:
    """Both gradients would be the same: the first comes back empty."""
    grad, y = maps((2, 4, 7, 5), last=last), maps((2, 4, 7, 5), last=last)
    act = (0.2, 1.5, 1.0)
    none, pre = ops.fir_act_backward(grad, y, None, 0, 0, None, *act, 7, 5)
    assert none.shape == (0,)
    assert pre.stride() == y.stride()
    close(pre, grad.double().cpu() * slopes(y.cpu(), *act), torch.float32)


@anywhere
def test_registrations_agree() -> None:
    """Fake kernels, schemas and autograd, by PyTorch's own checks."""
    x, k = maps((2, 4, 8, 8)).requires_grad_(), fir(4)
    w, std = (maps((4, 3, 3, 3)).requires_grad_() for _ in range(2))
    epsilon, style = maps((2, 4, 3, 3, 3)).requires_grad_(), maps((2, 3)).requires_grad_()
    scale = maps((2, 4)).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    noise, strength, bias = maps((1, 1, 7, 7)), maps((1,)), maps((4,))
    act = (0.2, 1.0, 1.0)
    for op, args in (
        (ops.upfirdn2d, (x, k, 2, 1, 2, 1)),
        (ops.upfirdn2d, (x.to(memory_format=torch.channels_last), k, 1, 2, 2, 1)),
        (ops.fir_act, (x, k, 1, 1, noise, strength, scale, bias, *act)),
        (ops.fir_act_backward, (maps((2, 4, 7, 7)), maps((2, 4, 7, 7)), k, 1, 1, scale, *act, 8, 8)),
        (ops.fir_act_backward, (maps((2, 4, 8, 8)), maps((2, 4, 8, 8)), None, 0, 0, None, *act, 8, 8)),
        (ops.add_upsampled, (maps((2, 4, 16, 16)), x, k)),
        (ops.modulated_weight, (w, std, epsilon, style, 1.0, True, 6)),
        (ops.modulated_weight_backward, (maps((2, 4, 3, 3, 3)), w, std, epsilon, style, maps((2, 4)), 1.0,
                                         [True, False, True, True])),
    ):  # fmt: skip
        torch.library.opcheck(op.default, args, test_utils=tests)
