"""Check a newly loaded library before it is used: each operator once, on a few
numbers, against float64 formulas in PyTorch. It takes a few milliseconds, once per process.

The tests are more thorough; this check is for untested machines: another processor, GPU or
compiler.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-4
"""Largest error, relative to the largest value."""
_SLOPE, _GAIN = 0.2, 2.0**0.5


def wrong(device: str) -> str | None:
    """The name of an operator with wrong results on `device` (`cpu`, `cuda`); None if all are right."""
    with torch.enable_grad():  # whatever the caller's setting
        cases = list(_cases(device))
    for name, found, expected in cases:
        given = found.detach().double().cpu()
        if given.shape != expected.shape:
            return name
        error = (given - expected).abs().max()
        # Not `error > …`, which a NaN would pass.
        if not bool(error <= TOLERANCE * expected.abs().max()):
            return name
    return None


def _cases(device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, the operator's result, and the formula's in float64 on the CPU."""
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    def there(x: Tensor) -> Tensor:
        return x.float().to(device)

    ops = torch.ops.wrangan
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    kernel = torch.outer(line, line) / 16
    x, skip = draw(2, 3, 16, 16), draw(2, 3, 8, 8)
    for up, down, before, after in ((1, 1, 2, 1), (2, 1, 2, 1), (1, 2, 1, 1)):
        found = ops.upfirdn2d(there(x), there(kernel), up, down, before, after)
        yield "upfirdn2d", found, _fir(x, kernel, up, down, before, after)
    found = ops.add_upsampled(there(x), there(skip), there(kernel))
    yield "add_upsampled", found, x + _fir(skip, kernel, 2, 1, 2, 1)

    noise, strength, scale, bias = draw(1, 1, 16, 16), draw(1), draw(2, 3).abs() + 0.5, draw(3)
    theirs, ours = x.clone().requires_grad_(True), there(x).requires_grad_(True)
    expected = F.leaky_relu(
        scale[:, :, None, None] * _fir(theirs, kernel, 1, 1, 2, 1) + strength * noise + bias[:, None, None],
        _SLOPE,
    )
    expected = expected * _GAIN
    parts = [there(part) for part in (noise, strength, scale, bias)]
    found = ops.fir_act(ours, there(kernel), 2, 1, *parts, _SLOPE, _GAIN, -1.0)
    yield "fir_act", found, expected.detach()
    pull = draw(*expected.shape)
    (gradient,) = torch.autograd.grad(found, ours, there(pull))
    (wanted,) = torch.autograd.grad(expected, theirs, pull)
    yield "fir_act_backward", gradient, wanted

    mu, style = draw(4, 3, 3, 3), draw(2, 3)
    weights = mu * style[:, None, :, None, None]
    if device == "cpu":
        x = draw(2, 3, 32, 32)
        flat = weights.reshape(8, 3, 3, 3)
        expected = F.conv2d(x.reshape(1, 6, 32, 32), flat, padding=1, groups=2).reshape(2, 4, 32, 32)
        yield "conv3x3", ops.conv3x3(there(x), there(mu), there(style), None, False), expected
        yield from _layers(draw, kernel)
    else:
        demod = (weights.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        found, _ = ops.modulated_weight(there(mu), None, None, there(style), 1.0, True, _float32())
        yield "modulated_weight", found, weights * demod
    with _whole_products():
        yield from _separable_layers(draw, device)


@contextlib.contextmanager
def _whole_products() -> Iterator[None]:
    """Compute matrix products in float32 even if the caller has enabled TF32, which is not checked here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _layers(draw: Callable[..., Tensor], kernel: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Whole layers on the CPU and their gradients: one that enlarges 4 × 4 px, with separate weights for each
    image, and its toRGB layer."""
    ops = torch.ops.wrangan
    given = [draw(4, 3, 3, 3), draw(4, 3, 3, 3), draw(2, 4, 3, 3, 3), draw(2, 3, 4, 4), draw(2, 3), draw(4)]
    given += [draw(3, 4), draw(2, 4), draw(3), draw(2, 3, 4, 4)]

    def formula(*parts: Tensor) -> list[Tensor]:
        mu, std, offset, x, style, bias, rows, second, shift, skip = parts
        theta = mu + std * offset
        u = theta * style[:, None, :, None, None]
        u = u * (u.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        flat = u.transpose(1, 2).reshape(6, 4, 3, 3)
        y = F.conv_transpose2d(x.reshape(1, 6, 4, 4), flat, stride=2, groups=2).reshape(2, 4, 9, 9)
        y = F.leaky_relu(_fir(y, kernel, 1, 1, 1, 1) + bias[:, None, None], _SLOPE) * _GAIN
        image = torch.einsum("ci,bi,bihw->bchw", rows, second, y) + shift[:, None, None]
        return [theta, y, image + _fir(skip, kernel, 2, 1, 2, 1)]

    def operators(*parts: Tensor) -> list[Tensor]:
        mu, std, offset, x, style, bias, rows, second, shift, skip = parts
        theta, energy = ops.random_weight(mu, std, offset)
        layer = (x, theta, energy, style, None, None, bias, kernel.float(), 1, 1, _SLOPE, _GAIN, -1.0)
        y = ops.styled_conv(*layer)[0]
        return [theta, y, ops.to_rgb(y, rows, second, shift, skip, kernel.float(), -1.0)]

    free = [2, 3, 4, 7, 9]  # the inputs whose gradients an inversion needs: ε, x, the styles, the skip image
    pull = draw(2, 3, 8, 8)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for function, dtype, made in ((formula, torch.float64, expected), (operators, torch.float32, found)):
        leaves = [
            x.to(dtype).requires_grad_(index in free) for index, x in enumerate(x.clone() for x in given)
        ]
        results = function(*leaves)
        made += [x.detach() for x in results]
        made += torch.autograd.grad(results[-1], [leaves[index] for index in free], pull.to(dtype))
    names = ["random_weight", "styled_conv", "to_rgb", "random_weight_backward"]
    names += ["styled_conv_backward"] * 2 + ["to_rgb_backward"] * 2
    yield from zip(names, found, expected, strict=True)


def _separable_layers(draw: Callable[..., Tensor], device: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """An upsampling, a separable layer with separate weights for each image, and the image at half the
    side."""
    ops = torch.ops.wrangan
    given = [draw(2, 64, 3, 5), draw(2, 64), draw(2, 16, 3, 3), draw(2, 32, 16), draw(1, 1, 6, 10), draw(32)]
    given += [draw(1, 3, 32), draw(3)]

    def formula(*parts: Tensor) -> Tensor:
        x, style, depthwise, mixing, noise, bias, rows, shift = parts
        taps = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
        wave = torch.einsum("ai,bj->abij", taps, taps).reshape(4, 1, 2, 2)  # low, horizontal, vertical, both
        bands = (x * style[:, :, None, None]).split((16, 48), dim=1)
        high = bands[1].unflatten(1, (16, 3))
        joined = torch.stack([bands[0], high[:, :, 1], high[:, :, 0], high[:, :, 2]], dim=2).flatten(1, 2)
        y = F.conv_transpose2d(joined, wave.repeat(16, 1, 1, 1), stride=2, groups=16)
        y = F.conv2d(y.reshape(1, 32, 6, 10), depthwise.reshape(32, 1, 3, 3), padding=1, groups=32)
        y = torch.einsum("boi,bihw->bohw", mixing, y.reshape(2, 16, 6, 10)) + noise + bias[:, None, None]
        y = F.avg_pool2d(F.leaky_relu(y, _SLOPE), 2)
        return torch.einsum("oci,bihw->bchw", rows, y) + shift[:, None, None]

    def operators(*parts: Tensor) -> Tensor:
        x, style, depthwise, mixing, noise, bias, rows, shift = parts
        y = ops.separable_conv(ops.haar_up(x, style), depthwise, mixing, noise, bias, _SLOPE)
        return ops.pooled_pointwise(y, rows, shift, 2)

    pull = draw(2, 3, 3, 5)
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for function, where, made in (
        (formula, pull, expected),
        (operators, torch.empty(0, dtype=torch.float32, device=device), found),
    ):
        leaves = [x.clone().to(where).requires_grad_(True) for x in given]
        result = function(*leaves)
        made += [result.detach(), *torch.autograd.grad(result, leaves, pull.to(where))]
    names = ["separable_conv", *["haar_up_backward"] * 2, *["separable_conv_backward"] * 4]
    names += ["pooled_pointwise_backward"] * 2
    yield from zip(names, found, expected, strict=True)


def _float32() -> int:
    from wrangan_kernels.modulated import DTYPE_CODES

    return DTYPE_CODES[torch.float32]


def _fir(x: Tensor, kernel: Tensor, up: int, down: int, before: int, after: int) -> Tensor:
    """Zero insertion, padding, a true convolution, every `down`-th sample."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    padded = F.pad(spread, (before, after, before, after))
    weight = kernel.flip(0, 1).expand(channels, 1, *kernel.shape)
    return F.conv2d(padded, weight, groups=channels)[:, :, ::down, ::down]
