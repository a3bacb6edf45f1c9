"""WRanGAN's training: Algorithm 2 of the paper (section 3.4), whole; without random weights, StyleGAN2's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wrangan_cli.engine.training.adversarial_state import AdversarialState, Losses
from wrangan_cli.engine.training.regularization import regularise_discriminator, regularise_generator
from wrangan_cli.engine.training.run import Report


class AdversarialTrainer(AdversarialState):
    """Algorithm 2; "Line n" is its line n. A batch comes in parts: what one process computes at a time.

    Input: pretrained StyleGAN2 weights θ_G,0, data set x̂. Parameter: batch size m. Output: μ_θ, σ_θ.
    Line 1: initialize μ_θ = θ_G,0. Line 2: initialize σ_θ = 1 (`models.randomized.randomize` does both).
    Line 3: for number of training iterations do (`run.train`, which calls `step`)
    """

    def step(self, real: Tensor) -> Report:
        """One iteration: an update of D, one of G, one of the moving average; returns the losses.

        real: (B, 3, R, R) in [-1, 1], on any device: the images `shards.rows` of the batch.
        """
        # Line 6: sample x̂⁽¹⁾ … x̂⁽ᵐ⁾ from the training data set (`real`).
        reals = self.shards.cut(real.to(self.device).contiguous(memory_format=self.layout))
        # Lines 4 to 8: update discriminator weights θ_D.
        report = self.minimise(self.discriminator_losses(reals), *self.optimizers_d)
        report |= regularise_discriminator(self, reals)
        # Lines 9 to 12: update parameters μ_θ, σ_θ.
        report |= self.minimise(self.generator_losses(), self.optimizer_g)
        report |= regularise_generator(self)
        # Line 13: end for. Line 14: return μ_θ, σ_θ (`self.ema`, their moving average).
        return self.end_step(report)

    def discriminator_losses(self, reals: Sequence[Tensor]) -> Losses:
        """Lines 4 to 8, for each part of the batch."""
        self.train_only("D")
        inputs = self.sample_inputs()  # Line 4: sample z ~ N(0, 1), and for line 7 ε ~ N(0, 1).
        augment_real, augment_fake = self.augmentation(), self.augmentation()
        for part, (real, given) in enumerate(zip(reals, inputs, strict=True)):
            with torch.no_grad():
                w = self.map_to_w(given)  # Line 5: map to intermediate latent space, w = f(z).
                # Line 7: calculate θ_G = μ_θ + ε σ_θ, and generate G(w, θ_G).
                fake = self.synthesis(w, epsilon=given.epsilon, noise=given.noise)
            # Line 8: minimizing 1/m Σ L_D(D(x̂), D(G(w, θ_G))).
            yield self.discriminator_loss(augment_real(real, part), augment_fake(fake, part))

    def generator_losses(self) -> Losses:
        """Lines 9 to 12, for each part of the batch."""
        self.train_only("G")
        augment = self.augmentation()
        for part, given in enumerate(self.sample_inputs()):  # Line 9: sample z ~ N(0, 1), and ε.
            w = self.map_to_w(given)  # Line 10: map to intermediate latent space, w = f(z).
            # Line 11: calculate θ_G = μ_θ + ε σ_θ, and generate G(w, θ_G).
            fake = self.synthesis(w, epsilon=given.epsilon, noise=given.noise)
            # Line 12: minimizing 1/m Σ L_g(D(G(w, θ_G))).
            yield self.generator_loss(augment(fake, part))
