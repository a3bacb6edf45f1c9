"""What each method may move: the free variables of a batch, the penalty, the schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.randomized import randomized_layers, tunable_layers
from wrangan_cli.engine.runtime import random_generator


@dataclass
class Variables:
    """The unknowns of a batch of B images, each with a leading batch axis.

    w: (B, style_dim). epsilon, delta: by layer name, (B, O, I, 3, 3). Those in `free`
    are optimised.
    """

    w: Tensor
    epsilon: dict[str, Tensor] = field(default_factory=dict)
    delta: dict[str, Tensor] = field(default_factory=dict)
    free: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """One way of inverting, as the shared loop needs it."""

    start: Callable[[Model, Tensor, InversionSettings], Variables]
    """(model, w (B, style_dim), settings) → variables."""
    learning_rate: Callable[[InversionSettings, float], float]
    """(settings, share of the steps done, 0…1) → Adam's learning rate."""


def _wrangan(model: Model, w: Tensor, settings: InversionSettings) -> Variables:
    layers = randomized_layers(model.generator)
    if not layers:
        raise UsageError(
            f"model {model.name} has no random layers, which method wrangan needs: "
            "make some with `wrangan train randomize`, or use weight-tuning"
        )
    variables = Variables(w=w.clone())
    variables.epsilon = _small_offsets(list(layers), model, w.shape[0], settings)
    variables.free = [variables.w, *variables.epsilon.values()]
    return variables


def _weight_tuning(model: Model, w: Tensor, settings: InversionSettings) -> Variables:
    variables = Variables(w=w.clone())
    names = list(tunable_layers(model.generator))
    variables.delta = _small_offsets(names, model, w.shape[0], settings)
    variables.free = [variables.w, *variables.delta.values()]
    return variables


def _sg2_w(model: Model, w: Tensor, settings: InversionSettings) -> Variables:  # noqa: ARG001
    variables = Variables(w=w.clone())
    variables.free = [variables.w]
    return variables


def _encoder(model: Model, w: Tensor, settings: InversionSettings) -> Variables:  # noqa: ARG001
    return Variables(w=w.clone())


def _small_offsets(
    names: list[str], model: Model, batch: int, settings: InversionSettings
) -> dict[str, Tensor]:
    """N(0, epsilon_init²) of one seed, the same for every image: no image depends on its batch."""
    rng = random_generator(settings.seed)
    offsets = {}
    for name in names:
        shape = model.generator.styled_convs()[name].conv.weight.shape[1:]
        draw = torch.randn(shape, generator=rng) * settings.epsilon_init
        offsets[name] = draw.to(model.device)[None].repeat(batch, 1, 1, 1, 1)
    return offsets


def _constant(settings: InversionSettings, share: float) -> float:  # noqa: ARG001
    return settings.lr


def _ramped(settings: InversionSettings, share: float) -> float:
    """The schedule of StyleGAN2's projector (Karras et al. 2020, appendix D)."""
    ramp = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - share) / 0.25))
    return settings.projection_lr * ramp * min(1.0, share / 0.05)


METHOD_TABLE: dict[str, Method] = {
    "wrangan": Method(_wrangan, _constant),
    "weight-tuning": Method(_weight_tuning, _constant),
    "sg2-w": Method(_sg2_w, _ramped),
    "encoder": Method(_encoder, _constant),
}
