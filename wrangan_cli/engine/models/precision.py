"""Half precision for the top resolutions of a network; its weights stay float32."""

from dataclasses import dataclass

import torch

from wrangan_cli.engine.base.choices import Precision
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.config import StyleGAN2Config

DTYPES: dict[Precision, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_CLAMP = 256.0
"""Clamp of every layer's output that keeps fp16 from overflowing (NVIDIA's `conv_clamp`)."""


@dataclass(frozen=True)
class LowPrecision:
    """Activations of `dtype` wherever the feature maps have a side of `smallest` px or more."""

    dtype: torch.dtype
    smallest: int

    def at(self, side: int, otherwise: torch.dtype) -> torch.dtype:
        """Dtype of activations of `side` px."""
        return self.dtype if side >= self.smallest else otherwise


def low_precision(name: Precision, top: int, config: StyleGAN2Config) -> LowPrecision | None:
    """The `top` largest resolutions in the precision `name`; None for float32.

    Raises UsageError for fp16 and a network without a clamp: its activations may overflow.
    """
    dtype = DTYPES[name]
    if dtype is None or top == 0:
        return None
    if dtype is torch.float16 and config.conv_clamp is None:
        raise UsageError("precision fp16: the model has no clamp (conv_clamp): use bf16")
    return LowPrecision(dtype, config.resolutions[max(0, len(config.resolutions) - top)])
