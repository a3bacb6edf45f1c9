"""Compare two methods on the same photographs: how often one is better, and by how much.

Protocol: photographs for which both have a value are compared one by one. `fraction_won` is the fraction
won by the first method, where ties count half, with the 95 % Wilson score interval of a
binomial proportion. `difference` is the mean of first minus second, with its paired 95 %
percentile bootstrap interval (as in metrics/base.py). The comparison is undecided if the interval of the
fraction contains 0.5, or that of the difference 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.metrics.base import mean_interval

_Z = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_paired`."""

    count: int
    wins: int
    ties: int
    fraction_won: float
    """(wins + ties / 2) / count."""
    interval: tuple[float, float]
    """Wilson, 95 %."""
    difference: float
    """Mean of first minus second."""
    difference_interval: tuple[float, float] | None
    """Bootstrap, 95 %; None for a single photograph."""


def compare_paired(
    first: Mapping[str, float], second: Mapping[str, float], higher_is_better: bool
) -> Comparison:
    """Compare the values of two methods, by photograph; WranganError if they share no photograph."""
    names = [name for name in first if name in second]
    if not names:
        raise WranganError("the two methods have no photograph in common")
    differences = [first[name] - second[name] for name in names]
    sign = 1 if higher_is_better else -1
    wins = sum(sign * value > 0 for value in differences)
    ties = sum(value == 0 for value in differences)
    fraction = (wins + ties / 2) / len(names)
    mean, interval = mean_interval(differences)
    return Comparison(len(names), wins, ties, fraction, wilson(fraction, len(names)), mean, interval)


def wilson(fraction: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a fraction of `count` trials."""
    middle = (fraction + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(fraction * (1 - fraction) / count + _Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)
