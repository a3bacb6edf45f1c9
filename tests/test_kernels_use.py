"""The networks with kernels against the same networks with the PyTorch reference, on fresh weights."""

import secrets
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wrangan_kernels import loader

from tests.conftest import random_generator_network
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.randomized import draw_epsilon

# Large enough at 64 px for every kernel, too small for most at 8 px.
CONFIG = StyleGAN2Config(
    64, {4: 24, 8: 24, 16: 24, 32: 40, 64: 32}, style_dim=16, mapping_layers=1, randomized_layers=3
)


pytestmark = pytest.mark.usefixtures("cpu_kernels", "fresh_seed")


def agree(mine: list[Tensor], reference: list[Tensor], limit: float) -> None:
    for found, expected in zip(mine, reference, strict=True):
        scale = expected.abs().max()
        assert (found - expected).abs().max() <= limit * scale + 1e-12


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_generator(per_image: bool, clamp: float | None) -> None:
    generator = random_generator_network(replace(CONFIG, conv_clamp=clamp), secrets.randbelow(2**31)).double()
    w, batch = torch.randn(3, 16, dtype=torch.float64), 3 if per_image else None
    epsilon = {name: value.double() for name, value in draw_epsilon(generator, batch).items()}
    results = []
    # The reference in float64; the kernels in float32.
    for dtype in (torch.float64, torch.float32):
        network = generator.to(dtype)
        leaves = [v.to(dtype).detach().requires_grad_() for v in (w, *epsilon.values())]
        image = network.synthesis(leaves[0], epsilon=dict(zip(epsilon, leaves[1:], strict=True)))
        grads = torch.autograd.grad(image.square().mean(), leaves, create_graph=True)
        # As path length does: a length of a gradient is differentiated.
        second = torch.autograd.grad(grads[0].square().sum().sqrt(), leaves[0])
        results.append([x.detach().double() for x in (image, *grads, *second)])
    agree(results[1][:1], results[0][:1], 1e-4)
    # A slope of the leaky ReLU may fall to the other side where its argument is almost 0.
    agree(results[1][1:], results[0][1:], 5e-3)


def test_discriminator_with_the_gradient_penalty() -> None:
    network = Discriminator(CONFIG)
    images = torch.randn(4, 3, 64, 64, requires_grad=True)

    def penalised() -> list[Tensor]:
        logits = network(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        total = slope.square().sum() + logits.square().sum()
        return [logits.detach(), slope.detach(), *torch.autograd.grad(total, list(network.parameters()))]

    mine = penalised()
    with loader.reference():
        reference = penalised()
    agree(mine[:1], reference[:1], 1e-4)
    agree(mine[1:], reference[1:], 5e-3)


def test_an_image_does_not_depend_on_its_batch() -> None:
    generator = random_generator_network(CONFIG, secrets.randbelow(2**31))
    w = torch.randn(4, 16)
    epsilon = draw_epsilon(generator, 4)
    with torch.no_grad():
        whole = generator.synthesis(w, epsilon=epsilon)
        alone = [
            generator.synthesis(w[i : i + 1], epsilon={k: v[i : i + 1] for k, v in epsilon.items()})
            for i in range(4)
        ]
    assert (whole - torch.cat(alone)).abs().max() <= 2e-6 * whole.abs().max()
