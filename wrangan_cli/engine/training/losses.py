"""Adversarial losses and regularisers of StyleGAN2 (Karras et al. 2020, sections 3.2 and B)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss from (B, 1) logits: mean softplus(-real) + softplus(fake)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating loss from (B, 1) logits: mean softplus(-fake)."""
    return F.softplus(-fake).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E ‖∇D(x)‖² over real images (B, 3, R, R) that require gradients; differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """‖Jᵀy‖ per image for y = noise / R: (B,), differentiable.

    images: (B, 3, R, R) made from w: (B, L, style_dim). noise: N(0, 1) of the images' shape.
    """
    noise = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
