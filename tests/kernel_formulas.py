"""How the CPU kernels are compared with formulas, and the formula of the filters."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4
"""Of the largest value of the float64 result."""
Function = Callable[..., Tensor]


def ops() -> Any:
    return torch.ops.wrangan


def agree(given: Tensor, expected: Tensor, limit: float = TOLERANCE) -> None:
    assert given.shape == expected.shape
    difference = (given.detach().double() - expected.detach()).abs().max()
    size = expected.detach().abs().max()
    if expected.numel() == 1:
        # A sum of many terms of about 1, which may cancel.
        size = size.clamp(min=10)
    assert difference <= limit * size + 1e-30, f"{float(difference):.2e} of {float(size):.2e}"


def compare(mine: Function, formula: Function, inputs: list[Tensor | None], second: bool = True) -> None:
    """Value, gradients of a random projection of its square, as they are and as what is differentiated again,
    and gradients of a projection of these."""
    floats = [None if x is None else x.clone().requires_grad_() for x in inputs]
    doubles = [None if x is None else x.double().requires_grad_() for x in inputs]
    results = []
    projections: list[Tensor] = []
    for function, given in ((formula, doubles), (mine, floats)):
        leaves = [x for x in given if x is not None]
        y = function(*given)
        if not projections:
            projections = [torch.randn(y.shape), *(torch.randn(x.shape) for x in leaves)]
        directions = [p.to(y.dtype) for p in projections]
        grads = torch.autograd.grad((y.square() * directions[0]).sum(), leaves, create_graph=True)
        collected = [
            y,
            *grads,
            *torch.autograd.grad((function(*given).square() * directions[0]).sum(), leaves),
        ]
        if second:
            total = sum((g * d).sum() for g, d in zip(grads, directions[1:], strict=True))
            collected += torch.autograd.grad(total, leaves, allow_unused=True)
        results.append(collected)
    for reference, found in zip(*results, strict=True):
        assert (reference is None) == (found is None) or (
            reference if found is None else found
        ).abs().max() == 0
        if reference is not None and found is not None:
            agree(found, reference)


def filtered(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """By the definition: zeros between samples, padding, a full correlation with the turned kernel."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height, up, width, up)
    spread[:, :, :, 0, :, 0] = x
    padded = F.pad(spread.reshape(batch, channels, height * up, width * up), (before, after) * 2)
    weight = kernel.to(x.dtype).flip(0, 1)[None, None].repeat(channels, 1, 1, 1)
    return F.conv2d(padded, weight, groups=channels)[:, :, ::down, ::down]


def random_kernel(taps: int, separable: bool) -> Tensor:
    return torch.outer(torch.randn(taps), torch.randn(taps)) if separable else torch.randn(taps, taps)
