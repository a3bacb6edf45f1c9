"""The unknowns of a batch, and the selection of images from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.models.codes import PREFIXES

GROUPS = tuple(PREFIXES.values())
"""Fields that variables and codes have in common: what a code stores besides w."""


@dataclass
class Variables:
    """The unknowns of a batch of B images, each with a leading batch axis. All except w are offsets to the
    model. Those in `free` are optimised.

    w: (B, style_dim) or (B, num_latents, style_dim). epsilon, delta: by the weight's name,
    (B, O, I, k, k). noise: by number of the noise input, (B, side, side). parameters: by
    name in the state dict, (B, *shape).
    """

    w: Tensor
    epsilon: dict[str, Tensor] = field(default_factory=dict)
    delta: dict[str, Tensor] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    free: list[Tensor] = field(default_factory=list)

    def select(self, rows: Tensor | slice) -> "Variables":
        """Only these images, as new tensors without autograd history (for a slice: views); `free` refers to
        the same unknowns."""
        made: dict[int, Tensor] = {}

        def chosen(tensor: Tensor) -> Tensor:
            made[id(tensor)] = tensor.detach()[rows]
            return made[id(tensor)]

        groups: dict[str, Any] = {g: {k: chosen(v) for k, v in getattr(self, g).items()} for g in GROUPS}
        picked = Variables(chosen(self.w), **groups)
        picked.free = [made[id(tensor)] for tensor in self.free]
        return picked


def joined(parts: Sequence[Variables], order: Tensor) -> Variables:
    """The images of all parts as one batch, whose image i is image `order[i]` of the concatenated parts."""
    first = parts[0]
    groups: dict[str, Any] = {
        g: {
            name: torch.cat([getattr(part, g)[name].detach() for part in parts])[order]
            for name in getattr(first, g)
        }
        for g in GROUPS
    }
    return Variables(torch.cat([part.w.detach() for part in parts])[order], **groups)
