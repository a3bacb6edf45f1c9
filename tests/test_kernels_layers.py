"""Whole layers of the CPU kernels against float64 formulas: values, gradients, second gradients; fresh inputs
each run."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernel_formulas import agree, compare, filtered, ops, random_kernel

pytestmark = pytest.mark.usefixtures("cpu_kernels", "fresh_seed")

LAYERS = [(2, 5, 7, 6, 9), (5, 20, 24, 4, 4), (1, 33, 18, 3, 5), (3, 6, 8, 32, 17)]


@pytest.mark.parametrize("noisy", ["none", "one", "own"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("shape", LAYERS)
def test_styled_conv(shape: tuple[int, ...], up: bool, per_image: bool, noisy: str) -> None:
    batch, inputs, outputs, height, width = shape
    clamp = 1.5 if noisy == "one" else -1.0
    fir = random_kernel(4, True) if up else None
    sides = (2 * height, 2 * width) if up else (height, width)
    weight = torch.randn(*((batch,) if per_image else ()), outputs, inputs, 3, 3)
    noise = None if noisy == "none" else torch.randn(1 if noisy == "one" else batch, 1, *sides)
    strength = None if noise is None else torch.rand(1)
    # A variable of its own here, to tell the gradients apart; `test_kernels_use.py` has it as it is used.
    energy = weight.square().sum((-1, -2)) + torch.rand(weight.shape[:-2])
    style, bias = torch.randn(batch, inputs) + 1, torch.randn(outputs)
    given = [torch.randn(batch, inputs, height, width), weight, energy, style, noise, strength, bias]
    numbers = (fir, *((1, 1) if up else (0, 0)), 0.2, 1.4, clamp)

    def formula(x: Tensor, w: Tensor, e: Tensor, s: Tensor, n: Any, a: Any, b: Tensor) -> Tensor:
        own = [w[i] if per_image else w for i in range(batch)]
        total = [(e[i] if per_image else e) @ s[i].square() for i in range(batch)]
        planes = []
        for i in range(batch):
            plane = x[i : i + 1] * s[i][:, None, None]
            kernel = own[i].transpose(0, 1)
            made = F.conv_transpose2d(plane, kernel, stride=2) if up else F.conv2d(plane, own[i], padding=1)
            planes.append(made * (total[i] + 1e-8).rsqrt()[:, None, None])
        v = torch.cat(planes)
        v = v if fir is None else filtered(v, fir, 1, 1, 1, 1)
        v = (v if n is None else v + n * a) + b[:, None, None]
        y = torch.where(v > 0, v, 0.2 * v) * 1.4
        return y.clamp(-clamp, clamp) if clamp >= 0 else y

    compare(lambda *x: ops().styled_conv(*x, *numbers)[0], formula, given)


@pytest.mark.parametrize("clamp", [-1.0, 1.3])
@pytest.mark.parametrize("with_skip", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 4), (5, 3, 33, 6, 10), (2, 1, 7, 34, 40), (3, 4, 5, 2, 2)])
def test_to_rgb(shape: tuple[int, ...], with_skip: bool, clamp: float) -> None:
    batch, colours, inputs, height, width = shape
    fir = random_kernel(4, True) if with_skip else None
    skip = torch.randn(batch, colours, height // 2, width // 2) if with_skip else None
    weight, style, bias = torch.randn(colours, inputs), torch.randn(batch, inputs), torch.randn(colours)

    def formula(x: Tensor, w: Tensor, s: Tensor, b: Tensor, old: Tensor | None) -> Tensor:
        y = torch.einsum("ci,bi,bihw->bchw", w, s, x) + b[:, None, None]
        y = y if clamp < 0 else y.clamp(-clamp, clamp)
        return y if old is None or fir is None else y + filtered(old, fir, 2, 1, 2, 1)

    given = [torch.randn(batch, inputs, height, width), weight, style, bias, skip]
    compare(lambda *x: ops().to_rgb(*x, fir, clamp), formula, given)


def test_layers_refuse_what_does_not_fit() -> None:
    x, weight, style, bias = torch.zeros(2, 3, 4, 4), torch.zeros(3, 3), torch.zeros(2, 3), torch.zeros(3)
    with pytest.raises(RuntimeError, match="does not fit x"):
        ops().to_rgb(x, torch.zeros(3, 4), style, bias, None, None, -1.0)
    with pytest.raises(RuntimeError, match="does not fit x"):
        ops().to_rgb(x, torch.zeros(5, 3), style, bias, None, None, -1.0)
    with pytest.raises(RuntimeError, match="belong together"):
        ops().to_rgb(x, weight, style, bias, torch.zeros(2, 3, 2, 2), None, -1.0)
    numbers = (None, None, torch.zeros(4), None, 0, 0, 0.2, 1.4, -1.0)
    kernel, energy = torch.zeros(4, 3, 3, 3), torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match="energy"):
        ops().styled_conv(x, kernel, torch.zeros(3, 4), style, *numbers)
    with pytest.raises(RuntimeError, match="does not fit x"):
        ops().styled_conv(x, kernel, energy, torch.zeros(1, 3), *numbers)
    with pytest.raises(RuntimeError, match="float32"):
        ops().styled_conv(x.double(), kernel, energy, style, *numbers)


@pytest.mark.parametrize("offsets", [1, 5])
@pytest.mark.parametrize("with_std", [True, False])
def test_random_weight(with_std: bool, offsets: int) -> None:
    """Values, gradients and second gradients, also of mu and std, and of each result alone."""
    shape = (7, 5, 3, 3)
    given = [torch.randn(shape), torch.rand(shape) if with_std else None, torch.randn(offsets, *shape)]

    def formula(mu: Tensor, std: Tensor | None, offset: Tensor) -> tuple[Tensor, Tensor]:
        theta = mu + (offset if std is None else std * offset)
        return theta, theta.square().sum((-1, -2))

    for part in (0, 1):
        compare(
            lambda *x, part=part: ops().random_weight(*x)[part],
            lambda *x, part=part: formula(*x)[part],
            given,
        )
    # As inversion asks for it: the gradient in the offset alone, by its kernel.
    mu, std, offset = (None if x is None else x.double() for x in given)
    assert offset is not None
    seeds = torch.randn(offset.shape), torch.randn(offset.shape[:3])
    results = []
    for function, dtype in ((ops().random_weight, torch.float32), (formula, torch.float64)):
        leaf = offset.to(dtype).requires_grad_()
        found = function(mu.to(dtype), None if std is None else std.to(dtype), leaf)
        results.append(torch.autograd.grad(found, leaf, [seed.to(dtype) for seed in seeds])[0])
    agree(results[0], results[1], 1e-6)


def test_random_weight_refuses_what_does_not_fit() -> None:
    mu = torch.zeros(4, 3, 3, 3)
    with pytest.raises(RuntimeError, match="do not fit"):
        ops().random_weight(mu, None, torch.zeros(2, 3, 4, 3, 3))
    with pytest.raises(RuntimeError, match="float32 and contiguous"):
        ops().random_weight(mu, None, torch.zeros(2, 4, 3, 3, 3).double())
    with pytest.raises(RuntimeError, match="std"):
        ops().random_weight(mu, torch.zeros(4, 3, 1, 1), torch.zeros(2, 4, 3, 3, 3))
