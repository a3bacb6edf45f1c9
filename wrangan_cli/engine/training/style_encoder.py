"""Training of the encoders into W+: e4e (Tov et al. 2021) and ReStyle (Alaluf et al. 2021).

Two departures from both: no identity loss, which needs a recogniser with gradients, and Adam, not Ranger.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.distributed import gather_shards
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.efficientnet import load_pretrained
from wrangan_cli.engine.models.encoders import (
    Encoder,
    StyleEncoder,
    StyleEncoderConfig,
    average_image,
    encoded,
)
from wrangan_cli.engine.models.encoders.blocks import EFFICIENTNET, resized
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.pairs import Pairs
from wrangan_cli.engine.models.perceptual import PerceptualDistance
from wrangan_cli.engine.training.encoder import ImageTrainer, body_sizes, classifier
from wrangan_cli.engine.training.latent_discriminator import LatentAdversary
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import EncoderSettings


class StyleEncoderTrainer(ImageTrainer[StyleEncoder]):
    """At first one w, then a delta for one further latent after another, as the schedule switches them on.

    The norms of the deltas are penalised, and a discriminator keeps each latent similar to w of the
    generator. Each pass has its loss and its gradients, which add up to one step; the inputs of a pass are
    constants.
    """

    loss_names = ("total", "mse", "perceptual", "delta", "latent", "w")

    def __init__(
        self,
        model: Model,
        settings: EncoderSettings,
        perceptual: PerceptualDistance,
        start: StyleEncoder | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        """As ImageTrainer; start must have the number of input channels of its kind."""
        super().__init__(model, settings, perceptual, start, pairs)
        self.average_image = average_image(model.generator, self.encoder.w_mean)
        self.adversary: LatentAdversary | None = None
        if settings.latent_weight > 0 and self.encoder.config.deltas:
            style_dim = model.generator.config.style_dim
            self.adversary = LatentAdversary(style_dim, settings, model.device)
        self._codes = torch.empty(0)

    def network(self) -> StyleEncoder:
        """A network with the sizes of the settings."""
        settings, config = self.settings, self.model.generator.config
        again, backbone = settings.kind == "restyle", settings.backbone or "ir-se"
        widths, blocks = body_sizes(settings, backbone)
        fixed = backbone == EFFICIENTNET
        encoder = StyleEncoder(
            StyleEncoderConfig(
                style_dim=config.style_dim,
                num_latents=config.num_latents,
                widths=widths,
                blocks=blocks,
                input_side=settings.input_side,
                input_channels=6 if again else 3,
                backbone=backbone,
                heads=settings.heads or ("pooled" if fixed else "single" if again else "pyramid"),
                deltas=settings.deltas,
                head_width=settings.head_width,
                passes=settings.passes if again else 1,
            )
        )
        if fixed and settings.pretrained and not again:
            load_pretrained(encoder.body, classifier())
        return encoder

    def init_from(self, encoder: Encoder) -> None:
        """Start from the weights of an encoder into W; UsageError if the two do not fit."""
        mean = self.model.w_mean
        for network in (self.encoder, self.ema):
            try:
                network.init_from(encoder)
            except ValueError as error:
                raise UsageError(f"the encoder into W to start from: {error}") from error
            network.w_mean.copy_(mean)

    @property
    def stage(self) -> int:
        """Number of deltas that are switched on."""
        config, settings = self.encoder.config, self.settings
        if self.images < settings.progressive_start:
            return 0
        on = 1 + (self.images - settings.progressive_start) // settings.progressive_every
        return min(on, config.num_latents - 1)

    def losses(self, real: Tensor, z: Tensor) -> Tensor:
        """(6,), see `loss_names`, of the first pass."""
        images, true_w = self._inputs(real, z)
        return self._one_pass(images, real, true_w, self.target_of(real), None, None)[0]

    def backward(self, real: Tensor, z: Tensor) -> Tensor:
        """Add the gradients of every pass; returns the losses of the last one, detached."""
        images, true_w = self._inputs(real, z)
        target = self.target_of(real)
        losses, codes, reconstruction = torch.empty(0), None, None
        for number in range(self.encoder.config.passes):
            losses, codes, reconstruction = self._one_pass(
                images, real, true_w, target, codes, reconstruction
            )
            losses[0].backward()
            if number == 0:
                # The latent discriminator sees, as published, the latents of the first pass that have a
                # delta.
                self._codes = codes[: len(real), : self._counted()].cpu()
        return losses.detach()

    def after(self, z: Tensor) -> Report:
        """One step of the latent discriminator, with the codes of all processes."""
        if self.adversary is None:
            return {"stage": float(self.stage)}
        encoded = torch.stack(gather_shards(list(self._codes)))
        with torch.no_grad():
            real_w = self.model.generator.mapping(z.to(self.model.device)).cpu()
        return self.adversary.step(real_w, encoded) | {"stage": float(self.stage)}

    @torch.no_grad()
    def reconstructed(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, R, R) after the last pass."""
        return self.synthesis(encoded(self.ema, self.model.generator, images, self.average_image))

    def _counted(self) -> int:
        return self.stage + 1 if self.encoder.config.deltas else self.encoder.config.num_latents

    def _inputs(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images that the encoder sees, the real ones first, and the w of the generated ones."""
        if not self.settings.w_weight:
            return real, None
        true_w, known = self.known(z)
        # Pairs have the input side of the encoder, which would resize the others.
        side = known.shape[-1] if self.pairs else self.side
        return torch.cat([resized(real, side), known]), true_w

    def _one_pass(
        self,
        images: Tensor,
        real: Tensor,
        true_w: Tensor | None,
        target: list[Tensor],
        codes: Tensor | None,
        reconstruction: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, and codes and images for the next pass, both without autograd history."""
        again = self.encoder.config.input_channels == 6
        count = len(real)
        if again and reconstruction is None:
            reconstruction = self.average_image.expand(len(images), -1, -1, -1)
        codes = self.encoder(images, reconstruction, codes, self.stage)
        generated = self.synthesis(codes[:count])
        total, *parts = self.reconstruction(generated, real, target)
        settings, zero = self.settings, total.new_zeros(())
        loss_delta = loss_latent = loss_w = zero
        if self.encoder.config.deltas and self.stage > 0:
            deltas = codes[:count, 1 : self._counted()] - codes[:count, :1]
            loss_delta = deltas.norm(dim=2).mean(dim=0).sum()
        if self.adversary is not None:
            loss_latent = self.adversary.encoder_loss(codes[:count, : self._counted()])
        if true_w is not None:
            loss_w = self.w_error(codes[count:], true_w)
        total = total + settings.delta_weight * loss_delta + settings.latent_weight * loss_latent
        total = total + (settings.w_weight or 0.0) * loss_w
        next_shown = None
        if again:
            next_shown = generated.detach()
            if true_w is not None:
                with torch.no_grad():
                    next_shown = torch.cat([next_shown, self.synthesis(codes[count:])])
        return torch.stack([total, *parts, loss_delta, loss_latent, loss_w]), codes.detach(), next_shown

    def networks(self) -> list[nn.Module]:
        """All networks in memory."""
        return [*super().networks(), *([self.adversary.network] if self.adversary else [])]

    def on_meta(self) -> Self:
        """See ImageTrainer; the latent discriminator, which is small, is left out."""
        twin = super().on_meta()
        twin.average_image = self.average_image.to("meta")
        twin.adversary = None
        return twin

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return super().state() | ({"adversary": self.adversary.state()} if self.adversary else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; UsageError if it belongs to another model or kind."""
        super().restore(state)
        if self.adversary is not None and "adversary" in state:
            self.adversary.restore(state["adversary"])
