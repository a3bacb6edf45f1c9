"""The operators of the namespace `wrangan`: schemas, shapes (fake kernels) and gradients.

Nothing is computed here, and no library is needed to import this: compiled libraries add
the kernels (TORCH_LIBRARY_IMPL(wrangan, CPU or CUDA, m)). Gradients are made of the same
operators, or of PyTorch's own, so that they can be differentiated again.

Filters are true convolutions (StyleGAN2, Karras et al. 2020, appendix B); modulation and
demodulation are eq. 1–3 there; θ = μ + σ⊙ε is the randomised weight.
"""

from typing import Any

import torch
from torch import Tensor

DEMODULATION_EPSILON = 1e-8
"""Added under the root of the demodulation, in every implementation."""

DTYPE_CODES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
"""c10::ScalarType of the types that `modulated_weight` can give."""

_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}

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
    # On the CPU alone:
    "conv3x3(Tensor x, Tensor weight, Tensor? scale_in, Tensor? scale_out, bool transposed) -> Tensor",
    "conv3x3_weight_grad(Tensor x, Tensor grad, Tensor? scale_in, Tensor? scale_out, bool per_image) "
    "-> Tensor",
    "conv3x3_up(Tensor x, Tensor weight, Tensor? scale_in, Tensor? scale_out, bool transposed) -> Tensor",
    "conv3x3_up_weight_grad(Tensor x, Tensor grad, Tensor? scale_in, Tensor? scale_out, bool per_image) "
    "-> Tensor",
    "plane_dot(Tensor a, Tensor b) -> Tensor",
)

LIBRARY = torch.library.Library("wrangan", "DEF")
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

_ops: Any = torch.ops.wrangan


def _like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor of `shape` in the layout of x."""
    channels_last = (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _register(name: str, fake: Any, backward: Any, setup: Any) -> None:
    torch.library.register_fake(f"wrangan::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"wrangan::{name}", backward, setup_context=setup, lib=LIBRARY)


# upfirdn2d


def _resampled(side: int, taps: int, up: int, down: int, before: int, after: int) -> int:
    return (side * up + before + after - taps) // down + 1


def _upfirdn2d_fake(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    taps = kernel.shape[0]
    height, width = (_resampled(side, taps, up, down, before, after) for side in x.shape[2:])
    return _like(x, (*x.shape[:2], height, width))


def _upfirdn2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, *ctx.numbers = inputs
    ctx.save_for_backward(kernel)
    ctx.sides, ctx.outputs = x.shape[2:], output.shape[2:]


def _upfirdn2d_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (kernel,) = ctx.saved_tensors
    return _transposed(grad, kernel, *ctx.numbers, ctx.sides), None, None, None, None, None


def _transposed(
    grad: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int, sides: tuple[int, int]
) -> Tensor:
    """The gradient in x of `upfirdn2d`, for an x of these sides: up and down change places."""
    del after
    taps = kernel.shape[0]
    start = taps - 1 - before
    # What makes each side exact; where they differ (a remainder of `down`), the rest is cut off.
    ends = [(n - 1) * up + taps - m * down - start for n, m in zip(sides, grad.shape[2:], strict=True)]
    x = _ops.upfirdn2d(
        grad.contiguous() if _strange(grad) else grad, kernel.flip(0, 1), down, up, start, max(ends)
    )
    return x if tuple(x.shape[2:]) == tuple(sides) else x[:, :, : sides[0], : sides[1]]


def _strange(x: Tensor) -> bool:
    """Neither of the two layouts that the kernels know."""
    return not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))


_register("upfirdn2d", _upfirdn2d_fake, _upfirdn2d_backward, _upfirdn2d_setup)


# fir_act


def _fir_act_fake(x: Tensor, kernel: Tensor | None, before: int, after: int, *others: Any) -> Tensor:
    del others
    taps = 1 if kernel is None else kernel.shape[0]
    height, width = (_resampled(side, taps, 1, 1, before, after) for side in x.shape[2:])
    return _like(x, (*x.shape[:2], height, width))


def _fir_act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernel, before, after, noise, strength, scale, bias, *ctx.numbers = inputs
    ctx.pad, ctx.sides = (before, after), x.shape[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype
    # x is wanted for the gradient of the demodulation alone.
    ctx.save_for_backward(x if scale is not None and ctx.needs_input_grad[6] else None,
                          kernel, noise, strength, scale, output)  # fmt: skip


def _fir_act_grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, kernel, noise, strength, scale, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if _strange(grad) or grad.is_contiguous() != y.is_contiguous():
        grad = grad.contiguous(memory_format=_layout(y))
    grad_x, grad_pre = _ops.fir_act_backward(grad, y, kernel, *ctx.pad, scale, *ctx.numbers, *ctx.sides)
    if kernel is None and scale is None:
        grad_x = grad_pre
    grad_noise = grad_strength = grad_scale = grad_bias = None
    if noise is not None and (needs[4] or needs[5]):
        over_channels = grad_pre.sum(dim=1, keepdim=True, dtype=_sum_dtype(grad_pre))
        if noise.shape[0] == 1:
            over_channels = over_channels.sum(dim=0, keepdim=True)
        if needs[4]:
            grad_noise = (over_channels * strength).to(noise.dtype)
        if needs[5]:
            grad_strength = (over_channels * noise).sum().reshape(strength.shape).to(strength.dtype)
    if x is not None:
        # <grad_pre, FIR(x)> = <FIRᵀ(scale ⊙ grad_pre), x> / scale: no second filtering.
        grad_scale = plane_dot(grad_x, x).to(scale.dtype) / scale
    if needs[7]:
        grad_bias = grad_pre.sum(dim=(0, 2, 3), dtype=_sum_dtype(grad_pre)).to(ctx.bias_dtype)
    grad_in = grad_x if needs[0] else None
    return grad_in, None, None, None, grad_noise, grad_strength, grad_scale, grad_bias, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


_register("fir_act", _fir_act_fake, _fir_act_grad, _fir_act_setup)


def _fir_act_backward_fake(
    grad: Tensor,
    y: Tensor,
    kernel: Tensor | None,
    before: int,
    after: int,
    scale: Tensor | None,
    slope: float,
    gain: float,
    clamp: float,
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    del before, after, slope, gain, clamp
    pre = _like(y, tuple(grad.shape))
    # Without filter and scale both would be the same, and one is enough.
    back = y.new_empty(0) if kernel is None and scale is None else _like(y, (*grad.shape[:2], height, width))
    return back, pre


def _fir_act_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, y, kernel, ctx.before, ctx.after, scale, ctx.slope, ctx.gain, ctx.clamp, *_ = inputs
    del grad
    ctx.save_for_backward(y, kernel, scale, output[1])


def _fir_act_backward_grad(ctx: Any, grad_of_x: Tensor, grad_of_pre: Tensor) -> tuple[Any, ...]:
    """grad_x = FIRᵀ(scale ⊙ m ⊙ grad) and grad_pre = m ⊙ grad, with m the slope of the activation."""
    y, kernel, scale, grad_pre = ctx.saved_tensors
    filtered = grad_of_x if kernel is not None or scale is not None else torch.zeros_like(grad_of_pre)
    if kernel is not None:
        filtered = grad_of_x.contiguous() if _strange(grad_of_x) else grad_of_x
        filtered = _ops.upfirdn2d(filtered, kernel, 1, 1, ctx.before, ctx.after)
    grad_scale = None
    total = filtered
    if scale is not None:
        total = filtered * scale.to(filtered.dtype)[:, :, None, None]
        if ctx.needs_input_grad[5]:
            grad_scale = plane_dot(grad_pre, filtered).to(scale.dtype)
    slopes = torch.where(y > 0, ctx.gain, ctx.gain * ctx.slope).to(y.dtype)
    if ctx.clamp >= 0:
        slopes = slopes * (y.abs() < ctx.clamp)
    grad = (total + grad_of_pre) * slopes
    return (grad, None, None, None, None, grad_scale, *[None] * 5)


_register("fir_act_backward", _fir_act_backward_fake, _fir_act_backward_grad, _fir_act_backward_setup)


# add_upsampled


def _add_upsampled_fake(y: Tensor, skip: Tensor, kernel: Tensor) -> Tensor:
    del skip, kernel
    return _like(y, tuple(y.shape))


def _add_upsampled_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, skip, kernel = inputs
    ctx.save_for_backward(kernel)
    ctx.sides = skip.shape[2:]


def _add_upsampled_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (kernel,) = ctx.saved_tensors
    grad_skip = None
    if ctx.needs_input_grad[1]:
        extra = kernel.shape[0] - 2
        grad_skip = _transposed(grad, kernel, 2, 1, (extra + 1) // 2 + 1, extra // 2, ctx.sides)
    return grad, grad_skip, None


_register("add_upsampled", _add_upsampled_fake, _add_upsampled_backward, _add_upsampled_setup)


# modulated_weight


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
    grads = _ops.modulated_weight_backward(
        grad_weight.contiguous(), mu, std, epsilon, style, demod, ctx.scale, needed
    )
    return (*(g if need else None for g, need in zip(grads, needed, strict=True)), None, None, None)


_register("modulated_weight", _modulated_weight_fake, _modulated_weight_grad, _modulated_weight_setup)


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
    """Second derivatives, from the formula in PyTorch: for training alone, and once only."""
    saved = ctx.saved_tensors
    with torch.enable_grad():
        *tensors, demod = (
            x if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in saved
        )
        given = [x for x in tensors if x is not None]
        outputs = modulated_weight_gradient(*tensors, demod.numel() > 0, ctx.scale)
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
    """Gradients of `modulated_weight` in μ, σ, ε and the style, of plain PyTorch operations.

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


_register(
    "modulated_weight_backward",
    _modulated_weight_backward_fake,
    _modulated_weight_backward_grad,
    _modulated_weight_backward_setup,
)


# plane_dot


def plane_dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over each plane: (B, C, H, W) twice → (B, C), in float32 at least."""
    if a.device.type == "cpu" and a.dtype == b.dtype == torch.float32:
        return _ops.plane_dot(a, b)
    return (a * b).sum(dim=(2, 3), dtype=_sum_dtype(a))


def _plane_dot_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs)


def _plane_dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    grad = grad[:, :, None, None]
    return grad * b if ctx.needs_input_grad[0] else None, grad * a if ctx.needs_input_grad[1] else None


_register("plane_dot", lambda a, b: a.new_empty(b.shape[:2]), _plane_dot_backward, _plane_dot_setup)


# conv3x3: y = scale_out ⊙ conv(scale_in ⊙ x), scales (B, channels) or none; 3×3, stride 1, padding 1.
# `transposed`: the gradient of that in x, by the same weight (so channels change places).
# conv3x3_up: the same with a transposed convolution of stride 2, H → 2H + 1; weight (O, I, 3, 3) here too.


def _sides(x: Tensor, transposed: bool, up: bool) -> list[int]:
    if not up:
        return list(x.shape[2:])
    return [side // 2 if transposed else 2 * side + 1 for side in x.shape[2:]]


def _convolution(name: str, up: bool) -> None:
    """Registers the convolution `name` and its gradient in the weight; both know the other."""

    def convolve(*inputs: Any) -> Tensor:
        return getattr(_ops, name)(*inputs)

    def correlate(*inputs: Any) -> Tensor:
        return getattr(_ops, f"{name}_weight_grad")(*inputs)

    def fake(
        x: Tensor, weight: Tensor, scale_in: Tensor | None, scale_out: Tensor | None, transposed: bool
    ) -> Tensor:
        del scale_in, scale_out
        channels = weight.shape[-3 if transposed else -4]
        return x.new_empty((x.shape[0], channels, *_sides(x, transposed, up)))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scale_in, scale_out, ctx.transposed = inputs
        ctx.per_image = weight.ndim == 5
        needs = ctx.needs_input_grad
        ctx.save_for_backward(
            x if needs[1] or needs[2] else None,
            weight if needs[0] or needs[2] else None,
            scale_in,
            scale_out,
            output if needs[3] else None,
        )

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, scale_in, scale_out, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = grad_weight = grad_in = grad_out = None
        grad = grad.contiguous()
        if needs[2]:
            grad_x = convolve(grad, weight, scale_out, None, not ctx.transposed)
            grad_in = plane_dot(x, grad_x)
            grad_x = _scaled(grad_x, scale_in) if needs[0] else None
        elif needs[0]:
            grad_x = convolve(grad, weight, scale_out, scale_in, not ctx.transposed)
        if needs[1]:
            pairs = (grad, x, scale_out, scale_in) if ctx.transposed else (x, grad, scale_in, scale_out)
            grad_weight = correlate(*pairs, ctx.per_image)
        if needs[3]:
            grad_out = plane_dot(grad, y) / scale_out
        return grad_x, grad_weight, grad_in, grad_out, None

    _register(name, fake, backward, setup)

    def weight_fake(
        x: Tensor, grad: Tensor, scale_in: Tensor | None, scale_out: Tensor | None, per_image: bool
    ) -> Tensor:
        del scale_in, scale_out
        shape = (grad.shape[1], x.shape[1], 3, 3)
        return x.new_empty((x.shape[0], *shape) if per_image else shape)

    def weight_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs[:4])

    def weight_backward(ctx: Any, grad_weight: Tensor) -> tuple[Any, ...]:
        x, grad, scale_in, scale_out = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x = grad_grad = grad_in = grad_out = None
        if needs[0]:
            grad_x = convolve(grad, grad_weight, scale_out, scale_in, True)
        if needs[1]:
            grad_grad = convolve(x, grad_weight, scale_in, scale_out, False)
        if needs[2]:
            grad_in = plane_dot(x, convolve(grad, grad_weight, scale_out, None, True))
        if needs[3]:
            grad_out = plane_dot(grad, convolve(x, grad_weight, scale_in, None, False))
        return grad_x, grad_grad, grad_in, grad_out, None

    _register(f"{name}_weight_grad", weight_fake, weight_backward, weight_setup)


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    """x times one number a plane; in place where no second derivative is wanted."""
    factors = scale[:, :, None, None]
    return x * factors if torch.is_grad_enabled() else x.mul_(factors)


_convolution("conv3x3", up=False)
_convolution("conv3x3_up", up=True)
