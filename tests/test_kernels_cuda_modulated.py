"""The bodies of modulated_weight and its gradient, run on the CPU, against formulas in float64."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.kernels_cuda_formulas import modulated
from tests.kernels_cuda_host import Modulated, library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def driver() -> ctypes.CDLL:
    return library()


pytestmark = [pytest.mark.cuda_build, pytest.mark.usefixtures("fresh_seed")]


@dataclass
class Case:
    """μ, σ, ε, style as float32 (ε as it is stored), and the scale."""

    mu: Tensor
    std: Tensor | None
    epsilon: Tensor | None
    style: Tensor
    scale: float = 0.07

    @classmethod
    def make(
        cls,
        batch: int,
        outputs: int,
        inputs: int,
        size: int,
        epsilon: str = "image",
        dtype: torch.dtype = torch.float32,
    ) -> "Case":
        """epsilon: `image` (one each), `shared`, or `none`."""
        shape = (outputs, inputs, size, size)
        offset = torch.randn((batch, *shape) if epsilon == "image" else shape).to(dtype)
        given = epsilon != "none"
        style = torch.randn(batch, inputs) + 1
        return cls(torch.randn(shape), torch.rand(shape) if given else None, offset if given else None, style)

    def reference(self, demodulate: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """In float64: weight, demod, and the leaves for autograd: μ, σ, ε, style."""
        leaves = [
            torch.zeros(1, dtype=torch.float64) if t is None else t.double().requires_grad_()
            for t in (self.mu, self.std, self.epsilon, self.style)
        ]
        weight, demod = modulated(*leaves, self.scale, demodulate)
        return weight, demod, leaves


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype, terms: int) -> None:
    """Within 1e-5 of the largest number of its kind for each hundred terms, and one rounding."""
    assert got.shape == expected.shape
    assert got.dtype == dtype
    size = expected.abs().max()
    allowed = size * 1e-5 * (1 + terms / 100) + expected.abs() * torch.finfo(dtype).eps + 1e-7
    error = (got.double() - expected).abs()
    assert bool((error <= allowed).all()), f"off by {(error / allowed).max().item():.3g} of what is allowed"


SHAPES = [
    (1, 8, 16, 3),
    (5, 3, 12, 3),
    (5, 3, 40, 1),
    (2, 5, 7, 3),  # rows of 63 numbers: no packs
    (1, 2, 300, 3),
    (3, 4, 8, 5),
    (2, 2, 1400, 3),  # more than fits into shared memory
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", ["image", "shared", "none"])
@pytest.mark.parametrize("demodulate", [True, False])
def test_weight(
    driver: ctypes.CDLL, shape: tuple[int, int, int, int], dtype: torch.dtype, epsilon: str, demodulate: bool
) -> None:
    case = Case.make(*shape, epsilon)
    call = Modulated(driver, case.mu, case.std, case.epsilon, case.style, case.scale)
    weight, *demod = call.forward(dtype, demodulate)
    expected, factor, _ = case.reference(demodulate)
    assert_near(weight, expected.detach(), dtype, 1)
    if demodulate:
        assert_near(demod[0], factor.detach(), torch.float32, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4, 16, 3), (2, 3, 7, 3)])
def test_types_of_epsilon(driver: ctypes.CDLL, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    for epsilon in ("image", "shared"):
        case = Case.make(*shape, epsilon, dtype)
        call = Modulated(driver, case.mu, case.std, case.epsilon, case.style, case.scale)
        expected, demod, leaves = case.reference(True)
        assert_near(call.forward(torch.float32, True)[0], expected.detach(), torch.float32, 1)
        grad = torch.randn(expected.shape)
        found = call.backward(grad, demod.float(), [False, False, True, True], 2)
        grads = torch.autograd.grad(expected, leaves, grad.double())
        kept = dtype if epsilon == "image" else torch.float32
        assert_near(found["epsilon"], grads[2], kept, 20)


NEEDED = {
    "inversion": [False, False, True, True],
    "epsilon": [False, False, True, False],
    "style": [False, False, False, True],
    "training": [True, True, False, True],
    "all": [True, True, True, True],
    "mu": [True, False, False, False],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("needed", NEEDED)
@pytest.mark.parametrize("epsilon", ["image", "shared"])
@pytest.mark.parametrize("demodulate", [True, False])
def test_gradients(
    driver: ctypes.CDLL, shape: tuple[int, int, int, int], needed: str, epsilon: str, demodulate: bool
) -> None:
    case = Case.make(*shape, epsilon)
    expected, demod, leaves = case.reference(demodulate)
    given = demod.detach().float() if demodulate else None
    call = Modulated(driver, case.mu, case.std, case.epsilon, case.style, case.scale)
    for dtype in DTYPES if shape[0] == 5 else DTYPES[:1]:
        grad = torch.randn(expected.shape).to(dtype)
        grads = torch.autograd.grad(expected, leaves, grad.double(), retain_graph=True)
        names = ("mu", "std", "epsilon", "style")
        # Groups of rows that divide the outputs, that do not, and that hold them all.
        for group in (1, 2, 16):
            found = call.backward(grad, given, NEEDED[needed], group)
            assert set(found) == {n for n, need in zip(names, NEEDED[needed], strict=True) if need}
            for name, right in zip(names, grads, strict=True):
                if name in found:
                    assert_near(found[name], right, torch.float32, shape[0] * shape[1] * shape[3] ** 2)


def test_gradients_without_epsilon(driver: ctypes.CDLL) -> None:
    case = Case.make(3, 4, 8, 3, "none")
    expected, demod, leaves = case.reference(True)
    grad = torch.randn(expected.shape)
    grads = torch.autograd.grad(expected, [leaves[0], leaves[3]], grad.double())
    call = Modulated(driver, case.mu, None, None, case.style, case.scale)
    found = call.backward(grad, demod.detach().float(), [True, False, False, True], 1)
    assert_near(found["mu"], grads[0], torch.float32, 100)
    assert_near(found["style"], grads[1], torch.float32, 100)


@pytest.mark.parametrize("offset", [1, 2])
def test_what_is_not_aligned(driver: ctypes.CDLL, offset: int) -> None:
    case = Case.make(2, 4, 16, 3)
    expected, demod, leaves = case.reference(True)
    call = Modulated(driver, case.mu, case.std, case.epsilon, case.style, case.scale, offset)
    assert_near(call.forward(torch.float16, True)[0], expected.detach(), torch.float16, 1)
    grad = torch.randn(expected.shape)
    grads = torch.autograd.grad(expected, leaves, grad.double())
    found = call.backward(grad, demod.detach().float(), [True, True, True, True], 1)
    for name, right in zip(("mu", "std", "epsilon", "style"), grads, strict=True):
        assert_near(found[name], right, torch.float32, 100)


def test_a_style_of_zeros(driver: ctypes.CDLL) -> None:
    """u = 0: 1e-8 alone is under the root."""
    case = Case.make(2, 3, 8, 3)
    case.style[1] = 0
    expected, demod, leaves = case.reference(True)
    call = Modulated(driver, case.mu, case.std, case.epsilon, case.style, case.scale)
    weight, found_demod = call.forward(torch.float32, True)
    assert bool((weight[1] == 0).all())
    torch.testing.assert_close(found_demod[1], torch.full((3,), 1e4))
    grad = torch.randn(expected.shape)
    right = torch.autograd.grad(expected, leaves, grad.double())[3]
    found = call.backward(grad, demod.detach().float(), [False, False, True, True], 1)["style"]
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-4 * right.abs().max().item())
