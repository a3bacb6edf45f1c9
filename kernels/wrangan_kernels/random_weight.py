"""The weights of each image and their energy, with CPU kernels: shapes and gradients.

random_weight: θ = μ + σ⊙offset and Σθ² over the taps. mu (O, I, k, k), std likewise or None (σ = 1),
offset (B, O, I, k, k) → weight (B, O, I, k, k), energy (B, O, I). float32, contiguous.
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.schemas import LIBRARY, ops, register


def _fake(mu: Tensor, std: Tensor | None, offset: Tensor) -> tuple[Tensor, Tensor]:
    del mu, std
    return torch.empty_like(offset), offset.new_empty(offset.shape[:3])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    mu, std, offset = inputs
    del mu
    ctx.save_for_backward(std, offset if std is not None and std.requires_grad else None, output[0])


def _backward(ctx: Any, grad_weight: Tensor, grad_energy: Tensor) -> tuple[Any, ...]:
    std, offset, weight = ctx.saved_tensors
    of_mu, of_std, of_offset = ctx.needs_input_grad
    if not (of_mu or of_std or torch.is_grad_enabled()):
        given = (grad_weight.contiguous(), grad_energy.contiguous(), weight, std)
        return None, None, ops.random_weight_backward(*given)
    # In training, and for second derivatives: the same by PyTorch operations.
    total = grad_weight + 2 * weight * grad_energy[..., None, None]
    return (
        total.sum(dim=0) if of_mu else None,
        (total * offset).sum(dim=0) if of_std else None,
        (total if std is None else total * std) if of_offset else None,
    )


register("random_weight", _fake, _backward, _setup)


def _gradient_fake(grad_weight: Tensor, grad_energy: Tensor, weight: Tensor, std: Tensor | None) -> Tensor:
    del grad_weight, grad_energy, std
    return torch.empty_like(weight)


# Not differentiable: `_backward` does not use it where a second derivative may be needed.
torch.library.register_fake("wrangan::random_weight_backward", _gradient_fake, lib=LIBRARY)
