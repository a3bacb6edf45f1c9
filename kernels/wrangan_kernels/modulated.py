"""The weights of a modulated convolution: shapes and gradients.

Modulation and demodulation are eq. 1–3 of StyleGAN2 (Karras et al. 2020); θ = μ + σ⊙ε is the
randomised weight.
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.schemas import ops, register

DEMODULATION_EPSILON = 1e-8
"""Added under the root of the demodulation, in every implementation."""

DTYPE_CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
"""c10::ScalarType of the dtypes that `modulated_weight` can return."""

_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


def demodulation(energy: Tensor, style: Tensor) -> Tensor:
    """1 / ‖weight · style‖ per output channel: (B, O).

    energy: Σ weight² over the taps, (O, I) or (B, O, I). style: (B, I), including the scale of the equalised
    learning rate.
    """
    square = style.square()
    total = square @ energy.t() if energy.ndim == 2 else torch.bmm(energy, square[:, :, None])[:, :, 0]
    return (total + DEMODULATION_EPSILON).rsqrt()


def _modulated_weight_fake(
    mu: Tensor,
    std: Tensor | None,
    epsilon: Tensor | None,
    style: Tensor,
    scale: float,
    demodulate: bool,
    dtype: int,
) -> tuple[Tensor, Tensor]:
    del std, epsilon, scale
    batch = style.shape[0]
    weight = torch.empty((batch, *mu.shape), dtype=_DTYPES[dtype], device=mu.device)
    demod = torch.empty((batch, mu.shape[0]) if demodulate else (0,), dtype=mu.dtype, device=mu.device)
    return weight, demod


def _modulated_weight_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    mu, std, epsilon, style, ctx.scale, _, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(mu, std, epsilon, style, output[1])


def _modulated_weight_grad(ctx: Any, grad_weight: Tensor, grad_demod: Tensor | None) -> tuple[Any, ...]:
    del grad_demod  # kept for the gradient; not a result to go on from
    mu, std, epsilon, style, demod = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:4])
    grads = ops.modulated_weight_backward(
        grad_weight.contiguous(), mu, std, epsilon, style, demod, ctx.scale, needed
    )
    return (*(g if need else None for g, need in zip(grads, needed, strict=True)), None, None, None)


register("modulated_weight", _modulated_weight_fake, _modulated_weight_grad, _modulated_weight_setup)


def _modulated_weight_backward_fake(
    grad_weight: Tensor,
    mu: Tensor,
    std: Tensor | None,
    epsilon: Tensor | None,
    style: Tensor,
    demod: Tensor,
    scale: float,
    needed: list[bool],
) -> tuple[Tensor, ...]:
    del grad_weight, demod, scale
    return tuple(
        torch.empty_like(x) if need and x is not None else mu.new_empty(0)
        for x, need in zip((mu, std, epsilon, style), needed, strict=True)
    )


def _modulated_weight_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    del output
    *tensors, ctx.scale, ctx.needed = inputs
    ctx.save_for_backward(*tensors)


def _modulated_weight_backward_grad(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Second derivatives, from the formula in PyTorch: only for training, and no higher derivatives."""
    saved = ctx.saved_tensors
    with torch.enable_grad():
        leaves: list[Any] = [x if x is None else x.detach().requires_grad_(True) for x in saved]
        *tensors, demod = leaves
        given = [x for x in tensors if x is not None]
        grad, mu, std, epsilon, style = tensors
        outputs = modulated_weight_gradient(grad, mu, std, epsilon, style, demod.numel() > 0, ctx.scale)
        pairs = [
            (output, grad)
            for output, grad, need in zip(outputs, grads, ctx.needed, strict=True)
            if need and output is not None
        ]
        found = torch.autograd.grad([p[0] for p in pairs], given, [p[1] for p in pairs], allow_unused=True)
    left = iter(found)
    return (*(None if x is None else next(left) for x in tensors), None, None, None)


def modulated_weight_gradient(
    grad: Tensor,
    mu: Tensor,
    std: Tensor | None,
    epsilon: Tensor | None,
    style: Tensor,
    demodulate: bool,
    scale: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Gradients of `modulated_weight` with respect to μ, σ, ε and the style, by plain PyTorch operations.

    grad: (B, O, I, k, k). With u = scale·θ·s and d = (Σu² + 1e-8)^(-1/2): ∂/∂u = d·grad − d³·u·Σ(u·grad).
    """
    theta = mu if epsilon is None or std is None else mu + std * epsilon.to(mu.dtype)
    theta = theta if theta.ndim == 5 else theta[None]
    s = style[:, None, :, None, None] * scale
    grad = grad.to(mu.dtype)
    if demodulate:
        u = theta * s
        d = (u.square().sum(dim=(2, 3, 4), keepdim=True) + DEMODULATION_EPSILON).rsqrt()
        grad = d * grad - d**3 * u * (u * grad).sum(dim=(2, 3, 4), keepdim=True)
    grad_style = (grad * theta).sum(dim=(1, 3, 4)) * scale
    per_image = grad * s
    summed = per_image.sum(dim=0)
    if std is None or epsilon is None:
        return summed, None, None, grad_style
    if epsilon.ndim == 4:
        return summed, summed * epsilon.to(mu.dtype), summed * std, grad_style
    return summed, (per_image * epsilon.to(mu.dtype)).sum(dim=0), per_image * std, grad_style


register(
    "modulated_weight_backward",
    _modulated_weight_backward_fake,
    _modulated_weight_backward_grad,
    _modulated_weight_backward_setup,
)
