"""Signatures of the operators (see operators.py), and helpers that their modules share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SCHEMAS = (
    "upfirdn2d(Tensor x, Tensor kernel, int up, int down, int before, int after) -> Tensor",
    "fir_act(Tensor x, Tensor? kernel, int before, int after, Tensor? noise, Tensor? strength, "
    "Tensor? scale, Tensor? bias, float slope, float gain, float clamp) -> Tensor",
    "fir_act_backward(Tensor grad, Tensor y, Tensor? kernel, int before, int after, Tensor? scale, "
    "float slope, float gain, float clamp, int height, int width) -> (Tensor grad_x, Tensor grad_pre)",
    "add_upsampled(Tensor y, Tensor skip, Tensor kernel) -> Tensor",
    "modulated_weight(Tensor mu, Tensor? std, Tensor? epsilon, Tensor style, float scale, "
    "bool demodulate, int dtype) -> (Tensor weight, Tensor demod)",
    "modulated_weight_backward(Tensor grad_weight, Tensor mu, Tensor? std, Tensor? epsilon, Tensor style, "
    "Tensor demod, float scale, bool[4] needed) "
    "-> (Tensor grad_mu, Tensor grad_std, Tensor grad_epsilon, Tensor grad_style)",
    # Of MobileStyleGAN, channels_last:
    "separable_conv(Tensor x, Tensor depthwise, Tensor mixing, Tensor? noise, Tensor bias, float slope) "
    "-> Tensor",
    "separable_conv_backward(Tensor grad, Tensor y, Tensor x, Tensor depthwise, Tensor mixing, "
    "int noise_maps, float slope, bool[5] needed) -> (Tensor grad_x, Tensor grad_depthwise, "
    "Tensor grad_mixing, Tensor grad_noise, Tensor grad_bias)",
    "haar_up(Tensor x, Tensor style) -> Tensor",
    "haar_up_backward(Tensor grad, Tensor x, Tensor style, bool[2] needed) "
    "-> (Tensor grad_x, Tensor grad_style)",
    "pooled_pointwise(Tensor x, Tensor weight, Tensor bias, int pool) -> Tensor",
    "pooled_pointwise_backward(Tensor grad, Tensor x, Tensor weight, int pool, bool[3] needed) "
    "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    # On the CPU alone:
    "conv3x3(Tensor x, Tensor weight, Tensor? scale_in, Tensor? scale_out, bool transposed) -> Tensor",
    "conv3x3_weight_grad(Tensor x, Tensor grad, Tensor? scale_in, Tensor? scale_out, bool per_image) "
    "-> Tensor",
    "conv3x3_up(Tensor x, Tensor weight, Tensor? scale_in, Tensor? scale_out, bool transposed) -> Tensor",
    "conv3x3_up_weight_grad(Tensor x, Tensor grad, Tensor? scale_in, Tensor? scale_out, bool per_image) "
    "-> Tensor",
    "plane_dot(Tensor a, Tensor b) -> Tensor",
    "styled_conv(Tensor x, Tensor weight, Tensor energy, Tensor style, Tensor? noise, Tensor? strength, "
    "Tensor bias, Tensor? fir, int before, int after, float slope, float gain, float clamp) "
    "-> (Tensor y, Tensor mid, Tensor demod)",
    "styled_conv_backward(Tensor grad, Tensor y, Tensor mid, Tensor demod, Tensor x, Tensor weight, "
    "Tensor energy, Tensor style, Tensor? noise, Tensor? strength, Tensor? fir, int before, int after, "
    "float slope, float gain, float clamp, bool[7] needed) -> (Tensor grad_x, Tensor grad_weight, "
    "Tensor grad_energy, Tensor grad_style, Tensor grad_noise, Tensor grad_strength, Tensor grad_bias)",
    "to_rgb(Tensor x, Tensor weight, Tensor style, Tensor bias, Tensor? skip, Tensor? fir, float clamp) "
    "-> Tensor",
    "to_rgb_backward(Tensor grad, Tensor x, Tensor weight, Tensor style, Tensor bias, Tensor? fir, "
    "float clamp, bool[5] needed) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_style, "
    "Tensor grad_bias, Tensor grad_skip)",
    "random_weight(Tensor mu, Tensor? std, Tensor offset) -> (Tensor weight, Tensor energy)",
    "random_weight_backward(Tensor grad_weight, Tensor grad_energy, Tensor weight, Tensor? std) -> Tensor",
)

LIBRARY = torch.library.Library("wrangan", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

ops: Any = torch.ops.wrangan


def like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor of `shape` in the layout of x."""
    channels_last = (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def register(name: str, fake: Any, backward: Any, setup: Any) -> None:
    """Register shape and gradient of an operator."""
    torch.library.register_fake(f"wrangan::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"wrangan::{name}", backward, setup_context=setup, lib=LIBRARY)


def again_differentiable(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    numbers: Sequence[Any],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of function(*tensors, *numbers) with respect to the first tensors, as functions of all
    tensors and of `grad`: for second derivatives of an operator, rebuilt from differentiable parts."""
    # As separate tensors: if one is a function of another (the energy of the weight), the gradient of the
    # latter must not include the path through the former.
    named = [tensor if tensor is None else tensor.view_as(tensor) for tensor in tensors]
    wanted = [tensor for tensor, need in zip(named, needed, strict=False) if need and tensor is not None]
    found = iter(torch.autograd.grad(function(*named, *numbers), wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype for sums over x."""
    return torch.promote_types(x.dtype, torch.float32)


def plane_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over each plane: (B, C, H, W) twice → (B, C), in float32 at least."""
    if a.device.type == "cpu" and a.dtype == b.dtype == torch.float32:
        return ops.plane_dot(a, b)
    return (a * b).sum(dim=(2, 3), dtype=sum_dtype(a))


def _plane_dot_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _plane_dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    grad = grad[:, :, None, None]
    return grad * b if ctx.needs_input_grad[0] else None, grad * a if ctx.needs_input_grad[1] else None


register("plane_dot", lambda a, b: a.new_empty(b.shape[:2]), _plane_dot_backward, _plane_dot_setup)
