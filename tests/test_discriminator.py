"""The discriminator: published keys, minibatch standard deviation, rule for the batch."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.discriminator import Discriminator, ResidualBlock
from wrangan_cli.engine.models.layers import BiasLeakyReLU


def rosinality_keys(blocks: int) -> set[str]:
    keys = {"convs.0.0.weight", "convs.0.1.bias", "final_conv.0.weight", "final_conv.1.bias"}
    keys |= {f"final_linear.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    for k in range(1, blocks + 1):
        keys |= {f"convs.{k}.conv1.0.weight", f"convs.{k}.conv1.1.bias"}
        keys |= {f"convs.{k}.conv2.{part}" for part in ("0.kernel", "1.weight", "2.bias")}
        keys |= {f"convs.{k}.skip.0.kernel", f"convs.{k}.skip.1.weight"}
    return keys


@pytest.mark.parametrize(("resolution", "blocks"), [(16, 2), (64, 4), (256, 6), (1024, 8)])
def test_keys_and_output_at_every_size(resolution: int, blocks: int) -> None:
    with torch.device("meta"):
        network = Discriminator(StyleGAN2Config(resolution, rosinality_channels(resolution)))
        logits = network(torch.zeros(4, 3, resolution, resolution))
    assert set(network.state_dict()) == rosinality_keys(blocks)
    assert logits.shape == (4, 1)
    assert network.final_conv[0].weight.shape[1] == 513


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 12])
def test_minibatch_stddev_by_numpy(batch: int) -> None:
    x = torch.randn(batch, 5, 4, 4)
    got = Discriminator(TINY).minibatch_stddev(x)
    group = min(batch, 4)
    count = batch // group
    for i in range(batch):
        members = x[i % count :: count].double().numpy()
        assert len(members) == group
        expected = np.sqrt(members.var(axis=0) + 1e-8).mean()
        np.testing.assert_allclose(got[i].numpy(), np.full((1, 4, 4), expected), rtol=1e-5)


def test_the_group_can_be_the_whole_batch() -> None:
    x = torch.randn(6, 5, 4, 4)
    got = Discriminator(dataclasses.replace(TINY, stddev_group=None)).minibatch_stddev(x)
    expected = np.sqrt(x.double().numpy().var(axis=0) + 1e-8).mean()
    np.testing.assert_allclose(got.numpy(), np.full((6, 1, 4, 4), expected), rtol=1e-5)


@pytest.mark.parametrize("batch", [5, 6, 7, 10])
def test_batches_without_whole_groups_are_refused(batch: int) -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        Discriminator(TINY)(torch.zeros(batch, 3, 16, 16))


def test_residual_block_halves_and_averages() -> None:
    block = ResidualBlock(4, 6, TINY)
    x = torch.randn(2, 4, 8, 8)
    main = block.conv2(block.conv1(x))
    assert main.shape == (2, 6, 4, 4)
    torch.testing.assert_close(block(x), (main + block.skip(x)) / 2**0.5)


def test_gradients_of_second_order_reach_every_weight() -> None:
    network = Discriminator(TINY)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and name != "final_linear.1.weight":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_conv_clamp_bounds_the_layers() -> None:
    network = Discriminator(dataclasses.replace(TINY, conv_clamp=0.1))
    seen: list[float] = []
    for module in network.modules():
        if isinstance(module, BiasLeakyReLU):
            module.register_forward_hook(lambda _m, _i, y: seen.append(y.abs().max().item()))
    network(torch.randn(4, 3, 16, 16) * 10)
    assert max(seen) <= 0.1 + 1e-7
