"""KID of the generator during training, and the best snapshot by KID."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import broadcast, is_main
from wrangan_cli.engine.base.tensorfile import write_torch
from wrangan_cli.engine.metrics.base import Estimate
from wrangan_cli.engine.models.folder import SAMPLE_SIDE, Model
from wrangan_cli.engine.models.generator import Generator

BEST_SNAPSHOT = "best.pt"
BEST_MODEL = "best-model"
BATCH = 16


class KidMonitor:
    """Measures KID every `every` images, on `samples` images of the averaged generator.

    Under torchrun each process generates a part. Random weights are sampled anew for each
    image, latents are the same at every measurement, and no random stream of the
    training is used. Protocol: metrics/kid.py.
    """

    def __init__(
        self,
        every: int,
        samples: int,
        inception: Callable[[Tensor], Tensor],
        reference: Tensor,
        seed: int = 0,
    ) -> None:
        self.every, self.samples, self.seed = every, samples, seed
        self.inception, self.reference = inception, reference

    def due(self, images: int, batch: int, last: int) -> bool:
        """Whether to measure after a step of `batch` images that reached `images` (of `last`)."""
        return images // self.every > (images - batch) // self.every or images >= last

    def measure(self, generator: Generator) -> Estimate:
        """KID of the generator; every process gets the same."""
        from wrangan_cli.engine.metrics.kid import kid
        from wrangan_cli.engine.metrics.samples import generated_features

        w_mean = torch.zeros(generator.config.style_dim, device=generator.device)
        model = Model("in training", Path(), "", generator, w_mean, 1.0, "")
        epsilon = 1.0 if generator.random_weights() else 0.0
        features = generated_features(model, self.inception, self.samples, self.seed, BATCH, epsilon)
        return broadcast(kid(features, self.reference) if is_main() else Estimate(0.0))


def kid_monitor(
    settings: Any, resolution: int, device: torch.device, progress: Callable[[int, int], None]
) -> KidMonitor | None:
    """The monitor that the settings request, or None; the reference's features are computed once and cached.

    Raises FileError or WranganError for a reference that cannot be used, or if the
    Inception network is missing.
    """
    if not settings.kid_images:
        return None
    from wrangan_cli.engine.data.image_sets import default_cache_dir, load_image_set
    from wrangan_cli.engine.metrics.inception import load_inception, require_package, require_samples
    from wrangan_cli.engine.metrics.samples import image_set_features, load_reference

    require_package("kid")
    resolution = min(resolution, SAMPLE_SIDE)
    inception = load_inception(device, wanted_by="kid")
    path = Path(settings.kid_reference)
    if path.suffix == ".safetensors":
        reference = load_reference(path, resolution).features
    else:
        images = load_image_set([path], resolution, default_cache_dir(), progress)
        total, cache = len(images), default_cache_dir()
        reference = image_set_features(
            images, inception, BATCH, cache, lambda done: progress(done, total), sharded=True
        )
    require_samples("kid", 4, reference, torch.empty(settings.kid_samples))
    return KidMonitor(settings.kid_images, settings.kid_samples, inception, reference, settings.seed)


def best_kid(run: Path) -> float:
    """KID of the best model that the run has kept; infinity if there is none."""
    try:
        return float(json.loads((run / BEST_MODEL / "config.json").read_text())["source"]["kid"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


def save_best(run: Path, state: dict[str, Any]) -> None:
    """Keep the snapshot beside the rotating ones."""
    write_torch(run / BEST_SNAPSHOT, state)
