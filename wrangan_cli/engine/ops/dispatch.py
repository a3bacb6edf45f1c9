"""The one place that asks for compiled kernels (package `wrangan_kernels`); without them every
operation here is made of PyTorch's own."""

import math
from typing import Any

import torch
from torch import Tensor
from wrangan_kernels import loader

from wrangan_cli.engine.base.errors import UsageError, WranganError

_TYPES = {
    "cpu": (torch.float32,),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
MOST_TAPS, MOST_COLOURS = 8, 4
_SMALLEST = 100_000
"""Numbers of one image from which the CPU's kernels for filters and activations pay (docs/kernels.md)."""


def kernels() -> Any:
    """The operators (kernels/wrangan_kernels/operators.py); only where `compiled` says so."""
    return torch.ops.wrangan


def compiled(x: Tensor) -> bool:
    """Whether the kernels serve tensors like x; the first call on a device loads or makes them.

    Raises WranganError where WRANGAN_KERNELS=require and they cannot be had.
    """
    types = _TYPES.get(x.device.type)
    return types is not None and x.dtype in types and ready(x.device.type)


def ready(device: str) -> bool:
    """`compiled` for a type of device, whatever the tensors."""
    try:
        return loader.ready(device)
    except loader.KernelError as error:
        kind = WranganError if loader.ENVIRONMENT + "=require" in str(error) else UsageError
        raise kind(str(error)) from error


def large(x: Tensor) -> bool:
    """`compiled`, and worth a kernel that passes over x once; the batch does not matter for it."""
    return compiled(x) and (x.device.type != "cpu" or math.prod(x.shape[1:]) >= _SMALLEST)


def filters(x: Tensor, kernel: Tensor) -> bool:
    """Whether the kernels can run this FIR over x, and x is worth it."""
    return knows(kernel) and large(x)


def knows(kernel: Tensor) -> bool:
    """Whether the kernels have this FIR: square, of few taps, and not trained itself."""
    square = kernel.shape[0] == kernel.shape[1] <= MOST_TAPS
    return square and kernel.dtype == torch.float32 and not kernel.requires_grad


def whole_layer(x: Tensor, fir: Tensor | None, *others: Tensor | None) -> bool:
    """Whether the CPU's operators of whole layers (styled_conv, to_rgb) take these: all of one type, and a
    FIR that they know, if any."""
    same = all(other is None or other.dtype == x.dtype for other in others)
    return same and x.device.type == "cpu" and (fir is None or knows(fir)) and compiled(x)


def activation_layout(device: torch.device) -> torch.memory_format:
    """How convolutional networks keep their activations: the CPU's kernels know the contiguous layout,
    PyTorch's own convolutions are faster in the other."""
    ours = device.type == "cpu" and ready("cpu")
    return torch.contiguous_format if ours else torch.channels_last


def laid_out(x: Tensor) -> Tensor:
    """x in one of the two layouts that the kernels know: on the CPU contiguous, elsewhere either."""
    if x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
