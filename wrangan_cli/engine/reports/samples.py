"""Inception features of a report's samples, and their metrics against the reference."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.metrics.base import SampleMetric
from wrangan_cli.engine.metrics.inception import extract_features
from wrangan_cli.engine.metrics.samples import Reference
from wrangan_cli.engine.reports.subject import Subject
from wrangan_cli.engine.reports.tables import Value

PART = 250
"""Number of images per file of cached features: about a minute on one CPU core."""


class Samples:
    """Inception features of a report's samples; the network and the reference are loaded when needed."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.inception = cache(subject.inception)
        self.reference: Callable[[], Reference] = cache(subject.reference)
        self.reference_key = cache(lambda: digest_of(self.reference().features))

    def features(
        self, kind: str, key: dict[str, Any], images: Callable[[Sequence[int]], Iterator[Tensor]]
    ) -> Tensor:
        """Features of `settings.samples` images; images(numbers) renders those with these numbers.

        They are cached in parts, so that an interrupted run continues where it stopped.
        """
        count = self.subject.settings.samples
        key = {"model": self.subject.model.sha256, "samples": count, **key}
        parts = []
        with self.subject.track(f"sampling: {kind}", count) as advance:
            for start in range(0, count, PART):
                numbers = range(start, min(start + PART, count))

                def make(numbers: range = numbers) -> Tensor:
                    def on_images(done: int) -> None:
                        advance(numbers.start + done)

                    return extract_features(self.inception(), images(numbers), on_images)

                parts.append(
                    self.subject.cache.features(kind, {**key, "from": start, "to": numbers.stop}, make)
                )
        return torch.cat(parts)

    def estimates(self, kind: str, features: Tensor, metrics: tuple[SampleMetric, ...]) -> dict[str, Value]:
        """Each metric of the features against the reference."""
        cells: dict[str, Value] = {}
        for metric in metrics:
            key = {
                "features": digest_of(features),
                "reference": self.reference_key(),
                "metric": metric.name,
                "protocol": metric.protocol,
                # Earlier versions computed a different standard error.
                "error": "of the estimate",
            }

            def make(metric: SampleMetric = metric) -> dict[str, Any]:
                return asdict(metric.compute(features, self.reference().features))

            found = self.subject.cache.get_or_make(kind, key, make)
            cells[metric.name] = Value(found["value"], standard_error=found["standard_error"])
        return cells


def digest_of(features: Tensor) -> str:
    """Digest of the values in float16, in which features are cached."""
    return hashlib.sha256(features.half().numpy().tobytes()).hexdigest()[:20]
