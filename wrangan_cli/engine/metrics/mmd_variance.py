"""The variance of an unbiased squared maximum mean discrepancy.

The estimate of sets X (N) and Y (M) is U(X, X) + U(Y, Y) - 2 U(X, Y), each U a mean of the kernel over
pairs of different images. Its variance follows from the moments of the kernel (Hoeffding's decomposition,
first and second order, N and M unequal); each moment is estimated without bias by a mean over
different images (as Sutherland & Deka 2019 do for N = M).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
MOST = 2000
"""Maximum number of images per set from which the moments are estimated."""


@dataclass(frozen=True)
class _Within:
    """For k(x, x′) within one set: the variances of its mean over x′, and of k itself."""

    first: float
    second: float


def mmd_variance(first: Matrix, second: Matrix, kernel: Callable[[Matrix, Matrix], Matrix]) -> float:
    """Variance of the estimate from features (N, F) and (M, F), N, M ≥ 4.

    kernel: (n, F) and (m, F) → (n, m). The result is at least the variance for two sets of the same
    distribution, since the unbiased estimate alone can be negative there.
    """
    count, other = len(first), len(second)
    x, y = _some(first), _some(second)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    # Subtracting a constant only preserves precision.
    xx, yy, xy = (matrix - xy.mean() for matrix in (xx, yy, xy))
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    of_x, of_y = _within(xx), _within(yy)
    rows, columns, pairs = _across(xy)
    whole = (
        _of_one_set(of_x, count)
        + _of_one_set(of_y, other)
        + 4 * ((other - 1) * rows + (count - 1) * columns + pairs) / (count * other)
        - 8 * _covariance(xx, xy) / count
        - 8 * _covariance(yy, xy.T) / other
    )
    least = (
        2 * _interaction(xx, diagonal=False) / (count * (count - 1))
        + 2 * _interaction(yy, diagonal=False) / (other * (other - 1))
        + 4 * _interaction(xy, diagonal=True) / (count * other)
    )
    return max(whole, least)


def _some(features: Matrix) -> Matrix:
    """At most MOST rows, evenly spaced."""
    if len(features) <= MOST:
        return features
    return features[np.linspace(0, len(features) - 1, MOST).astype(int)]


def _of_one_set(moments: _Within, count: int) -> float:
    pairs = count * (count - 1)
    return (4 * (count - 2) * moments.first + 2 * moments.second) / pairs


def _within(matrix: Matrix) -> _Within:
    """matrix: (n, n), its diagonal 0."""
    n = len(matrix)
    sums = matrix.sum(axis=1)
    total, rows, squares = sums.sum(), sums @ sums, (matrix**2).sum()
    mean = (total**2 - 4 * rows + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
    return _Within((rows - squares) / (n * (n - 1) * (n - 2)) - mean, squares / (n * (n - 1)) - mean)


def _across(matrix: Matrix) -> tuple[float, float, float]:
    """For k(x, y): the variances of its mean over y, of its mean over x, and of k itself. matrix: (n, m)."""
    n, m = matrix.shape
    by_row, by_column = matrix.sum(axis=1), matrix.sum(axis=0)
    rows, columns, squares = by_row @ by_row, by_column @ by_column, (matrix**2).sum()
    mean = (by_row.sum() ** 2 - rows - columns + squares) / (n * (n - 1) * m * (m - 1))
    return (
        (rows - squares) / (n * m * (m - 1)) - mean,
        (columns - squares) / (m * n * (n - 1)) - mean,
        squares / (n * m) - mean,
    )


def _covariance(within: Matrix, across: Matrix) -> float:
    """Covariance of the means of k(x, x′) over x′ and of k(x, y) over y.

    within: (n, n), diagonal 0. across: (n, m).
    """
    n, m = across.shape
    inside, outside = within.sum(axis=1), across.sum(axis=1)
    together = inside @ outside
    apart = inside.sum() * outside.sum() - 2 * together
    return float(together / (n * (n - 1) * m) - apart / (n * (n - 1) * (n - 2) * m))


def _interaction(matrix: Matrix, diagonal: bool) -> float:
    """Mean square of the residuals after subtracting the means of rows and columns."""
    n, m = matrix.shape
    counted = n * m if diagonal else n * (n - 1)
    by_row, by_column = matrix.sum(axis=1) * n / counted, matrix.sum(axis=0) * m / counted
    centred = matrix - by_row[:, None] - by_column + matrix.sum() / counted
    if not diagonal:
        np.fill_diagonal(centred, 0)
    return float((centred**2).sum() / counted)
