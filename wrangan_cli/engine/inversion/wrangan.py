"""WRanGAN's inversion: Algorithm 1 of the paper (section 3.3), whole. "Line n" is line n of the algorithm.

All photographs of a batch are inverted at once and independently: each has its w and its ε, and its loss is
minimised separately.
"""

from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.learning_rates import rates_of_w_and_offsets
from wrangan_cli.engine.inversion.loop import Loop, Result
from wrangan_cli.engine.inversion.method_settings import WranganSettings
from wrangan_cli.engine.inversion.offsets import random_weights, small_offsets, squared_norm
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.rendering import synthesize


def invert(fit: Fit[WranganSettings]) -> Result:
    """Algorithm 1.

    Input: real images x̂ (`fit.images`), generator parameters μ_θ, σ_θ (`fit.model`).
    Parameter: regularization coefficient α_reg (`fit.settings.alpha`).
    Output: latent code w, (B, style_dim), and parameterized randomization ε, (B, O, I, k, k) for each weight.
    """
    # Line 1: initialize w = E(x̂) by the output of the encoder network.
    w = fit.initial_w.clone()
    # Line 2: initialize ε with small values (10⁻⁴).
    epsilon = small_offsets(random_weights(fit.model), w, fit.settings)
    # Line 3: for number of iterations do
    loop = Loop(fit, Variables(w, epsilon=epsilon), rates_of_w_and_offsets(w, epsilon, fit.settings))
    for _ in loop:
        # Lines 4 and 5, below: one step of Adam on w and ε.
        loop.minimise(loss)
    # Line 6: end for
    # Line 7: return w, ε
    return loop.result()


def loss(fit: Fit[WranganSettings], batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The objective of Algorithm 1, and its LPIPS term, for each image: (B,)."""
    settings, w, epsilon = fit.settings, batch.variables.w, batch.variables.epsilon
    # Line 4: set generator weights θ_G ← μ_θ + σ_θ ε, and generate G(w, θ_G).
    image = synthesize(fit.model.generator, w, epsilon=fit.visible(epsilon), side=fit.rendered_side(batch))
    # Line 5: update parameters w, ε minimizing 𝓛(G(w, θ_G), x̂) + α_reg ‖ε‖², where 𝓛 = 2·L2 + LPIPS.
    data_loss, lpips = fit.data_loss(image, batch)
    return data_loss + settings.value("alpha") * squared_norm(epsilon, settings.penalty), lpips
