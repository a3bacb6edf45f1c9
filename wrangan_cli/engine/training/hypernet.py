"""Training of the hypernetwork (HyperStyle: Alaluf et al. 2022).

Two departures from the paper: no identity loss, which needs a recogniser with gradients, and Adam, not
Ranger.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from wrangan_cli.engine.models.encoders import (
    Hypernet,
    HypernetConfig,
    all_kernels,
    layer_shapes,
    load_encoder,
    refined,
    start_where_trained,
    weight_offsets,
)
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PerceptualDistance
from wrangan_cli.engine.training.encoder import ImageTrainer, body_sizes
from wrangan_cli.engine.training.settings import EncoderSettings


class HypernetTrainer(ImageTrainer[Hypernet]):
    """Offsets of the generator's weights, on top of w from the model's encoder, which is not trained.

    Each pass has its loss and its gradients, which add up to one step; within a pass the offsets and the
    image of the previous pass are constants.
    """

    def __init__(
        self,
        model: Model,
        settings: EncoderSettings,
        perceptual: PerceptualDistance,
        start: Hypernet | None = None,
    ) -> None:
        """As ImageTrainer; also raises UsageError if the model has no encoder into W."""
        super().__init__(model, settings, perceptual, start)
        self.w_encoder = start_where_trained(load_encoder(model), self.encoder)

    def network(self) -> Hypernet:
        """A network with the sizes of the settings, for all styled convolutions of the generator."""
        settings = self.settings
        if settings.offset_kernel == 3 and not all_kernels(self.model.generator):
            raise ValueError("offset_kernel 3: not all weights of this generator are 3×3")
        backbone = settings.backbone or "resnet"
        widths, blocks = body_sizes(settings, backbone)
        return Hypernet(
            HypernetConfig(
                layers=layer_shapes(self.model.generator),
                widths=widths,
                blocks=blocks,
                input_side=settings.input_side,
                backbone=backbone,
                shared_width=settings.shared_width,
                shared_inner=settings.shared_inner,
                inner=settings.inner,
                features=settings.features,
                separate=settings.separate,
                rank=settings.offset_rank,
                kernel=settings.offset_kernel,
                passes=settings.passes,
            )
        )

    def losses(self, real: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """(3,), see `loss_names`, of the first pass."""
        w, reconstruction = self._start(real)
        return self._one_pass(real, w, self.target_of(real), {}, reconstruction)[0]

    def backward(self, real: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """Add the gradients of every pass; returns the losses of the last one, detached."""
        w, reconstruction = self._start(real)
        target, losses = self.target_of(real), torch.empty(0)
        offsets: dict[str, Tensor] = {}
        for _ in range(self.encoder.config.passes):
            losses, offsets, reconstruction = self._one_pass(real, w, target, offsets, reconstruction)
            losses[0].backward()
        return losses.detach()

    @torch.no_grad()
    def reconstructed(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, R, R) after the last pass."""
        generator, w = self.model.generator, self.w_encoder(images)
        offsets = refined(self.ema, generator, images, w)
        return self.synthesis(w, delta=weight_offsets(generator, offsets))

    @torch.no_grad()
    def _start(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """w of the images, and the images of w."""
        w = self.w_encoder(real)
        return w, self.synthesis(w)

    def _one_pass(
        self,
        real: Tensor,
        w: Tensor,
        target: list[Tensor],
        offsets: dict[str, Tensor],
        reconstruction: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Losses, and offsets and images for the next pass, both without autograd history."""
        made = self.encoder(real, reconstruction)
        summed = {name: offsets[name] + new if offsets else new for name, new in made.items()}
        generated = self.synthesis(w, delta=weight_offsets(self.model.generator, summed))
        losses = torch.stack(self.reconstruction(generated, real, target))
        return losses, {name: offset.detach() for name, offset in summed.items()}, generated.detach()

    def networks(self) -> list[nn.Module]:
        """All networks in memory."""
        return [*super().networks(), self.w_encoder]

    def on_meta(self) -> Self:
        """See ImageTrainer."""
        twin = super().on_meta()
        twin.w_encoder = copy.deepcopy(self.w_encoder).to("meta")
        return twin
