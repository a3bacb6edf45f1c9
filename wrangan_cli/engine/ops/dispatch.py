"""The one place that uses compiled kernels (package `wrangan_kernels`); without them every
operation here consists of PyTorch operations."""

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
"""Elements per image above which the CPU kernels for filters and activations pay off (docs/kernels.md)."""


def kernels() -> Any:
    """The operators (kernels/wrangan_kernels/operators.py); use them only if `compiled` allows it."""
    return torch.ops.wrangan


def compiled(x: Tensor) -> bool:
    """Whether the kernels support tensors like x; the first call on a device loads or builds them.

    Raises WranganError if WRANGAN_KERNELS=require and they are not available.
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
    """`compiled`, and x is large enough for a kernel that passes over it once, regardless of the batch."""
    return compiled(x) and (x.device.type != "cpu" or math.prod(x.shape[1:]) >= _SMALLEST)


def filters(x: Tensor, kernel: Tensor) -> bool:
    """Whether the kernels can apply this FIR filter to x, and x is large enough."""
    return knows(kernel) and large(x)


def knows(kernel: Tensor) -> bool:
    """Whether the kernels support this FIR filter: square, with few taps, and not trained."""
    square = kernel.shape[0] == kernel.shape[1] <= MOST_TAPS
    return square and kernel.dtype == torch.float32 and not kernel.requires_grad


def whole_layer(x: Tensor, fir: Tensor | None, *others: Tensor | None) -> bool:
    """Whether the CPU operators of whole layers (styled_conv, to_rgb) support these tensors: all of one
    dtype, and a supported FIR filter, if any."""
    same = all(other is None or other.dtype == x.dtype for other in others)
    return same and x.device.type == "cpu" and (fir is None or knows(fir)) and compiled(x)


def activation_layout(device: torch.device) -> torch.memory_format:
    """The memory layout for convolutional networks: the CPU kernels need the contiguous one, while
    PyTorch's convolutions are faster in channels_last."""
    ours = device.type == "cpu" and ready("cpu")
    return torch.contiguous_format if ours else torch.channels_last


def laid_out(x: Tensor) -> Tensor:
    """x in a layout that the kernels support: contiguous on the CPU, either layout elsewhere."""
    if x.device.type != "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()
