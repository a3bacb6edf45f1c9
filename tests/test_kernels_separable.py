"""The CPU kernels of MobileStyleGAN's layers against float64 formulas: values, gradients, second gradients;
fresh inputs each run. And that the generator uses them, with the same numbers as without."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels import loader

from tests.kernel_formulas import agree, compare, ops
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator

pytestmark = pytest.mark.usefixtures("cpu_kernels", "fresh_seed")

SEPARABLE = [
    (2, 16, 32, 6, 9),
    (1, 48, 16, 40, 7),
    (3, 80, 112, 1, 1),
    (2, 64, 64, 17, 33),
    (1, 32, 144, 2, 6),
]


def laid(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("noisy", ["none", "one", "own"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", SEPARABLE)
def test_separable_conv(shape: tuple[int, ...], per_image: bool, noisy: str) -> None:
    batch, inputs, outputs, height, width = shape
    sets = batch if per_image else 1
    noise = None if noisy == "none" else torch.randn(1 if noisy == "one" else batch, 1, height, width)
    given = [laid(torch.randn(batch, inputs, height, width)), torch.randn(sets, inputs, 3, 3)]
    given += [torch.randn(sets, outputs, inputs), noise, torch.randn(outputs)]

    def formula(x: Tensor, d: Tensor, m: Tensor, n: Any, b: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1))
        around = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
        middle = sum(d[:, :, k // 3, k % 3, None, None] * around[k] for k in range(9))
        v = torch.einsum("boi,bihw->bohw", m.expand(batch, -1, -1), middle) + b[:, None, None]
        v = v if n is None else v + n
        return torch.where(v > 0, v, 0.2 * v)

    compare(lambda *x: ops().separable_conv(*x, 0.2), formula, given)


@pytest.mark.parametrize("shape", [(1, 64, 3, 5), (2, 192, 8, 2), (3, 128, 20, 1)])
def test_haar_up(shape: tuple[int, ...]) -> None:
    batch, channels, height, width = shape

    def formula(x: Tensor, s: Tensor) -> Tensor:
        x, quarter = x * s[:, :, None, None], channels // 4
        y = x.new_zeros(batch, quarter, 2 * height, 2 * width)
        low, high = x[:, :quarter], x[:, quarter:]
        for i in range(2):
            for j in range(2):
                rows, columns, both = (high[:, k::3] for k in range(3))
                signed = low + (-1) ** i * rows + (-1) ** j * columns + (-1) ** (i + j) * both
                y[:, :, i::2, j::2] = signed / 2
        return y

    given = [laid(torch.randn(shape)), torch.randn(batch, channels)]
    compare(lambda x, s: ops().haar_up(x, s), formula, given)


@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize(("colours", "sets"), [(3, 1), (12, 2), (16, 1)])
def test_pooled_pointwise(pool: int, colours: int, sets: int) -> None:
    given = [
        laid(torch.randn(2, 48, 3 * pool, 5 * pool)),
        torch.randn(sets, colours, 48),
        torch.randn(colours),
    ]

    def formula(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        y = torch.einsum("bci,bihw->bchw", w.expand(2, -1, -1), x) + b[:, None, None]
        return y.unflatten(2, (-1, pool)).unflatten(4, (-1, pool)).mean(dim=(3, 5))

    compare(lambda x, w, b: ops().pooled_pointwise(x, w, b, pool), formula, given)


def test_a_batch_has_the_numbers_of_its_images() -> None:
    x, d = laid(torch.randn(3, 32, 19, 6)), torch.randn(3, 32, 3, 3)
    m, n, b = torch.randn(3, 16, 32), torch.randn(3, 1, 19, 6), torch.randn(16)
    together = ops().separable_conv(x, d, m, n, b, 0.2)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(together[one], ops().separable_conv(x[one], d[one], m[one], n[one], b, 0.2))


def test_the_threads_do_not_change_the_numbers() -> None:
    x, d, m = laid(torch.randn(1, 16, 70, 9)), torch.randn(1, 16, 3, 3), torch.randn(1, 32, 16)
    made = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (x, d, m, torch.ones(32))]
            y = ops().separable_conv(*leaves[:3], None, leaves[3], 0.2)
            made.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops().separable_conv(
            x, torch.ones(1, 8, 3, 3), torch.ones(1, 16, 8), None, torch.ones(16), 0.2
        ),
        lambda x: ops().separable_conv(
            x, torch.ones(1, 16, 3, 3), torch.ones(1, 16, 8), None, torch.ones(16), 0.2
        ),
        lambda x: ops().haar_up(x, torch.ones(1, 16)),
        lambda x: ops().pooled_pointwise(x, torch.ones(1, 3, 16), torch.ones(3), 3),
        lambda x: ops().pooled_pointwise(x, torch.ones(1, 17, 16), torch.ones(17), 1),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Any) -> None:
    with pytest.raises(RuntimeError, match="fit"):
        call(torch.ones(1, 16, 4, 4))


@pytest.mark.parametrize("side", [None, 16, 8, 4, 12])
@pytest.mark.parametrize("head", ["wavelet", "plain"])
def test_the_generator_draws_with_and_without(head: str, side: int | None) -> None:
    config = MobileStyleGANConfig(
        channels={4: 64, 8: 64, 16: 32}, num_latents=6, style_dim=8, mapping_layers=1, head=head,
        randomized_layers=3,
    )  # fmt: skip
    generator = MobileStyleGANGenerator(config).requires_grad_(True)
    for noise in generator.noise_inputs().values():
        torch.nn.init.ones_(noise.strength)
    w = torch.randn(2, 8, requires_grad=True)
    epsilon = {
        name: torch.randn(2, *weight.shape, requires_grad=True)
        for name, weight in generator.random_weights().items()
    }
    leaves = [w, *epsilon.values(), *generator.synthesis_parameters().values()]

    def drawn() -> list[Tensor]:
        image = generator.synthesis(w, epsilon=epsilon, side=side)
        pull = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
        return [image, *torch.autograd.grad((image * pull).sum(), leaves)]

    found, used = drawn(), _counted(drawn)
    with loader.reference():
        expected = drawn()
    assert used >= 12  # each image: four separable layers, two upsamplings
    for ours, theirs in zip(found, expected, strict=True):
        agree(ours, theirs.double())


def _counted(function: Any) -> int:
    """How many of the layers' kernels a call takes, forward."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    names = ("wrangan::separable_conv", "wrangan::haar_up")
    return sum(event.count for event in profiler.key_averages() if event.key in names)
