"""σ raised to a power during inversion, which makes the movement of the weights more or less uneven.

Adam moves ε by its learning rate whatever σ is, so θ moves by that times σ: only σ determines how the
movement is distributed over the weights. σ is replaced by its p-th power, scaled to the same root mean square
over all random weights: p = 0 moves all weights equally (plain tuning), and p = 2 confines the movement to
those that hardly change other images. The code stores ε in units of the original σ, so it renders like any
other.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Offsets


@dataclass(frozen=True)
class PoweredModel:
    """A model with σ raised to a power."""

    model: Model
    ratio: dict[str, Tensor]
    """Its σ divided by that of the original model, by the weight's name: (O, I, k, k)."""

    def to_original(self, epsilon: Offsets) -> dict[str, Tensor]:
        """ε (…, O, I, k, k) of this model → ε of the original model for the same θ."""
        return {name: value * self.ratio[name] for name, value in epsilon.items()}


@torch.no_grad()
def with_std_power(model: Model, power: float) -> PoweredModel:
    """A copy of `model` with σ replaced by |σ|^power · sign σ, at the same root mean square over all
    weights."""
    generator = copy.deepcopy(model.generator)
    stds: dict[str, Tensor] = {}
    for name, weight in model.generator.random_weights().items():
        assert weight.std is not None
        stds[name] = weight.std.detach()
    raised = {name: std.sign() * std.abs().pow(power) for name, std in stds.items()}
    scale = _root_mean_square(stds) / _root_mean_square(raised)
    ratio = {}
    for name, weight in generator.random_weights().items():
        assert weight.std is not None
        weight.std.copy_(raised[name] * scale)
        ratio[name] = torch.where(stds[name] == 0, 0.0, weight.std / stds[name])
    return PoweredModel(replace(model, generator=generator), ratio)


def _root_mean_square(tensors: dict[str, Tensor]) -> Tensor:
    # float64: powers of small numbers are smaller still.
    return torch.cat([value.flatten().double() for value in tensors.values()]).square().mean().sqrt()
