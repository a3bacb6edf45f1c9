"""Pivotal tuning (Roich et al. 2021): w is fixed at a pivot, then the whole generator is tuned.

The pivot comes from the projector (or an encoder); the tuning changes every parameter of the
synthesis network for one image. The result is stored as differences to the model, never as a network.
"""

import torch
from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.learning_rates import one_rate
from wrangan_cli.engine.inversion.loop import Loop, Result
from wrangan_cli.engine.inversion.method_settings import PtiSettings
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.models.rendering import active_noise, synthesize

TRUNCATION = 0.5
"""Truncation of the random w towards which the locality regulariser moves."""


def invert(fit: Fit[PtiSettings]) -> Result:
    """The unchanged pivot w, and a difference for each parameter of the synthesis network: (B, *shape)."""
    variables = Variables(fit.initial_w.clone(), parameters=zero_differences(fit.model, len(fit.images)))
    loop = Loop(fit, variables, one_rate(list(variables.parameters.values()), fit.settings.pti_lr))
    for _ in loop:
        loop.minimise(loss)
    return loop.result()


def loss(fit: Fit[PtiSettings], batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The data loss of the tuning (plus `locality` if it has a weight), and its LPIPS term: (B,)."""
    settings, variables = fit.settings, batch.variables
    generator, parameters = fit.model.generator, variables.parameters
    image = synthesize(generator, variables.w, parameters=parameters, side=fit.side(batch))
    data_loss, lpips = fit.data_loss(image, batch)
    if settings.pti_locality > 0:
        data_loss = data_loss + locality(fit.model, settings, fit.perceptual, variables, fit.rng)
    return data_loss, lpips


def zero_differences(model: Model, batch: int) -> dict[str, Tensor]:
    """Zeros for every parameter that is tuned, by name: (batch, *shape).

    The strength of noise that does not affect the image is not tuned, since that would add the noise.
    """
    active = active_noise(model.generator)
    inactive = {
        given.strength_key for number, given in model.generator.noise_inputs().items() if number not in active
    }
    return {
        name: torch.zeros_like(parameter)[None].repeat(batch, *[1] * parameter.ndim)
        for name, parameter in model.generator.synthesis_parameters().items()
        if name not in inactive
    }


def tuning_distance(settings: PtiSettings, model: Model) -> str:
    """Name of the perceptual distance of the tuning: the authors' LPIPS-Alex, or the shift-tolerant
    AlexNet if the distance of the model (or the settings) is of that family."""
    if settings.pti_perceptual:
        return settings.pti_perceptual
    family = settings.perceptual or model.perceptual
    return "st-lpips-alex" if family.startswith("st-") else "lpips-alex"


def nearby_w(pivot: Tensor, target: Tensor, distance: float) -> Tensor:
    """The point at `distance` from each pivot towards a target, all in W+ (B, rows, style_dim).

    As in the authors' code the distance is measured over all rows together: in W each row moves by
    distance / √rows.
    """
    direction = target - pivot
    return pivot + distance * direction / direction.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12)


def locality(
    model: Model,
    settings: PtiSettings,
    perceptual: PerceptualDistance | None,
    variables: Variables,
    rng: torch.Generator,
) -> Tensor:
    """How far the tuned generator departs from the model at a random w near the pivot: (B,).

    One z is sampled from `rng` for all images, with truncation 0.5. Both generators run without noise;
    the mean squared error and the perceptual distance of their images are added, each with the
    weight settings.pti_locality. Images larger than settings.distance_side are compared at that size.
    """
    generator, side = model.generator, settings.distance_side
    rows = generator.config.num_latents
    with torch.no_grad():
        z = torch.randn(1, generator.config.style_dim, generator=rng).to(variables.w)
        target = model.w_mean + TRUNCATION * (generator.mapping(z) - model.w_mean)
        pivot = variables.w if variables.w.ndim == 3 else variables.w[:, None].expand(-1, rows, -1)
        w = nearby_w(pivot, target[:, None], settings.pti_locality_distance)
        before = generator.synthesis(w, noise="none", side=side)
    parameters = variables.parameters
    after = synthesize(generator, w, parameters=parameters, without_noise=True, side=side)
    total = (after - before).square().mean(dim=(1, 2, 3))
    if perceptual is not None:
        total = total + perceptual(for_loss(after, side), for_loss(before, side))
    return settings.pti_locality * total
