"""What a method inverts, a batch of photographs, and the distance of its images from them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch, Target
from wrangan_cli.engine.inversion.offsets import shown_offsets
from wrangan_cli.engine.inversion.settings import InversionSettings, OptimisingSettings, TuningSettings
from wrangan_cli.engine.inversion.variables import GROUPS, Variables
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Offsets, reduced
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.models.rendering import synthesize

Prediction = Callable[[Tensor, Tensor], Variables]
"""(images (B, 3, S, S), initial w (B, style_dim)) → the variables that a trained network predicts."""
Watch = Callable[[Callable[[int], Tensor]], bool]
"""Called after each step with what draws the images that still take steps, reduced by area to a side:
(b, 3, side, side). False ends the steps: what is there is kept."""
S = TypeVar("S", bound=InversionSettings, covariant=True)
HELD_PIXELS = 512 * 512
"""Pixels of the model's images whose graph is in memory at once on the CPU: one image from 512 px on."""


@dataclass(frozen=True)
class Fit(Generic[S]):
    """One batch of photographs to invert, with the model, the loss and the settings S of the method. Methods
    read it and change nothing in it but the state of `rng`."""

    model: Model
    settings: S
    perceptual: PerceptualDistance | None
    images: Tensor
    """(B, 3, S, S) in [-1, 1], on the model's device."""
    initial_w: Tensor
    """Where w starts: from the encoder, at the mean of W, or at pti's pivot: (B, style_dim)."""
    rng: torch.Generator
    """Generator of random samples that are the same for every image."""
    target: Target = None
    """What the perceptual distance compares with: `features` of `images`."""
    predict: Prediction | None = None
    """The network of a method that does not optimise (trained.py)."""
    on_step: Callable[[int], None] = field(default=lambda _: None)
    """Called after each step of the method's loop, with its number."""
    cuda_graph: bool = False
    """Whether the steps replay a captured CUDA graph (graph.py)."""
    watch: Watch | None = None
    """Called after each step; may end the steps."""

    def with_target(self, at_once: int | None = None) -> "Fit[S]":
        """With the features of all images, of so many at a time (None: all together)."""
        parts = [self.features(part) for part in self.images.split(at_once or max(1, len(self.images)))]
        known = [part for part in parts if part is not None]
        target = [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*known, strict=True)]
        return replace(self, target=target if known else None)

    def features(self, images: Tensor) -> Target:
        """What the perceptual distance of the loss compares for images (B, 3, S, S); None without one."""
        if self.perceptual is None:
            return None
        with torch.no_grad():
            return self.perceptual.features(for_loss(images, self.settings.distance_side))

    @property
    def at_once(self) -> int:
        """Number of images whose graph is in memory at once: on the CPU large images gain nothing from a
        batch."""
        if self.model.device.type != "cpu":
            return sys.maxsize
        return max(1, HELD_PIXELS // self.model.resolution**2)

    def side(self: "Fit[OptimisingSettings]", batch: Batch) -> int:
        """At which side in px photographs and generated images are compared in the step in hand."""
        side = self.images.shape[-1]
        return min(side, self.settings.loss_side) if batch.progress < self.settings.coarse else side

    def shown(self, offsets: Offsets) -> Offsets:
        """ε or δ with 0 for what photographs of this size do not show (settings.unseen: as they are)."""
        if not isinstance(self.settings, TuningSettings) or self.settings.unseen:
            return offsets
        return shown_offsets(offsets, self.model.generator.weights(), self.images.shape[-1])

    def offsets(self, variables: Variables) -> dict[str, Any]:
        """All offsets of `variables` by group, ε and δ as `shown` returns them."""
        groups: dict[str, Any] = {group: getattr(variables, group) for group in GROUPS}
        return groups | {group: self.shown(groups[group]) for group in ("epsilon", "delta")}

    def synthesized(self, variables: Variables) -> Tensor:
        """The images of `variables` at the photographs' side: (B, 3, S, S)."""
        side = self.images.shape[-1]
        return synthesize(self.model.generator, variables.w, **self.offsets(variables), side=side)

    @torch.no_grad()
    def seen(self, variables: Variables, side: int) -> Tensor:
        """The images of `variables`, reduced by area to `side` px: (b, 3, side, side)."""
        return synthesize(self.model.generator, variables.w, **self.offsets(variables), side=side)

    def data_loss(
        self: "Fit[OptimisingSettings]", image: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """𝓛 of the paper (section 3.2), 2·L2 + LPIPS, or what the settings weigh so, and the LPIPS in it.

        image: generated, (B, 3, s, s), where s is `side`. Returns one value per image: (B,).
        """
        settings, photographs = self.settings, reduced(batch.images, image.shape[-1])
        loss = settings.data_l2_weight * (image - photographs).square().mean(dim=(1, 2, 3))
        lpips = self._lpips(image, batch.target)
        if lpips is not None:
            loss = loss + settings.value("perceptual_weight") * lpips
        return loss, lpips

    @torch.no_grad()
    def distortion(self, variables: Variables) -> list[dict[str, float]]:
        """Per image: mse on [-1, 1] and, if the loss contains it, the perceptual distance at its size."""
        image = self.synthesized(variables)
        columns = {"mse": (image - self.images).square().mean(dim=(1, 2, 3))}
        lpips = self._lpips(image, self.target)
        if self.perceptual is not None and lpips is not None:
            columns[f"{self.perceptual.name} (loss)"] = lpips
        return [{name: values[i].item() for name, values in columns.items()} for i in range(len(image))]

    def _lpips(self, image: Tensor, target: Target) -> Tensor | None:
        """The perceptual distance of the loss per image, (B,); None without one."""
        if self.perceptual is None or target is None:
            return None
        features = self.perceptual.features(for_loss(image, self.settings.distance_side))
        return self.perceptual.distance(features, target)
