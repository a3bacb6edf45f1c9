"""Losses against formulas of numpy and of linear maps."""

import math

import numpy as np
import torch

from wrangan_cli.engine.training.losses import (
    discriminator_loss,
    generator_loss,
    path_lengths,
    r1_penalty,
)


def test_logistic_losses() -> None:
    real, fake = torch.randn(6, 1), torch.randn(6, 1)
    r, f = real.double().numpy(), fake.double().numpy()
    expected = np.log1p(np.exp(-r)).mean() + np.log1p(np.exp(f)).mean()
    np.testing.assert_allclose(discriminator_loss(real, fake).item(), expected, rtol=1e-5)
    np.testing.assert_allclose(generator_loss(fake).item(), np.log1p(np.exp(-f)).mean(), rtol=1e-5)
    assert math.isfinite(discriminator_loss(torch.full((2, 1), -200.0), torch.full((2, 1), 200.0)).item())


def test_r1_of_a_linear_discriminator_is_its_squared_norm() -> None:
    weight = torch.randn(3 * 4 * 4, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty(images.flatten(1) @ weight[:, None], images)
    torch.testing.assert_close(penalty, weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_r1_of_a_quadratic_discriminator() -> None:
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    logits = images.square().sum(dim=(1, 2, 3))[:, None] / 2
    torch.testing.assert_close(r1_penalty(logits, images), images.square().sum(dim=(1, 2, 3)).mean())


def test_path_lengths_of_a_linear_map() -> None:
    """image = A w for every row of w: ‖Aᵀy‖ with y ~ N(0, 1/R²), mean over rows of its square."""
    size, dim, rows, batch = 8, 6, 4, 3
    matrices = torch.randn(rows, 3 * size * size, dim)
    w = torch.randn(batch, rows, dim, requires_grad=True)
    images = torch.einsum("lpd,bld->bp", matrices, w).reshape(batch, 3, size, size)
    noise = torch.randn(batch, 3, size, size)
    got = path_lengths(images, w, noise)
    gradient = torch.einsum("lpd,bp->bld", matrices, noise.flatten(1) / size)
    torch.testing.assert_close(got, gradient.square().sum(2).mean(1).sqrt(), rtol=1e-4, atol=1e-5)


def test_path_lengths_estimate_the_jacobian_and_can_be_differentiated() -> None:
    """E‖Aᵀy‖² = ‖A‖² / R²."""
    scale = torch.tensor(2.0, requires_grad=True)
    matrix = torch.randn(3 * 16, 5)
    w = torch.randn(4000, 1, 5, requires_grad=True)
    images = scale * (w[:, 0] @ matrix.t()).reshape(-1, 3, 4, 4)
    lengths = path_lengths(images, w, torch.randn(images.shape))
    expected = 4 * matrix.square().sum() / 16
    torch.testing.assert_close(lengths.square().mean(), expected, rtol=0.05, atol=0)
    mean = lengths.mean()
    mean.backward()
    # Linear in the scale: d mean / d scale = mean / scale.
    torch.testing.assert_close(scale.grad, mean.detach() / 2)
