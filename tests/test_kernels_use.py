"""The networks with kernels against the same networks with the PyTorch reference, on fresh weights."""

import secrets
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_generator_network
from wrangan_cli.engine.models import layers as layers_module
from wrangan_cli.engine.models import stylegan2
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.layers import BiasLeakyReLU
from wrangan_cli.engine.models.randomized import draw_epsilon
from wrangan_cli.engine.models.stylegan2 import ToRGB
from wrangan_cli.engine.ops import modulated_conv
from wrangan_cli.engine.ops.bias_act import LEAKY_GAIN, bias_act

# Large enough at 64 px for every kernel, too small for most at 8 px.
CONFIG = StyleGAN2Config(
    64, {4: 24, 8: 24, 16: 24, 32: 40, 64: 32}, style_dim=16, mapping_layers=1, randomized_layers=3
)


pytestmark = pytest.mark.usefixtures("cpu_kernels", "fresh_seed")


def agree(mine: list[Tensor], reference: list[Tensor], limit: float) -> None:
    for found, expected in zip(mine, reference, strict=True):
        scale = expected.abs().max()
        assert scale > 0
        assert (found - expected).abs().max() <= limit * scale


def keep_off_kinks(network: nn.Module, run: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set biases and clamps so that no argument of an activation comes near the places where its slope jumps.

    There float32 and float64 may fall to different sides, and gradients differ as they should. Whole feature
    maps lie in each of the three parts instead (negative, positive, clamped); `run` is one forward pass.
    """
    layers = {m.bias.data_ptr(): m for m in network.modules() if isinstance(m, BiasLeakyReLU | ToRGB)}

    def settled(x: Tensor, bias: Tensor | None, activate: bool = True, **options: float | None) -> Tensor:
        layer = None if bias is None else layers.get(bias.data_ptr())
        if layer is not None:
            maps = x.detach().transpose(0, 1).flatten(1)
            low, high = maps.amin(1), maps.amax(1)
            most = float((high - low).max())
            # Negative in [-1.25, -0.25] of `most`, positive in [0.25, 1.25], clamped (at 1.5) from 1.75 on.
            choices = torch.stack([-high - most / 4, most / 4 - low, 1.75 * most - low])
            parts = 2 if layer.clamp is None else 3
            if parts == 3:
                layer.clamp = options["clamp"] = 1.5 * most * (LEAKY_GAIN if activate else 1)
            bias.data.copy_(choices[torch.arange(len(bias)) % parts, torch.arange(len(bias))])
        return bias_act(x, bias, activate=activate, **options)

    with monkeypatch.context() as patch, torch.no_grad():
        for module in (layers_module, modulated_conv, stylegan2):
            patch.setattr(module, "bias_act", settled)
        run()


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("clamp", [None, 2.0])
def test_generator(per_image: bool, clamp: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random_generator_network(replace(CONFIG, conv_clamp=clamp), secrets.randbelow(2**31)).double()
    w, batch = torch.randn(3, 16, dtype=torch.float64), 3 if per_image else None
    epsilon = {name: value.double() for name, value in draw_epsilon(generator, batch).items()}

    def run(dtype: torch.dtype) -> list[Tensor]:
        network = generator.to(dtype)
        leaves = [v.to(dtype).detach().requires_grad_() for v in (w, *epsilon.values())]
        image = network.synthesis(leaves[0], epsilon=dict(zip(epsilon, leaves[1:], strict=True)))
        grads = torch.autograd.grad(image.square().mean(), leaves, create_graph=True)
        # As path length does: a length of a gradient is differentiated.
        second = torch.autograd.grad(grads[0].square().sum().sqrt(), leaves[0])
        return [x.detach().double() for x in (image, *grads, *second)]

    # The reference in float64; the kernels in float32.
    reference = run(torch.float64)
    agree(run(torch.float32)[:1], reference[:1], 1e-4)
    generator.double()
    keep_off_kinks(generator, lambda: generator.synthesis(w, epsilon=epsilon), monkeypatch)
    reference = run(torch.float64)
    agree(run(torch.float32), reference, 3e-4)


def test_discriminator_with_the_gradient_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Discriminator(CONFIG).double()
    given = torch.randn(4, 3, 64, 64, dtype=torch.float64)

    def penalised(dtype: torch.dtype) -> list[Tensor]:
        network.to(dtype)
        images = given.to(dtype).requires_grad_()
        logits = network(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        total = slope.square().sum() + logits.square().sum()
        found = [logits, slope, *torch.autograd.grad(total, list(network.parameters()))]
        return [x.detach().double() for x in found]

    reference = penalised(torch.float64)
    agree(penalised(torch.float32)[:1], reference[:1], 1e-4)
    network.double()
    keep_off_kinks(network, lambda: network(given), monkeypatch)
    reference = penalised(torch.float64)
    agree(penalised(torch.float32), reference, 3e-4)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_an_image_does_not_depend_on_its_batch(dtype: torch.dtype, limit: float) -> None:
    # The order of sums depends on the batch, and some networks amplify the rounding: only float64 is tight.
    generator = random_generator_network(CONFIG, secrets.randbelow(2**31)).to(dtype)
    w = torch.randn(4, 16, dtype=dtype)
    epsilon = {k: v.to(dtype) for k, v in draw_epsilon(generator, 4).items()}
    with torch.no_grad():
        whole = generator.synthesis(w, epsilon=epsilon)
        alone = [
            generator.synthesis(w[i : i + 1], epsilon={k: v[i : i + 1] for k, v in epsilon.items()})
            for i in range(4)
        ]
    agree([torch.cat(alone)], [whole], limit)
