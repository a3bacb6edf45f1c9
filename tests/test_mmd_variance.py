"""The standard error of KID: against sums over different images, and against the spread of many estimates."""

from itertools import permutations

import numpy as np
import pytest
import torch

from tests.test_metrics import needs_fidelity
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.metrics.mmd_variance import Matrix, mmd_variance


def cubic(first: Matrix, second: Matrix) -> Matrix:
    made: Matrix = (first @ second.T / first.shape[1] + 1) ** 3
    return made


def drawn(rng: np.random.Generator, count: int, shift: float = 0.0) -> Matrix:
    return rng.gamma(2.0, 0.3, size=(count, 8)) + shift


def variance_by_enumeration(first: Matrix, second: Matrix) -> float:
    """The same variance from h(x, x′; y, y′) = k(x, x′) + k(y, y′) - ½ Σ k(x or x′, y or y′).

    The estimate is the mean of h over pairs, so that its variance is a sum of covariances of h with i
    common x and j common y, each a mean over tuples of different images.
    """
    xx, yy, xy = cubic(first, first), cubic(second, second), cubic(first, second)
    n, m = len(first), len(second)

    def h(a: int, b: int, c: int, d: int) -> float:
        across = xy[a, c] + xy[a, d] + xy[b, c] + xy[b, d]
        return float(xx[a, b] + yy[c, d] - across / 2)

    def mean_product(common_x: int, common_y: int) -> float:
        total, count = 0.0, 0
        for xs in permutations(range(n), 4 - common_x):
            for ys in permutations(range(m), 4 - common_y):
                other_x, other_y = xs[2 - common_x :][:2], ys[2 - common_y :][:2]
                total += h(*xs[:2], *ys[:2]) * h(*other_x, *other_y)
                count += 1
        return total / count

    def share(size: int, common: int) -> float:
        """Of all pairs of pairs of `size` images, those with so many in common."""
        pairs = size * (size - 1) / 2
        return [(size - 2) * (size - 3) / 2, 2 * (size - 2), 1.0][common] / pairs

    apart = mean_product(0, 0)
    return sum(
        share(n, i) * share(m, j) * (mean_product(i, j) - apart) for i in range(3) for j in range(3) if i + j
    )


def test_the_variance_by_enumeration() -> None:
    rng = np.random.default_rng(3)
    first, second = drawn(rng, 5, 0.8), drawn(rng, 6)
    expected = variance_by_enumeration(first, second)
    assert expected > 0
    assert mmd_variance(first, second, cubic) == pytest.approx(expected, rel=1e-6)


@needs_fidelity
@pytest.mark.parametrize(
    ("count", "other", "shift", "most"), [(40, 400, 0.15, 1.2), (200, 50, 0.15, 1.2), (40, 400, 0.0, 1.5)]
)
def test_calibration(count: int, other: int, shift: float, most: float) -> None:
    """Stated against true, over replicates; somewhat conservative only where both sets are of one kind."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(120):
        sets = (torch.from_numpy(drawn(rng, count, shift)), torch.from_numpy(drawn(rng, other)))
        found.append(kid(*sets))
    true = np.std([estimate.value for estimate in found])
    stated = np.sqrt(np.mean([(estimate.standard_error or 0.0) ** 2 for estimate in found]))
    assert 0.85 < stated / true < most
    assert kid(*sets, with_error=False).standard_error is None


def test_few_of_many_images_tell_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second = drawn(rng, 900, 0.2), drawn(rng, 700)
    whole = mmd_variance(first, second, cubic)
    monkeypatch.setattr("wrangan_cli.engine.metrics.mmd_variance.MOST", 500)
    assert mmd_variance(first, second, cubic) == pytest.approx(whole, rel=0.2)
