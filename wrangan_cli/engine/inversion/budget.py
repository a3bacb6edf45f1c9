"""How many steps a time allows: `invert --seconds`.

A few steps are taken for their time and thrown away; the rest of the time then gives a number of steps, and
the inversion is the one that `--steps` of that number makes.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from wrangan_cli.engine.inversion.settings import InversionSettings

TRIAL = 4
"""Steps of each kind that are tried; the first ones are slower, and do not count."""
MOST_STEPS = 2000
"""More gain nothing."""


def shared_out(
    settings: InversionSettings, passed: list[float], spent: float, beside: float, count: int
) -> int:
    """Steps of the whole that fit into settings.seconds for each of `count` images.

    passed: seconds of one step, of the pivot's where there is one, and of the loop's. spent: what is gone.
    beside: what start and end take. At least one step each, MOST_STEPS at most.
    """
    assert settings.seconds is not None
    left = settings.seconds * count - spent - beside
    kinds = kinds_of_steps(settings)
    whole = sum(kinds)
    each = sum(share * second for share, second in zip(kinds, passed, strict=True)) / max(1, whole)
    return min(MOST_STEPS, max(len(kinds), math.floor(left / each))) if each > 0 else whole


def kinds_of_steps(settings: InversionSettings) -> list[int]:
    """Steps of the pivot, where there is one, and of the method's own loop."""
    own = [settings.loop_steps]
    return own if settings.pivot is None else [settings.total_steps - own[0], *own]


def with_steps(settings: InversionSettings, total: int) -> InversionSettings:
    """The same with `total` steps, in the proportions that there are."""
    kinds = kinds_of_steps(settings)
    if settings.method != "pti":
        return replace(settings, steps=total)
    own = max(1, round(total * kinds[-1] / max(1, sum(kinds))))
    return replace(settings, pti_steps=own, pti_pivot_steps=max(1, total - own))


def planned(
    settings: InversionSettings, invert: Callable[[InversionSettings, Callable[[int], None]], Any], count: int
) -> InversionSettings:
    """`settings` with the steps that its seconds allow for `count` images at a time.

    invert: makes codes by other settings, telling of each step.
    """
    if "seconds" not in settings.heeded or settings.seconds is None or settings.total_steps == 0:
        return settings
    kinds = kinds_of_steps(settings)
    trial = with_steps(replace(settings, stop_at=0.0, plateau=0.0), TRIAL * len(kinds))
    trial = replace(trial, pti_pivot_steps=TRIAL, pti_steps=TRIAL) if settings.method == "pti" else trial
    began = time.perf_counter()
    stamps: list[float] = []
    invert(trial, lambda _: stamps.append(time.perf_counter()))
    spent = time.perf_counter() - began
    passed = [b - a for a, b in itertools.pairwise(stamps)]
    each = [
        statistics.median(passed[kind * TRIAL + 1 : (kind + 1) * TRIAL - 1]) for kind in range(len(kinds))
    ]
    beside = max(0.0, spent - TRIAL * sum(each))
    return with_steps(settings, shared_out(settings, each, spent, beside, count))
