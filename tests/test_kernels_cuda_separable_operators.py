"""The CUDA operators of MobileStyleGAN's layers as PyTorch sees them; see test_kernels_cuda_operators.py.

On a GPU: python -m pytest -m gpu tests/test_kernels_cuda_separable_operators.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from wrangan_kernels import verify

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
from tests.kernels_cuda_formulas import depthwise, haar_up, pooled, separable, slopes

__all__ = ["operators", "poison"]
pytestmark = [pytest.mark.cuda_build, pytest.mark.usefixtures("fresh_seed", "operators", "poison")]
SLOPE = 0.2


@starts_a_process
def test_on_the_cpu() -> None:
    run_on_the_cpu(__file__)


def layer(
    shape: tuple[int, ...], noisy: str = "own", per_image: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """x, depthwise, mixing, noise, bias for batch, inputs, outputs, height, width; all but x in float32."""
    batch, inputs, outputs, height, width = shape
    sets = batch if per_image else 1
    noise = None if noisy == "none" else maps((batch if noisy == "own" else 1, 1, height, width))
    x = maps((batch, inputs, height, width), dtype, last=True)
    return [x, maps((sets, inputs, 3, 3)), maps((sets, outputs, inputs)), noise, maps((outputs,))]


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noisy", ["none", "one", "own"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", [(2, 16, 8, 6, 9), (3, 5, 7, 4, 3), (1, 8, 12, 17, 1)])
def test_separable_conv(shape: tuple[int, ...], per_image: bool, noisy: str, dtype: torch.dtype) -> None:
    parts = layer(shape, noisy, per_image, dtype)
    mine, right = leaves(*parts), cpu64(*parts)
    got = ops.separable_conv(*mine, SLOPE)
    assert got.is_contiguous(memory_format=torch.channels_last)
    pre = separable(*right)
    # The depthwise result and the product are kept in the type of x, the weights are taken in it.
    loss = 3 * shape[1] ** 0.5
    close(got, torch.nn.functional.leaky_relu(pre, SLOPE), dtype, loss)
    # Which piece of the activation a number is on is told by the result as it is stored.
    expected = pre * slopes(got.detach().cpu(), SLOPE, 1.0, -1.0)
    check_gradients(mine, got, right, expected, twice=dtype == torch.float32)


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 3, 5), (3, 20, 4, 1), (1, 128, 17, 2)])
def test_haar_up(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, style = maps(shape, dtype, last=True), maps(shape[:2])
    mine, right = leaves(x, style), cpu64(x, style)
    got, expected = ops.haar_up(*mine), haar_up(*right)
    assert got.is_contiguous(memory_format=torch.channels_last)
    close(got, expected, dtype)
    check_gradients(mine, got, right, expected, twice=dtype == torch.float32)


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize(("colours", "sets"), [(3, 1), (12, 2), (20, 1)])
def test_pooled_pointwise(colours: int, sets: int, pool: int, dtype: torch.dtype) -> None:
    x = maps((2, 12, 3 * pool, 5 * pool), dtype, last=True)
    parts = [x, maps((sets, colours, 12)), maps((colours,))]
    mine, right = leaves(*parts), cpu64(*parts)
    got, expected = ops.pooled_pointwise(*mine, pool), pooled(*right, pool)
    assert got.is_contiguous()
    close(got, expected, dtype, 4)
    check_gradients(mine, got, right, expected, twice=dtype == torch.float32)


@anywhere
def test_any_strides_and_types_of_weights() -> None:
    parts = layer((2, 8, 4, 5, 6))
    expected = torch.nn.functional.leaky_relu(separable(*cpu64(*parts)), SLOPE)
    x, d, m, n, b = parts
    assert x is not None
    assert d is not None
    assert m is not None
    turned = m.transpose(1, 2).contiguous().transpose(1, 2)
    views = [
        x.contiguous(),
        torch.cat([x, x], dim=3)[..., :6],
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for view in views:
        close(ops.separable_conv(view, d, turned, n, b, SLOPE), expected, torch.float32, 4)
        style = maps((2, 8))
        close(ops.haar_up(view, style), haar_up(*cpu64(view, style)), torch.float32)
    # A layer in fp16 with weights of another type: the gradients are of theirs.
    free = leaves(x.half(), d.bfloat16(), m, n, b.half() if b is not None else None)
    y = ops.separable_conv(*free, SLOPE)
    given = [leaf for leaf in free if leaf is not None]
    grads = torch.autograd.grad(y, given, torch.randn_like(y))
    assert [g.dtype for g in grads] == [leaf.dtype for leaf in given]


@anywhere
@pytest.mark.parametrize("index", range(5))
def test_only_the_gradients_that_are_needed(index: int) -> None:
    parts = layer((3, 8, 4, 18, 5), "one")
    right = cpu64(*parts)
    mine = [None if t is None else t.requires_grad_(i == index) for i, t in enumerate(parts)]
    got = ops.separable_conv(*mine, SLOPE)
    expected = separable(*right) * slopes(got.detach().cpu(), SLOPE, 1.0, -1.0)
    grad = torch.randn(got.shape)
    (found,) = torch.autograd.grad(got, mine[index], grad.to(DEVICE))
    (wanted,) = torch.autograd.grad(expected, right[index], grad.double())
    close(found, wanted, torch.float32, 5)


@anywhere
def test_no_image_depends_on_its_batch() -> None:
    """Bit for bit, forward and backward."""
    parts = layer((4, 12, 16, 19, 7))
    style, weight, shift = maps((4, 12)), maps((4, 3, 16)), maps((3,))

    def results(one: slice) -> list[Tensor]:
        x, d, m, n = (t[one].detach().requires_grad_() for t in parts[:4] if t is not None)
        s, w = (t[one].detach().requires_grad_() for t in (style, weight))
        enlarged = ops.haar_up(x, s)
        y = ops.separable_conv(x, d, m, n, parts[4], SLOPE)
        image = ops.pooled_pointwise(y[:, :, :18, :6], w, shift, 2)
        loss = enlarged.square().sum() + image.square().sum()
        return [enlarged, y, image, *torch.autograd.grad(loss, [x, d, m, n, s, w])]

    whole = results(slice(None))
    for i in range(4):
        one = slice(i, i + 1)
        for alone, among in zip(results(one), whole, strict=True):
            assert torch.equal(alone, among[one])


@anywhere
def test_empty_batches() -> None:
    weights = [maps((1, 8, 3, 3)), maps((1, 4, 8)), None, maps((4,))]
    x, mine = maps((0, 8, 6, 6)), leaves(*weights)
    y = ops.separable_conv(x, *mine, SLOPE)
    assert y.shape == (0, 4, 6, 6)
    grads = torch.autograd.grad(y.sum(), [t for t in mine if t is not None])
    assert all(not bool(g.any()) for g in grads)
    assert ops.haar_up(x, maps((0, 8))).shape == (0, 2, 12, 12)
    assert ops.pooled_pointwise(x, mine[1], mine[3], 2).shape == (0, 4, 3, 3)


@anywhere
def test_depthwise_alone() -> None:
    """A mixing that keeps each channel: the depthwise convolution is what comes out, over many strips."""
    x, taps, bias = maps((2, 40, 37, 21), last=True), maps((2, 40, 3, 3)), torch.zeros(40, device=DEVICE)
    same = torch.eye(40, device=DEVICE)[None]
    got = ops.separable_conv(x, taps, same, None, bias, 1.0)
    close(got, depthwise(x.cpu(), taps.cpu()), torch.float32)


@anywhere
def test_what_is_asked_when_the_library_is_loaded() -> None:
    """verify.py of the kernels, on a GPU with all the rest."""
    cases = list(verify._separable_layers(lambda *shape: torch.randn(shape, dtype=torch.float64), DEVICE))
    assert len(cases) == 9
    for _, found, expected in cases:
        close(found, expected, torch.float32, 10)


ERRORS = ["float64", "dimensions", "depthwise", "mixing", "sets", "noise", "bias", "gradient", "maps"]
ERRORS += ["haar", "style", "haar gradient", "weight", "pool", "colours", "pooled gradient"]


def calls() -> dict[str, tuple[Callable[[], Any], str]]:
    x, d, m, n, b = layer((2, 8, 4, 6, 6))
    assert x is not None
    assert d is not None
    assert m is not None
    style, y = maps((2, 8)), maps((2, 4, 6, 6))
    conv, back = ops.separable_conv, ops.separable_conv_backward
    every = [True] * 5
    return {
        "float64": (lambda: conv(x.double(), d, m, n, b, SLOPE), "float32, float16 or bfloat16"),
        "dimensions": (lambda: conv(x[0], d, m, n, b, SLOPE), "does not fit x"),
        "depthwise": (lambda: conv(x, d[:, :4], m, n, b, SLOPE), "does not fit x"),
        "mixing": (lambda: conv(x, d, m[0], n, b, SLOPE), "does not fit x"),
        "sets": (lambda: conv(x, torch.cat([d, d]), m, n, b, SLOPE), "does not fit x"),
        "noise": (lambda: conv(x, d, m, x, b, SLOPE), "noise: expected (1 or 2, 1, 6, 6)"),
        "bias": (lambda: conv(x, d, m, n, style[0], SLOPE), "bias: expected (4,)"),
        "gradient": (lambda: back(x, y, x, d, m, 1, SLOPE, every), "does not fit x"),
        "maps": (lambda: back(y, y, x, d, m, 5, SLOPE, every), "5 noise maps for 2 images"),
        "haar": (lambda: ops.haar_up(x[:, :6], style[:, :6]), "does not fit x"),
        "style": (lambda: ops.haar_up(x, style[:1]), "does not fit x"),
        "haar gradient": (lambda: ops.haar_up_backward(y, x, style, [True, True]), "does not fit x"),
        "weight": (lambda: ops.pooled_pointwise(x, m[:, :, :4], b, 1), "does not fit x"),
        "pool": (lambda: ops.pooled_pointwise(x, m, b, 4), "4 px do not fit x"),
        "colours": (lambda: ops.pooled_pointwise(x, m, style[0], 1), "bias: expected (4,)"),
        "pooled gradient": (lambda: ops.pooled_pointwise_backward(y, x, m, 2, [True] * 3), "does not fit x"),
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
def test_registrations_agree() -> None:
    """Fake kernels, schemas and autograd, by PyTorch's own checks."""
    parts = [None if t is None else t.requires_grad_() for t in layer((2, 8, 4, 6, 6))]
    x, style = maps((2, 8, 6, 6), last=True).requires_grad_(), maps((2, 8)).requires_grad_()
    y, up, image = maps((2, 4, 6, 6), last=True), maps((2, 2, 12, 12), last=True), maps((2, 4, 3, 3))
    weight, bias = maps((1, 4, 8)).requires_grad_(), maps((4,)).requires_grad_()
    half = layer((2, 8, 4, 6, 6), "one", per_image=False, dtype=torch.bfloat16)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, args in (
        (ops.separable_conv, (*parts, SLOPE)),
        (ops.separable_conv, (*half, SLOPE)),
        (ops.separable_conv_backward, (y, y.clone(), *parts[:3], 2, SLOPE, [True] * 5)),
        (ops.separable_conv_backward, (y.bfloat16(), y.bfloat16(), *half[:3], 1, SLOPE, [True] * 5)),
        (
            ops.separable_conv_backward,
            (y, y.clone(), *parts[:3], 0, SLOPE, [False, True, False, True, False]),
        ),
        (ops.haar_up, (x, style)),
        (ops.haar_up_backward, (up, x, style, [True, True])),
        (ops.haar_up_backward, (up, x, style, [False, True])),
        (ops.pooled_pointwise, (x, weight, bias, 2)),
        (ops.pooled_pointwise_backward, (image, x, weight, 2, [True, True, True])),
    ):
        torch.library.opcheck(op.default, args, test_utils=tests)
