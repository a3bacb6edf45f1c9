"""Simple Weight Tune of the paper (section 3.2): w and the weights themselves, θ = θ₀ + δ, under a plain L2
penalty; Algorithm 1 without σ."""

from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.learning_rates import rates_of_w_and_offsets
from wrangan_cli.engine.inversion.loop import Loop, Result
from wrangan_cli.engine.inversion.method_settings import WeightTuningSettings
from wrangan_cli.engine.inversion.offsets import small_offsets, squared_norm
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.randomized import tunable_weights
from wrangan_cli.engine.models.rendering import synthesize


def invert(fit: Fit[WeightTuningSettings]) -> Result:
    """Fit w, (B, style_dim), and δ of the weights that wrangan moves, (B, O, I, k, k) for each."""
    w = fit.initial_w.clone()
    delta = small_offsets(tunable_weights(fit.model.generator), w, fit.settings)
    loop = Loop(fit, Variables(w, delta=delta), rates_of_w_and_offsets(w, delta, fit.settings))
    for _ in loop:
        loop.minimise(loss)
    return loop.result()


def loss(fit: Fit[WeightTuningSettings], batch: Batch) -> tuple[Tensor, Tensor | None]:
    """𝓛(G(w, θ₀ + δ), x̂) + α‖δ‖², and its LPIPS term, for each image: (B,)."""
    settings, w, delta = fit.settings, batch.variables.w, batch.variables.delta
    image = synthesize(fit.model.generator, w, delta=fit.visible(delta), side=fit.rendered_side(batch))
    data_loss, lpips = fit.data_loss(image, batch)
    return data_loss + settings.value("alpha") * squared_norm(delta, settings.penalty), lpips
