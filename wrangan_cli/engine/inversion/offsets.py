"""Offsets to the weights for each image, ε or δ: initial values, norm, and the part that is visible in a
photograph."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion.settings import TuningSettings
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Offsets, StyledWeight


def random_weights(model: Model) -> dict[str, StyledWeight]:
    """The weights that have a σ, by name. UsageError if the model has none."""
    weights = model.generator.random_weights()
    if not weights:
        raise UsageError(
            f"model {model.name} has no random layers, which the method wrangan needs: "
            "make some with `wrangan train randomize`, or use weight-tuning"
        )
    return weights


def small_offsets(
    weights: Mapping[str, StyledWeight], w: Tensor, settings: TuningSettings
) -> dict[str, Tensor]:
    """Samples of N(0, epsilon_init²) from the settings' seed, the same for each image of w (B, …), so that no
    image depends on its batch: (B, O, I, k, k) by the weight's name."""
    rng = random_generator(settings.seed)
    offsets = {}
    for name, weight in weights.items():
        sample = torch.randn(weight.shape, generator=rng) * settings.epsilon_init
        offsets[name] = sample.to(w)[None].repeat(len(w), 1, 1, 1, 1)
    return offsets


def squared_norm(offsets: Offsets, reduction: str) -> Tensor:
    """‖ε‖² (or ‖δ‖²) per image of offsets (B, O, I, k, k), over all weights: (B,); `sum`, or `mean` over the
    weights."""
    total = _SquareSum.apply(*offsets.values())
    if reduction == "mean":
        total = total / sum(offset[0].numel() for offset in offsets.values())
    return total


class _SquareSum(torch.autograd.Function):
    """Σ x² per image over all tensors, (B, …) → (B,), in one pass each forward and back
    (`square().sum()` takes five)."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        norms = [torch.linalg.vector_norm(x.flatten(1), dim=1) for x in tensors]
        return torch.stack(norms).square().sum(dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        twice = (2 * grad)[:, None, None, None, None]
        return tuple(x * twice for x in ctx.saved_tensors)


def visible_offsets(offsets: Offsets, weights: Mapping[str, StyledWeight], side: int) -> dict[str, Tensor]:
    """`offsets` (B, O, I, k, k), with 0 for the output channels that are not visible at `side` px."""
    return {name: _first(value, weights[name].visible_outputs(side)) for name, value in offsets.items()}


def _first(offsets: Tensor, outputs: int) -> Tensor:
    """offsets (B, O, I, k, k) of the first `outputs` channels, with 0 for the others."""
    if outputs == offsets.shape[1]:
        return offsets
    rest = offsets.new_zeros((len(offsets), offsets.shape[1] - outputs, *offsets.shape[2:]))
    return torch.cat([offsets[:, :outputs], rest], dim=1)
