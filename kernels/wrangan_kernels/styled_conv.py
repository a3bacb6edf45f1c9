"""A whole styled layer with a CPU kernel: shapes and gradients.

styled_conv: d = (Σ energy · style² + 1e-8)^(-1/2), mid = d ⊙ conv(style ⊙ x) (3×3, padding 1; with `fir`
transposed, of stride 2), y = clamp(gain · leaky_relu(FIR(mid) + strength · noise + bias)).

x (B, I, H, W). weight (O, I, 3, 3) or (B, O, I, 3, 3), energy = Σ weight² over the taps. style (B, I),
including the scale of the equalised learning rate. noise (1 or B, 1, H', W'), strength (1,), bias (O,). fir
(k, k), padded by `before` and `after`. clamp: negative for none. float32. mid and d are only for the
gradient.
"""

from typing import Any

import torch
from torch import Tensor

from wrangan_kernels.modulated import demodulation
from wrangan_kernels.schemas import LIBRARY, again_differentiable, ops, register


def _fake(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    _energy, _style, _noise, _strength, _bias, fir, before, after, *_numbers = others
    demod = x.new_empty((x.shape[0], weight.shape[-4]))
    sides = x.shape[2:] if fir is None else [2 * side + 1 for side in x.shape[2:]]
    mid = x.new_empty((*demod.shape, *sides))
    grown = 0 if fir is None else before + after + 1 - fir.shape[0]
    return x.new_empty((*demod.shape, *(side + grown for side in sides))), mid, demod


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.before, ctx.after, ctx.slope, ctx.gain, ctx.clamp = inputs
    y, mid, demod = output
    ctx.mark_non_differentiable(mid, demod)
    ctx.save_for_backward(*tensors, y, mid, demod)


def _backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    del unused
    *tensors, y, mid, demod = ctx.saved_tensors
    x, weight, energy, style, noise, strength, _, fir = tensors
    numbers = [ctx.before, ctx.after, ctx.slope, ctx.gain, ctx.clamp]
    needed = list(ctx.needs_input_grad[:7])
    found: list[Any]
    if torch.is_grad_enabled():
        found = again_differentiable(parts, tensors, numbers, grad, needed)
    else:
        given = (grad.contiguous(), y, mid, demod, x, weight, energy, style, noise, strength, fir)
        found = list(ops.styled_conv_backward(*given, *numbers, needed))
    return (*(g if need else None for g, need in zip(found, needed, strict=True)), *[None] * 6)


def parts(
    x: Tensor,
    weight: Tensor,
    energy: Tensor,
    style: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor,
    fir: Tensor | None,
    before: int,
    after: int,
    *numbers: float,
) -> Tensor:
    """y of `styled_conv`, by separate operators, which can be differentiated again."""
    convolve = ops.conv3x3 if fir is None else ops.conv3x3_up
    mid = convolve(x, weight, style, demodulation(energy, style), False)
    return ops.fir_act(mid, fir, before, after, noise, strength, None, bias, *numbers)


register("styled_conv", _fake, _backward, _setup)


def _gradient_fake(
    grad: Tensor,
    y: Tensor,
    mid: Tensor,
    demod: Tensor,
    x: Tensor,
    weight: Tensor,
    energy: Tensor,
    style: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    *others: Any,
) -> tuple[Tensor, ...]:
    del grad, y, mid
    needed = others[-1]
    bias = demod.new_empty(demod.shape[1])
    like = (x, weight, energy, style, noise, strength, bias)
    pairs = zip(like, needed, strict=True)
    return tuple(x.new_empty(t.shape if need and t is not None else (0,)) for t, need in pairs)


# Not differentiable: `_backward` does not use it where a second derivative may be needed.
torch.library.register_fake("wrangan::styled_conv_backward", _gradient_fake, lib=LIBRARY)
