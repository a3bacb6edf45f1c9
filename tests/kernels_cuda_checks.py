"""What the tests of the CUDA operators share: where they run, the fixtures of that, and comparisons.

Without a GPU `run_on_the_cpu` runs a file of tests in a process of its own, where the operators are those of
kernels/wrangan_kernels/cuda with the kernels' bodies run on the CPU.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

ON_HOST = os.environ.get("WRANGAN_TEST_OPERATORS")
"""Set by `run_on_the_cpu`: the library of the operators for tensors of the CPU."""
DEVICE = "cpu" if ON_HOST else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
anywhere = pytest.mark.skipif(False, reason="") if ON_HOST else pytest.mark.gpu
starts_a_process = pytest.mark.skipif(ON_HOST is not None, reason="this is the process that it starts")
ops: Any = torch.ops.wrangan


@pytest.fixture
def operators(request: pytest.FixtureRequest) -> None:
    """They are there, for tensors on DEVICE."""
    import wrangan_kernels.operators  # noqa: F401

    if ON_HOST:
        torch.ops.load_library(ON_HOST)
        if not torch._C._dispatch_has_kernel_for_dispatch_key("wrangan::plane_dot", "CPU"):
            # A part of a gradient that has a kernel on the CPU alone, in the library of the CPU.
            torch.library.impl("wrangan::plane_dot", "CPU", lambda a, b: (a * b).sum(dim=(2, 3)))
        return
    if request.node.get_closest_marker("gpu") is None:
        return
    request.getfixturevalue("cuda_kernels")


@pytest.fixture
def poison() -> Iterator[None]:
    """What ATen allocates is filled with NaN: a number that no kernel writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run_on_the_cpu(file: str) -> None:
    from tests.kernels_cuda_host import operators_library

    told = {**os.environ, "WRANGAN_TEST_OPERATORS": str(operators_library()), "WRANGAN_KERNELS": "off"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", file]
    done = subprocess.run(command, capture_output=True, text=True, env=told)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def maps(shape: Sequence[int], dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = torch.randn(tuple(shape)).to(dtype)
    return (x.to(memory_format=torch.channels_last) if last else x).to(DEVICE)


def close(
    got: Tensor,
    expected: Tensor,
    dtype: torch.dtype,
    loss: float = 1.0,
    by_way_of: torch.dtype = torch.float32,
    size: float = 1e-3,
) -> None:
    """Within a few roundings of the largest number (or of `size`), of the coarser of the two types."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    rounding = max(torch.finfo(dtype).eps, torch.finfo(by_way_of).eps, 2e-6) * loss
    allowed = 4 * rounding * expected.abs().max().clamp_min(size)
    error = (got - expected).abs()
    worst = error.argmax()
    assert bool((error <= allowed).all()), (
        f"{tuple(got.shape)} of {dtype}: {got.flatten()[worst].item():.6g} in place of "
        f"{expected.flatten()[worst].item():.6g}, {allowed.item():.3g} is allowed; "
        f"{int((~(error <= allowed)).sum())} of {error.numel()} are off"
    )


def leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def cpu64(*tensors: Tensor | None) -> list[Any]:
    """The same numbers as leaves in float64 on the CPU."""
    return [None if t is None else t.detach().double().cpu().requires_grad_() for t in tensors]


def summed(leaf: Tensor, result: Tensor) -> float:
    """The size of the gradient of a single number: the sum of as many terms of either sign as the
    result has, which may by chance be close to 0 without its terms being so."""
    return result.numel() ** 0.5 if leaf.numel() == 1 else 1e-3


def check_gradients(
    given: list[Tensor | None], got: Tensor, same: list[Tensor | None], expected: Tensor, twice: bool = True
) -> None:
    """First and second gradients of two scalar functions of the same leaves.

    The second is that of Σ(gradient · v) of every leaf, with the weights of the first sum among the
    leaves: so it is there even where the function is linear.
    """
    weights = torch.randn(expected.shape).to(got.dtype)
    first = weights.to(DEVICE, memory_format=torch.preserve_format).requires_grad_()
    if got.is_contiguous(memory_format=torch.channels_last):
        first = first.detach().to(memory_format=torch.channels_last).requires_grad_()
    second = weights.double().requires_grad_()
    mine, right = [t for t in given if t is not None], [t for t in same if t is not None]
    grads = torch.autograd.grad(got, mine, first, create_graph=twice)
    wanted = torch.autograd.grad(expected, right, second, create_graph=twice)
    for grad, want, leaf in zip(grads, wanted, mine, strict=True):
        close(grad, want, leaf.dtype, 5, got.dtype, summed(leaf, expected))
    if not twice:
        return
    directions = [torch.randn(w.shape).double() for w in wanted]
    total = sum((g.double() * d.to(DEVICE)).sum() for g, d in zip(grads, directions, strict=True))
    right_total = sum((w * d).sum() for w, d in zip(wanted, directions, strict=True))
    assert isinstance(total, Tensor)
    assert isinstance(right_total, Tensor)
    again = torch.autograd.grad(total, [*mine, first], allow_unused=True)
    right_again = torch.autograd.grad(right_total, [*right, second], allow_unused=True)
    for leaf, grad, want in zip([*mine, first], again, right_again, strict=True):
        if want is None or grad is None:  # no influence: the one may say so by zeros
            assert all(part is None or not bool(part.any()) for part in (grad, want))
        else:
            close(grad, want, leaf.dtype, 20, got.dtype, summed(leaf, expected))
