"""Short trainings that one process and two must do alike; `python -m tests.cases OUT`: in both of two."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import TINY, random_generator_network
from tests.fakes import fake_perceptual
from tests.forked import ranks
from wrangan_cli.engine.base import distributed
from wrangan_cli.engine.data.image_sets import ImageSet, batches
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.encoder import ImageTrainer
from wrangan_cli.engine.training.encoder_kinds import encoder_trainer
from wrangan_cli.engine.training.quality import KidMonitor
from wrangan_cli.engine.training.settings import (
    AdversarialSettings,
    EncoderSettings,
    GeneratorSettings,
    RandomizeSettings,
)

BRISK: dict[str, Any] = {"batch": 16, "r1_interval": 2, "path_length_interval": 2, "ema_images": 20}
CASES: dict[str, AdversarialSettings | EncoderSettings] = {
    "augmented": GeneratorSettings(augment="0.5", **BRISK),
    "ada": GeneratorSettings(augment="ada", augment_target=-0.9, **BRISK),
    "accumulated": GeneratorSettings(augment="0.5", accumulate=2, **BRISK),
    "epsilon-per-batch": RandomizeSettings(**BRISK),
    "epsilon-per-image": RandomizeSettings(epsilon_per="image", **BRISK),
    "encoder": EncoderSettings(batch=4, widths="8,8", blocks="1,1", input_side=16),
    "restyle": EncoderSettings(
        kind="restyle",
        batch=4,
        widths="8,8",
        blocks="1,1",
        input_side=16,
        passes=2,
        progressive_start=4,
        progressive_every=4,
        latent_lr=1e-2,
        latent_pool=6,
        latent_r1_interval=2,
        w_weight=0.5,
    ),
}
STEPS = 3
"""Those of the lazy regularisers are the first and the last."""


def data() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (27, 16, 16, 3), dtype=np.uint8)
    return ImageSet(pixels, [f"{i}.png" for i in range(27)], [])


def trainer_for(settings: AdversarialSettings | EncoderSettings) -> AdversarialTrainer | ImageTrainer[Any]:
    torch.manual_seed(3)
    if isinstance(settings, EncoderSettings):
        generator = random_generator_network().requires_grad_(False)
        w_mean = torch.zeros(TINY.style_dim)
        model = Model("tiny", Path("tiny"), "0", generator, w_mean, 2.0, "fake")
        return encoder_trainer(model, settings, fake_perceptual())
    random = isinstance(settings, RandomizeSettings)
    config = TINY if random else dataclasses.replace(TINY, randomized_layers=0)
    return AdversarialTrainer(StyleGAN2Generator(config), Discriminator(config), settings)


def run_case(name: str) -> dict[str, Any]:
    """Losses of each step; gradients that are left, and weights, after the last. In float64."""
    torch.set_default_dtype(torch.float64)
    try:
        settings = CASES[name]
        trainer = trainer_for(settings)
        adversarial = isinstance(trainer, AdversarialTrainer)
        rows = trainer.shards.rows.tolist() if isinstance(trainer, AdversarialTrainer) else trainer.rows
        stream = batches(data(), settings.batch, settings.seed, 0, settings.flip, rows)
        reports = [trainer.step(next(stream).double()) for _ in range(STEPS)]
        names = ["generator", "discriminator"] if adversarial else ["encoder"]
        trained = {
            f"{part}.{key}": parameter
            for part in names
            for key, parameter in getattr(trainer, part).named_parameters()
        }
        state = trainer.state()
        return {
            "reports": reports,
            "gradients": {k: p.grad for k, p in trained.items() if p.grad is not None},
            "weights": {k: p.detach() for k, p in trained.items()},
            "average": state["ema"],
            "streams": state["draws"] if adversarial else state["rng"],
        }
    finally:
        torch.set_default_dtype(torch.float32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collectives() -> dict[str, Any]:
    """What each function of engine/base/distributed.py gives in this process."""
    rank = distributed.rank()
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, 2.0, 3.0]) * (rank + 1)
    distributed.average_gradients([weight, torch.nn.Parameter(torch.zeros(2))])
    x = torch.tensor([float(rank + 1)], requires_grad=True)
    (distributed.differentiable_mean(x) * (rank + 1)).sum().backward()
    distributed.barrier()
    monitor = KidMonitor(8, 21, lambda images: images.flatten(1), torch.randn(30, 768, generator=seeded(5)))
    return {
        "kid": monitor.measure(random_generator_network()).value,
        "rank": rank,
        "world": distributed.world_size(),
        "main": distributed.is_main(),
        "mean": distributed.mean_over_ranks(torch.tensor([rank, 10.0])).tolist(),
        "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
        "gathered": distributed.gather_objects({"rank": rank}),
        "broadcast": distributed.broadcast(f"of {rank}"),
        "share": list(distributed.local_shard(range(5))),
        "gradient": weight.grad.tolist(),
        "through": x.grad.tolist() if x.grad is not None else None,
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with distributed.process_group():
        results: dict[str, Any] = {name: run_case(name) for name in CASES}
        results["collectives"] = collectives()
        torch.save(results, out / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    ranks(2, lambda _: main(Path(sys.argv[1])))
