"""The model folders that generator trainings write: the newest, the best by KID, and the one with σ by
sensitivity."""

import dataclasses
from pathlib import Path

from wrangan_cli.engine.metrics.base import Estimate
from wrangan_cli.engine.models.folder import Model, carry_companions, find_discriminator, save_model
from wrangan_cli.engine.models.generator import Generator, RandomLayers
from wrangan_cli.engine.models.randomized import with_plain_std
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.quality import BEST_MODEL, best_kid, save_best
from wrangan_cli.engine.training.settings import RandomizeSettings, SensitivitySettings

NEWEST_MODEL = "model"


def save_trained(
    run: Path, trainer: AdversarialTrainer, perceptual: str, folder: str = NEWEST_MODEL, **measured: float
) -> None:
    """The averaged generator, with its discriminator, as the model `run/folder`.

    perceptual: the distance to record in the model. measured: further entries of its record.
    """
    source = {
        "trained_by": "wrangan train",
        "images": trainer.images,
        **measured,
        "settings": dataclasses.asdict(trainer.settings),
    }
    judge = trainer.discriminator if trainer.native else None
    save_model(run / folder, with_plain_std(trainer.ema), judge, perceptual=perceptual, source=source)


def keep_best(run: Path, trainer: AdversarialTrainer, perceptual: str, found: Estimate) -> bool:
    """Keep the current state and model, beside the rotating ones, if its KID is the lowest of the run;
    returns whether it is. A resumed run compares with what it kept."""
    if found.value >= best_kid(run):
        return False
    save_best(run, trainer.state())
    error = found.standard_error or 0.0
    save_trained(run, trainer, perceptual, BEST_MODEL, kid=found.value, kid_standard_error=error)
    return True


def save_sensitivity_model(
    run: Path,
    start: Model,
    generator: Generator,
    layers: RandomLayers,
    settings: RandomizeSettings,
    sensitivity: SensitivitySettings,
) -> list[Path]:
    """Save `generator`, that of `start` with σ by sensitivity, as the model `run/model`. Returns the
    encoders, directions and other files of `start` that are taken over, since the images of w are the
    same."""
    source = {
        "trained_by": "wrangan train randomize --from sensitivity",
        "of": start.sha256,
        "layers": layers,
        "batch": settings.batch,
        "seed": settings.seed,
        "settings": dataclasses.asdict(sensitivity),
    }
    save_model(
        run / NEWEST_MODEL,
        generator,
        find_discriminator(start),
        start.w_mean,
        start.perceptual,
        source,
        inversion={"epsilon_lr": sensitivity.epsilon_lr},
    )
    return list(carry_companions(start, run / NEWEST_MODEL))
