"""StyleGAN2's projector: w (or W+) and the noise maps of one image (Karras et al. 2020, appendix D).

Three things distinguish it from a plain fit of w: the learning rate is ramped up and down
(learning_rates.projector_ramp), noise that fades out is added to w, and the noise maps
are fitted under a penalty on their autocorrelation, so that they stay noise. Everything is computed for each
image separately, and the noise on w is the same sample for every image, so no image depends on its batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.learning_rates import W_NOISE_END, one_rate, projector_ramp
from wrangan_cli.engine.inversion.loop import Loop, Result
from wrangan_cli.engine.inversion.method_settings import ProjectorSettings
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.rendering import active_noise, synthesize

SMALLEST_MAP = 8
"""Side in px at which the pyramid of a noise map ends."""


def invert_w(fit: Fit[ProjectorSettings]) -> Result:
    """Fit w (B, style_dim) and, unless noise_weight is 0, offsets to the model's noise maps.

    Maps that do not affect the image are left out (active_noise).
    """
    return _project(fit, fit.initial_w.clone())


def invert_w_plus(fit: Fit[ProjectorSettings]) -> Result:
    """As `invert_w`, with a separate w for each layer: (B, num_latents, style_dim)."""
    w = fit.initial_w
    if w.ndim == 2:
        w = w[:, None].repeat(1, fit.model.generator.config.num_latents, 1)
    return _project(fit, w.clone())


def _project(fit: Fit[ProjectorSettings], w: Tensor) -> Result:
    variables = Variables(w, noise=zero_noise(fit.model, len(w)) if fit.settings.noise_weight > 0 else {})
    rates = one_rate([w, *variables.noise.values()], fit.settings.projection_lr, projector_ramp)
    loop = Loop(fit, variables, rates)
    for _ in loop:
        loop.minimise(loss)
        normalise_noise(fit.model, loop.batch.variables)
    return loop.result()


def loss(fit: Fit[ProjectorSettings], batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The data loss at the noisy w plus noise_weight · `noise_penalty`, and its LPIPS term: (B,)."""
    settings, variables = fit.settings, batch.variables
    w = noisy_w(fit.model, settings, variables.w, batch.progress, fit.rng)
    image = synthesize(fit.model.generator, w, noise=variables.noise, side=fit.side(batch))
    data_loss, lpips = fit.data_loss(image, batch)
    return data_loss + settings.noise_weight * noise_penalty(fit.model, variables), lpips


def zero_noise(model: Model, batch: int) -> dict[str, Tensor]:
    """Zero offsets to the noise maps that affect the image: (batch, side, side) by the map's number."""
    return {
        number: given.map.new_zeros(batch, *given.map.shape[2:])
        for number, given in active_noise(model.generator).items()
    }


def w_noise_size(settings: ProjectorSettings, progress: float, w_std: float) -> float:
    """Standard deviation of the noise on each component of w: w_noise · w_std · max(0, 1 − t/0.75)².

    progress: t, the fraction of the steps done, 0…1. w_std: the size of W (Model.w_std).
    """
    return settings.w_noise * w_std * max(0.0, 1.0 - progress / W_NOISE_END) ** 2


def noisy_w(
    model: Model, settings: ProjectorSettings, w: Tensor, progress: float, rng: torch.Generator
) -> Tensor:
    """w + noise for one step: one sample from `rng`, the same for every image of the batch."""
    noise = torch.randn(w.shape[1:], generator=rng)
    return w + noise.to(w) * w_noise_size(settings, progress, model.w_std)


def autocorrelation(maps: Tensor) -> Tensor:
    """How far noise maps (B, side, side) are from white noise, per image: (B,), 0 at best.

    The sum, over a pyramid (the map, halved by 2×2 means down to 8 px), of the squared mean
    product of the map with itself shifted cyclically by 1 px, down and to the right.
    """
    total = maps.new_zeros(maps.shape[0])
    while True:
        for axis in (1, 2):
            total = total + (maps * maps.roll(1, dims=axis)).mean(dim=(1, 2)).square()
        if maps.shape[-1] <= SMALLEST_MAP:
            return total
        maps = F.avg_pool2d(maps[:, None], 2)[:, 0]


def noise_penalty(model: Model, variables: Variables) -> Tensor:
    """`autocorrelation` of the maps with their offsets, summed over the noise inputs, per image: (B,)."""
    total = variables.w.new_zeros(variables.w.shape[0])
    stored = _stored_maps(model)
    for number, offset in variables.noise.items():
        total = total + autocorrelation(stored[number] + offset)
    return total


@torch.no_grad()
def normalise_noise(model: Model, variables: Variables) -> None:
    """Normalise each map with its offset to mean 0 and mean square 1, per image, in place."""
    stored = _stored_maps(model)
    for number, offset in variables.noise.items():
        maps = stored[number] + offset
        maps = maps - maps.mean(dim=(1, 2), keepdim=True)
        maps = maps * maps.square().mean(dim=(1, 2), keepdim=True).rsqrt()
        offset.copy_(maps - stored[number])


def _stored_maps(model: Model) -> dict[str, Tensor]:
    """The model's stored noise maps by number: (1, side, side)."""
    return {number: given.map[0] for number, given in model.generator.noise_inputs().items()}
