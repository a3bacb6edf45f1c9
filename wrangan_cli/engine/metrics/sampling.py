"""Metrics of sets of images, end to end: features of generated and of real images by one network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.weights import INCEPTION, TORCHVISION_VGG
from wrangan_cli.engine.data.image_sets import ImageSet
from wrangan_cli.engine.metrics import inception, vgg16
from wrangan_cli.engine.metrics.base import CodeMetric, Estimate, SampleMetric
from wrangan_cli.engine.metrics.corruption import moved_features
from wrangan_cli.engine.metrics.registry import SAMPLE_METRICS
from wrangan_cli.engine.metrics.samples import Reference, generated_features, image_set_features
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model

Network = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) in [-1, 1] → features (B, F)."""
WEIGHTS = {"inception": INCEPTION, "vgg16": TORCHVISION_VGG}
"""Weight files by the names of `SampleMetric.network`."""


@dataclass(frozen=True)
class Samples:
    """Which images to generate."""

    count: int
    """Number of images; with codes, over all codes together."""
    seed: int = 0
    batch: int = 16
    """Images per batch; does not change the results."""
    epsilon: float = 0.0
    """Scale of ε ~ N(0, 1), sampled for each image of random z; 0: the mean weights."""
    codes: Sequence[Code] | None = None
    """Render at moved w with the weights of these codes (corruption.py); None: images of random z."""

    def features(
        self, model: Model, network: Network, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Features (count, F) in order, in every process; all processes must call this."""
        if self.codes is not None:
            return moved_features(model, network, self.codes, self.count, self.seed, self.batch, progress)
        return generated_features(model, network, self.count, self.seed, self.batch, self.epsilon, progress)


def load_network(name: str, device: torch.device, wanted_by: str) -> Network:
    """`inception` or `vgg16`; a WranganError that names `wanted_by`, what needs it, if its package
    or file is missing."""
    if name == "vgg16":
        return vgg16.load_vgg16(device, wanted_by)
    return inception.load_inception(device, wanted_by)


def by_network(names: Sequence[str]) -> dict[str, list[str]]:
    """Metrics by the network whose features they use; those without a network are listed with `inception`."""
    found: dict[str, list[str]] = {name: [] for name in WEIGHTS}
    for name in names:
        found[SAMPLE_METRICS[name].network if name in SAMPLE_METRICS else "inception"].append(name)
    return found


def reference_features(
    images: ImageSet,
    source: Path,
    network: Network,
    name: str = "inception",
    batch: int = 16,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
    sharded: bool = False,
) -> Reference:
    """The reference features of real images by the network called `name`; cached in `cache_dir`.

    source: where the images come from. sharded: each process does a shard, and all must call this.
    """
    features = image_set_features(
        images, network, batch, cache_dir, progress, sharded=sharded, network=WEIGHTS[name]
    )
    return Reference(features, source.name, images.pixels.shape[1])


def estimates(
    metrics: Sequence[SampleMetric | CodeMetric], generated: Tensor, real: Reference, codes: int = 0
) -> Iterator[tuple[SampleMetric | CodeMetric, Estimate | WranganError]]:
    """Each metric with its estimate, or the error. generated: features (N, F); for metrics of codes row i
    belongs to code i mod `codes`."""
    for metric in metrics:
        try:
            if isinstance(metric, CodeMetric):
                yield metric, metric.compute(generated, real.features, codes)
            else:
                yield metric, metric.compute(generated, real.features)
        except WranganError as error:
            yield metric, error
