"""The tensors that an optimizer moves, their base learning rates, and the schedules of these rates.

progress: the fraction of the steps done, 0…1, before the current step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wrangan_cli.engine.inversion.method_settings import ProjectorSettings
from wrangan_cli.engine.inversion.settings import InversionSettings, TuningSettings

Groups = list[dict[str, Any]]
"""Adam's parameter groups: `params`, tensors with a leading batch axis, `lr`, and more."""
RAMP_UP, RAMP_DOWN = 0.05, 0.25
W_NOISE_END = 0.75
"""Progress of the projector from which w has no noise."""


@dataclass(frozen=True)
class LearningRates:
    """The tensors to optimise, their base learning rates, and the schedule."""

    groups: Groups
    factors: Callable[[float], tuple[float, float]]
    """Progress → the factor of the first group's rate, and that of all other groups' rates."""

    @property
    def free(self) -> list[Tensor]:
        """All tensors that are optimised."""
        return [tensor for group in self.groups for tensor in group["params"]]


def rates_of_w_and_offsets(
    w: Tensor, offsets: Mapping[str, Tensor] | Sequence[Tensor], settings: TuningSettings
) -> LearningRates:
    """w in the first group, ε or δ in the second (paper: both at 0.001), following `warmup`, `decay` and
    `epsilon_warmup` of the settings."""
    betas = (0.9, settings.beta2)
    lr = settings.value("lr")
    epsilon_lr = lr if settings.epsilon_lr is None else settings.epsilon_lr
    tensors = list(offsets.values() if isinstance(offsets, Mapping) else offsets)
    groups: Groups = [{"params": [w], "lr": lr, "betas": betas}]
    if tensors:
        groups.append({"params": tensors, "lr": epsilon_lr, "betas": betas})

    def factors(progress: float) -> tuple[float, float]:
        factor = warm_and_decay(settings, progress)
        return factor, factor * rise_of_offsets(settings, progress)

    return LearningRates(groups, factors)


def one_rate(
    tensors: Sequence[Tensor], lr: float, factor: Callable[[float], float] = lambda _: 1.0
) -> LearningRates:
    """The same rate for all tensors, constant or multiplied by `factor` of the progress."""
    return LearningRates([{"params": list(tensors), "lr": lr}], lambda progress: (factor(progress),) * 2)


def warm_and_decay(settings: TuningSettings, progress: float) -> float:
    """The factor of a linear warm-up over the first `warmup` of the steps and a cosine decay to 0 over the
    last `decay`. With both settings at 0 it is 1 throughout, as in Algorithm 1 of the paper.
    """
    # One step ahead: a first step at rate 0 would be wasted.
    risen = progress + 1.0 / max(1, settings.value("steps"))
    rise = 1.0 if settings.warmup == 0 else min(1.0, risen / settings.warmup)
    return rise * _fall(progress, settings.value("decay"))


def rise_of_offsets(settings: TuningSettings, progress: float) -> float:
    """A further factor of the rate of ε (or δ), which rises from 0 over the first `epsilon_warmup` of the
    steps, while w moves most of its way. ε then represents only what w cannot."""
    rise = settings.value("epsilon_warmup")
    return 1.0 if rise == 0 else min(1.0, (progress + 1.0 / max(1, settings.value("steps"))) / rise)


def projector_ramp(progress: float) -> float:
    """The schedule of StyleGAN2's projector (Karras et al. 2020, appendix D), as a factor."""
    return min(1.0, progress / RAMP_UP) * _fall(progress, RAMP_DOWN)


def settled_from(settings: InversionSettings) -> float:
    """Progress from which all rates have their full values and w has no noise; a plateau of the loss before
    that means nothing."""
    if isinstance(settings, ProjectorSettings):
        return W_NOISE_END
    if isinstance(settings, TuningSettings):
        return max(settings.warmup, settings.value("epsilon_warmup"))
    return 0.0


def _fall(progress: float, length: float) -> float:
    return 1.0 if length == 0 else 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - progress) / length))
