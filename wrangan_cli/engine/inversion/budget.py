"""How many steps fit into a given time: `invert --seconds`.

A few steps are timed and thrown away. The remaining time determines the number of steps, and the inversion
is then the same as with that number given as `--steps`.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from wrangan_cli.engine.inversion.method_settings import PtiSettings
from wrangan_cli.engine.inversion.settings import OptimisingSettings

TRIAL = 4
"""Steps of each kind that are timed; the first ones are slower, and do not count."""
MOST_STEPS = 2000
"""Upper limit: more steps gain nothing."""


def shared_out(
    settings: OptimisingSettings, passed: Sequence[float], spent: float, beside: float, count: int
) -> list[int]:
    """Steps of each kind that fit into settings.seconds for each of `count` images, in the configured
    proportions: at least one of each kind, at most MOST_STEPS in all.

    passed: seconds per step of each kind. spent: seconds already used. beside: seconds that start and end
    take.
    """
    assert settings.seconds is not None
    kinds = kinds_of_steps(settings)
    whole = sum(steps * seconds for steps, seconds in zip(kinds.values(), passed, strict=True))
    left = max(0.0, settings.seconds * count - spent - beside)
    most = MOST_STEPS / sum(kinds.values())
    return [max(1, math.floor(min(steps * left / whole, steps * most))) for steps in kinds.values()]


def kinds_of_steps(settings: OptimisingSettings) -> dict[str, int]:
    """Steps of the pivot, where there is one, and of the method's own loop, by the setting's name."""
    if not isinstance(settings, PtiSettings):
        return {"steps": settings.loop_steps}
    pivot = {} if settings.pivot is None else {"pti_pivot_steps": settings.pti_pivot_steps}
    return {**pivot, "pti_steps": settings.pti_steps}


def planned(
    settings: OptimisingSettings,
    invert: Callable[[OptimisingSettings, Callable[[int], None]], Any],
    count: int,
) -> OptimisingSettings:
    """`settings` with the steps that its seconds allow for `count` images at a time.

    invert: makes codes with other settings and calls back after each step.
    """
    if settings.seconds is None or settings.total_steps == 0:
        return settings
    kinds = kinds_of_steps(settings)
    trial: dict[str, Any] = dict.fromkeys(kinds, TRIAL)
    stamps: list[float] = []
    began = time.perf_counter()
    invert(replace(settings, stop_at=0.0, plateau=0.0, **trial), lambda _: stamps.append(time.perf_counter()))
    spent = time.perf_counter() - began
    passed = [b - a for a, b in itertools.pairwise(stamps)]
    each = [statistics.median(passed[k * TRIAL + 1 : (k + 1) * TRIAL - 1]) for k in range(len(kinds))]
    beside = max(0.0, spent - TRIAL * sum(each))
    steps: dict[str, Any] = dict(zip(kinds, shared_out(settings, each, spent, beside, count), strict=True))
    return replace(settings, **steps)
