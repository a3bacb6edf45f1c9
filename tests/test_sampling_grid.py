"""Sampling at a grid: PyTorch's own values, and gradients of gradients."""

import torch
import torch.nn.functional as F

from wrangan_cli.engine.ops.sampling_grid import sample_reflected


def cases() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 6, generator=rng, dtype=torch.float64)
    return images, torch.randn(
        2, 4, 7, 2, generator=rng, dtype=torch.float64
    ) * 0.9  # beyond the borders, too


def test_values_and_gradients_are_those_of_pytorch() -> None:
    images, grid = cases()
    mine, theirs = (images.clone().requires_grad_() for _ in range(2))
    out = sample_reflected(mine, grid)
    expected = F.grid_sample(theirs, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(out, expected)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_of_gradients_against_finite_differences() -> None:
    images, grid = cases()
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample_reflected(x, grid).tanh(), (images,))
    assert torch.autograd.gradgradcheck(lambda x: sample_reflected(x, grid).tanh(), (images,))
