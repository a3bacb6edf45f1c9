"""How many steps fit into a given time: `invert --seconds`.

A few steps are timed and discarded. The remaining time determines the number of steps, and the result is the
same as with that number given as `--steps`.
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
"""Number of steps of each kind that are timed; the first ones are slower and are ignored."""
MOST_STEPS = 2000
"""Upper limit: more steps gain nothing."""


def allocate_steps(
    settings: OptimisingSettings, step_seconds: Sequence[float], spent: float, overhead: float, count: int
) -> list[int]:
    """The number of steps of each kind that fit into settings.seconds for each of `count` images, in the
    configured proportions: at least one of each kind, at most MOST_STEPS in all.

    step_seconds: of one step of each kind. spent: seconds already used. overhead: seconds needed before and
    after the steps.
    """
    assert settings.seconds is not None
    kinds = kinds_of_steps(settings)
    whole = sum(steps * seconds for steps, seconds in zip(kinds.values(), step_seconds, strict=True))
    left = max(0.0, settings.seconds * count - spent - overhead)
    most = MOST_STEPS / sum(kinds.values())
    return [max(1, math.floor(min(steps * left / whole, steps * most))) for steps in kinds.values()]


def kinds_of_steps(settings: OptimisingSettings) -> dict[str, int]:
    """Number of steps by the setting's name: those of the pivot, if any, and of the method's loop."""
    if not isinstance(settings, PtiSettings):
        return {"steps": settings.loop_steps}
    pivot = {} if settings.pivot is None else {"pti_pivot_steps": settings.pti_pivot_steps}
    return {**pivot, "pti_steps": settings.pti_steps}


def with_steps_for_time(
    settings: OptimisingSettings,
    invert: Callable[[OptimisingSettings, Callable[[int], None]], Any],
    count: int,
) -> OptimisingSettings:
    """`settings` with as many steps as its `seconds` allow for `count` images at a time.

    invert: inverts with the given settings, and calls its second argument after each step.
    """
    if settings.seconds is None or settings.total_steps == 0:
        return settings
    kinds = kinds_of_steps(settings)
    trial: dict[str, Any] = dict.fromkeys(kinds, TRIAL)
    stamps: list[float] = []
    began = time.perf_counter()
    invert(replace(settings, stop_at=0.0, plateau=0.0, **trial), lambda _: stamps.append(time.perf_counter()))
    spent = time.perf_counter() - began
    times = [b - a for a, b in itertools.pairwise(stamps)]
    each = [statistics.median(times[k * TRIAL + 1 : (k + 1) * TRIAL - 1]) for k in range(len(kinds))]
    overhead = max(0.0, spent - TRIAL * sum(each))
    counts = allocate_steps(settings, each, spent, overhead, count)
    steps: dict[str, Any] = dict(zip(kinds, counts, strict=True))
    return replace(settings, **steps)
