"""Random latents and their images, one per seed."""

import math

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator, seeded_latents
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon


@torch.no_grad()
def w_of_seed(model: Model, seed: int, truncation: float = 1.0) -> Tensor:
    """w of the latent of `seed`, (style_dim,), on the model's device; truncation as in `image_of_seed`."""
    z = seeded_latents([seed], model.generator.config.style_dim).to(model.device)
    return torch.lerp(model.w_mean, model.generator.mapping(z), truncation)[0]


def epsilon_of_seed(model: Model, seed: int, scale: float) -> dict[str, Tensor]:
    """ε ~ N(0, scale²) of `seed` by the weight's name, (O, I, k, k), on the model's device; none for scale 0.
    Raises UsageError for a model without random weights."""
    return draw_epsilon(model.generator, scale=scale, rng=random_generator(seed)) if scale else {}


def check_sampling(truncation: float, epsilon: float) -> None:
    """UsageError for settings that `image_of_seed` does not accept."""
    for name, value in (("truncation", truncation), ("epsilon", epsilon)):
        if not math.isfinite(value):
            raise UsageError(f"{name} {value}: not a finite number")
    if truncation < 0:
        raise UsageError(f"truncation {truncation:g}: expected 0 (the mean) or more; 1: no truncation")


@torch.no_grad()
def image_of_seed(model: Model, seed: int, truncation: float = 1.0, epsilon: float = 0.0) -> Tensor:
    """The image (3, S, S), about [-1, 1] and not clipped, of the latent of `seed`; on the model's device.

    truncation: w = mean + truncation · (w − mean): 1 leaves w unchanged, 0 gives the mean image. epsilon:
    scale of ε ~ N(0, 1), sampled from the same seed; 0: the mean weights. Raises UsageError for ε with a
    model without random weights.
    """
    w = w_of_seed(model, seed, truncation)[None]
    return model.generator.synthesis(w, epsilon=epsilon_of_seed(model, seed, epsilon))[0]
