"""Random latents and their images, one per seed."""

import torch
from torch import Tensor

from wrangan_cli.engine.base.runtime import random_generator, seeded_latents
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon


@torch.no_grad()
def w_of_seed(model: Model, seed: int, truncation: float = 1.0) -> Tensor:
    """w of the latent of `seed`, (style_dim,), on the model's device; truncation as in `image_of_seed`."""
    z = seeded_latents([seed], model.generator.config.style_dim).to(model.device)
    return torch.lerp(model.w_mean, model.generator.mapping(z), truncation)[0]


@torch.no_grad()
def image_of_seed(model: Model, seed: int, truncation: float = 1.0, epsilon: float = 0.0) -> Tensor:
    """The image (3, S, S), about [-1, 1] and not clipped, of the latent of `seed`; on the model's device.

    truncation: w = mean + truncation · (w − mean): 1 leaves w unchanged, 0 gives the mean image. epsilon:
    scale of ε ~ N(0, 1), sampled from the same seed; 0: the mean weights. Raises UsageError for ε with a
    model without random weights.
    """
    generator = model.generator
    w = w_of_seed(model, seed, truncation)[None]
    offsets = draw_epsilon(generator, scale=epsilon, rng=random_generator(seed)) if epsilon else None
    return generator.synthesis(w, epsilon=offsets)[0]
