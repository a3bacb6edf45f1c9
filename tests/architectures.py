"""Tiny generators of every architecture; a new one takes one line in `CONFIGS`."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TINY
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.architectures import build_generator
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.generator import Generator, GeneratorConfig
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig

MOBILE = MobileStyleGANConfig(
    {4: 16, 8: 12}, num_latents=6, style_dim=16, mapping_layers=2, randomized_layers=2
)
CONFIGS = [
    TINY,
    dataclasses.replace(TINY, randomized_layers=("conv1", "convs.2")),
    MOBILE,
    dataclasses.replace(MOBILE, randomized_layers=("conv1", "layers.0.conv2.depthwise")),
    dataclasses.replace(MOBILE, channels={4: 16, 8: 12, 16: 8}, num_latents=7, head="plain"),
]
"""Of each architecture, of 16 px."""
every = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.architecture}-{c.randomized_layers}")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def network(config: GeneratorConfig, seed: int = 0) -> Generator:
    """A generator in which every weight matters, and biases, noise strengths and σ too."""
    torch.manual_seed(seed)
    generator = build_generator(config)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for weight in generator.weights().values():
            weight.mean.normal_()
        for given in generator.noise_inputs().values():
            given.strength.normal_(std=0.3)
        for weight in generator.random_weights().values():
            assert weight.std is not None
            weight.std.uniform_(0.05, 0.25)
    return generator.eval().requires_grad_(False)


def a_model(config: GeneratorConfig, folder: Path) -> Model:
    return load_model(str(save_model(folder / "tiny", network(config), perceptual="st-lpips-alex")))


def w_of(generator: Generator, count: int = 2) -> Tensor:
    return generator.mapping(torch.randn(count, generator.config.style_dim))
