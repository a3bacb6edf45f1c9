"""Learning rates over the steps, as factors of the full rate."""

import math

from wrangan_cli.engine.inversion.settings import PROJECTORS, TUNING, InversionSettings

RAMP_UP, RAMP_DOWN = 0.05, 0.25
QUIET = 0.75
"""Share of the projector's steps after which w has no noise."""


def constant(settings: InversionSettings, share: float) -> float:  # noqa: ARG001
    """1: Algorithm 1 of the paper, and PTI."""
    return 1.0


def warm_and_decay(settings: InversionSettings, share: float) -> float:
    """Linear rise over the first `warmup` of the steps, cosine fall to 0 over the last `decay`.

    share: of the steps done, 0…1. With both settings at 0 it is 1 throughout.
    """
    # One step ahead: a first step of rate 0 would be thrown away.
    risen = share + 1.0 / max(1, settings.value("steps"))
    rise = 1.0 if settings.warmup == 0 else min(1.0, risen / settings.warmup)
    return rise * _fall(share, settings.value("decay"))


def rise_of_offsets(settings: InversionSettings, share: float) -> float:
    """What ε's (or δ's) rate has beside that factor: it rises from 0 over the first `epsilon_warmup` of the
    steps, in which w goes most of its way. So ε holds what w cannot, and no more."""
    rise = settings.value("epsilon_warmup")
    return 1.0 if rise == 0 else min(1.0, (share + 1.0 / max(1, settings.value("steps"))) / rise)


def projector_ramp(settings: InversionSettings, share: float) -> float:  # noqa: ARG001
    """The schedule of StyleGAN2's projector (Karras et al. 2020, appendix D)."""
    return min(1.0, share / RAMP_UP) * _fall(share, RAMP_DOWN)


def settled_from(settings: InversionSettings) -> float:
    """Share of the steps from which on all move at full rate, and without noise: a plateau of the loss before
    it means nothing."""
    if settings.method in PROJECTORS:
        return QUIET
    if settings.method in TUNING:
        return max(settings.warmup, settings.value("epsilon_warmup"))
    return 0.0


def _fall(share: float, length: float) -> float:
    return 1.0 if length == 0 else 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1.0 - share) / length))
