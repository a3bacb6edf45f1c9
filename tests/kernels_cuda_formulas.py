"""What the kernels should give, in float64, of plain PyTorch operations that they have no part in."""

import torch
import torch.nn.functional as F
from torch import Tensor

Pad = tuple[int, int]


def direct(x: Tensor, kernel: Tensor, up: int, down: int, pad: Pad) -> Tensor:
    """upfirdn2d by definition: insert zeros, pad or crop, true convolution, keep each `down`-th."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch * channels, 1, height * up, width * up, dtype=torch.float64)
    spread[:, :, ::up, ::up] = x.reshape(-1, 1, height, width).double()
    spread = F.pad(spread, (*pad, *pad))
    made = F.conv2d(spread, kernel.double().flip(0, 1)[None, None])[:, :, ::down, ::down]
    return made.reshape(batch, channels, *made.shape[2:])


def transposed(grad: Tensor, kernel: Tensor, pad: Pad, sides: tuple[int, int]) -> Tensor:
    """The gradient of `direct` with up = down = 1, by autograd."""
    x = torch.zeros(*grad.shape[:2], *sides, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(direct(x, kernel, 1, 1, pad), x, grad.double())
    return found


def sides(x: Tensor, taps: int, up: int, down: int, pad: Pad) -> tuple[int, int]:
    """Of what `direct` gives."""
    height, width = ((n * up + sum(pad) - taps) // down + 1 for n in x.shape[2:])
    return height, width


def before_activation(
    x: Tensor,
    kernel: Tensor | None,
    pad: Pad,
    noise: Tensor | None,
    strength: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """scale ⊙ FIR(x) + strength · noise + bias."""
    made = x.double() if kernel is None else direct(x, kernel, 1, 1, pad)
    if scale is not None:
        made = made * scale.double()[:, :, None, None]
    if noise is not None and strength is not None:
        made = made + noise.double() * strength.double()
    return made if bias is None else made + bias.double()[:, None, None]


def activated(pre: Tensor, slope: float, gain: float, clamp: float) -> Tensor:
    y = F.leaky_relu(pre, slope) * gain
    return y.clamp(-clamp, clamp) if clamp >= 0 else y


def slopes(y: Tensor, slope: float, gain: float, clamp: float) -> Tensor:
    """The activation's derivative, told from its result as it is stored."""
    made = torch.where(y > 0, gain, gain * slope).double()
    limit = torch.tensor(clamp).to(y.dtype)
    return made * (y.abs() < limit) if clamp >= 0 else made


def modulated(
    mu: Tensor, std: Tensor | None, epsilon: Tensor | None, style: Tensor, scale: float, demodulate: bool
) -> tuple[Tensor, Tensor]:
    """Weights of each image (B, O, I, k, k), and the demodulation (B, O)."""
    theta = mu.double()
    if std is not None and epsilon is not None:
        theta = theta + std.double() * epsilon.double()
    weight = scale * theta * style.double()[:, None, :, None, None]
    demod = (weight.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
    return (weight * demod[:, :, None, None, None] if demodulate else weight), demod


def depthwise(x: Tensor, taps: Tensor) -> Tensor:
    """Σ taps[k] · x[p + k] of each channel, zeros beyond the edges; taps (1 or B, C, 3, 3)."""
    height, width = x.shape[2:]
    padded = F.pad(x.double(), (1, 1, 1, 1))
    around = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    weights = taps.double().flatten(2).unbind(2)
    return sum((w[:, :, None, None] * a for w, a in zip(weights, around, strict=True)), torch.zeros(()))


def separable(x: Tensor, taps: Tensor, mixing: Tensor, noise: Tensor | None, bias: Tensor) -> Tensor:
    """A separable layer before its activation."""
    mixed = mixing.double().expand(len(x), -1, -1)
    made = torch.einsum("boi,bihw->bohw", mixed, depthwise(x, taps)) + bias.double()[:, None, None]
    return made if noise is None else made + noise.double()


def haar_up(x: Tensor, style: Tensor) -> Tensor:
    """The four pixels of each one of x · style, with the signs of low, vertical, horizontal, both."""
    x, quarter = x.double() * style.double()[:, :, None, None], x.shape[1] // 4
    low, high = x[:, :quarter], x[:, quarter:]
    rows = []
    for i in (1, -1):
        pixels = [low + i * high[:, ::3] + j * high[:, 1::3] + i * j * high[:, 2::3] for j in (1, -1)]
        rows.append(torch.stack(pixels, dim=-1).flatten(3) / 2)
    return torch.stack(rows, dim=3).flatten(2, 3)


def pooled(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """weight · (means over pool × pool px) + bias."""
    x = x.double().unflatten(3, (-1, pool)).unflatten(2, (-1, pool)).mean(dim=(3, 5))
    mixed = weight.double().expand(len(x), -1, -1)
    return torch.einsum("bci,bihw->bchw", mixed, x) + bias.double()[:, None, None]
