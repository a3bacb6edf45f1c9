"""Bias, leaky ReLU, gain and clamp: the tail of every StyleGAN2 layer."""

import math

import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.ops.dispatch import kernels, laid_out, large

LEAKY_SLOPE = 0.2
LEAKY_GAIN = math.sqrt(2.0)


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    activate: bool = True,
    gain: float = LEAKY_GAIN,
    clamp: float | None = None,
) -> Tensor:
    """gain · leaky_relu(x + bias), then clamped to [-clamp, clamp].

    x: (B, C, …). bias: (C,). With activate=False only bias and clamp apply
    (a linear layer has gain 1).
    """
    if activate and x.ndim == 4 and large(x):
        most = -1.0 if clamp is None else clamp
        return kernels().fir_act(laid_out(x), None, 0, 0, None, None, None, bias, LEAKY_SLOPE, gain, most)
    if bias is not None:
        x = x + bias.to(x.dtype).reshape(1, -1, *([1] * (x.ndim - 2)))
    if activate:
        x = F.leaky_relu(x, LEAKY_SLOPE) * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x
