"""The kinds of metrics: for pairs of images, for sets of images, for codes, for a model's layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from wrangan_cli.engine.models.folder import Model

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairMetric:
    """A number for each pair (image, reference)."""

    name: str
    higher_is_better: bool
    protocol: str
    """Ranges, sizes and constants, in one line."""
    load: Callable[[torch.device], Callable[[Tensor, Tensor], Tensor]]
    """device → a function of two batches (B, 3, H, W) in [-1, 1] giving (B,)."""
    title: str = ""
    """Heading of its column, which names the exact network; empty: the name."""

    @property
    def column(self) -> str:
        """Heading of its column."""
        return self.title or self.name


@dataclass(frozen=True)
class RecordMetric:
    """A number that inversion stored in the code's record."""

    name: str
    higher_is_better: bool
    protocol: str
    key: str
    """Key in the record; older codes lack it."""

    @property
    def column(self) -> str:
        """Heading of its column."""
        return self.name


@dataclass(frozen=True)
class Estimate:
    """A number for a set; standard_error is None if there is no reliable one."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class SampleMetric:
    """A number for two sets of images, from their features."""

    name: str
    higher_is_better: bool
    protocol: str
    compute: Callable[[Tensor, Tensor], Estimate]
    """Features of generated (N, F) and of reference images (M, F), float32 on the CPU."""
    title: str = ""
    """Heading of its column, which names the source of the features; empty: the name."""
    network: str = "inception"
    """The network of the features: `inception` or `vgg16`."""

    @property
    def column(self) -> str:
        """Heading of its column."""
        return self.title or self.name


@dataclass(frozen=True)
class CodeMetric:
    """A number for a set of codes, from the Inception features of images rendered with them."""

    name: str
    higher_is_better: bool
    protocol: str
    compute: Callable[[Tensor, Tensor, int], Estimate]
    """Features of generated (N, F) and of reference images (M, F), float32 on the CPU; the number of codes n:
    row i belongs to code i mod n."""


@dataclass(frozen=True)
class LayerMetric:
    """A number for each random layer (or attribute) of a model."""

    name: str
    protocol: str
    renders: bool
    """Whether images are rendered (so that `samples`, `seed` and `batch` matter)."""
    compute: Callable[["Model", int, int, int], dict[str, float]]
    """Model, samples, seed, batch → layer name → value."""
    of: str = "layer"
    """What each number belongs to."""


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean, and its 95 % interval by the percentile bootstrap (2000 resamples, fixed seed).

    The interval is None for a single value. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values to average")
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return float(array[0]), None
    draws = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(array[draws].mean(axis=1), (tail, 1 - tail))
    return float(array.mean()), (float(low), float(high))
