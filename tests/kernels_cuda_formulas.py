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
