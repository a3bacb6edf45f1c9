"""One inversion problem: a batch of photographs, and how far the generated images are from them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.inversion.batch import Batch, Target
from wrangan_cli.engine.inversion.detail import excess_detail
from wrangan_cli.engine.inversion.offsets import visible_offsets
from wrangan_cli.engine.inversion.settings import InversionSettings, OptimisingSettings, TuningSettings
from wrangan_cli.engine.inversion.variables import GROUPS, Variables
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Offsets, reduced
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.models.rendering import synthesize

Prediction = Callable[[Tensor, Tensor], Variables]
"""(images (B, 3, S, S), initial w (B, style_dim)) → the variables that a trained network predicts."""
Watch = Callable[[Callable[[int], Tensor]], bool]
"""Called after each step with a function that renders the images still being optimised, reduced by area
averaging to a given side: (b, 3, side, side). If it returns False, the optimisation stops and keeps its
current result."""
S = TypeVar("S", bound=InversionSettings, covariant=True)
HELD_PIXELS = 512 * 512
"""Number of pixels of the model's images whose autograd graphs are in memory at once on the CPU: a single
image from 512 px on."""


@dataclass(frozen=True)
class Fit(Generic[S]):
    """One batch of photographs to invert, with the model, the loss and the settings S of the method. All that
    methods change in it is the state of `rng`."""

    model: Model
    settings: S
    perceptual: PerceptualDistance | None
    images: Tensor
    """(B, 3, S, S) in [-1, 1], on the model's device."""
    initial_w: Tensor
    """Initial w, from the encoder, the mean of W, or pti's pivot: (B, style_dim)."""
    rng: torch.Generator
    """Source of the random samples, which are the same for every image."""
    target: Target = None
    """`features` of `images`, with which the perceptual distance compares."""
    predict: Prediction | None = None
    """The network of a method that does not optimise (trained.py)."""
    on_step: Callable[[int], None] = field(default=lambda _: None)
    """Called after each step of the method's loop, with its number."""
    cuda_graph: bool = False
    """Whether the steps replay a captured CUDA graph (graph.py)."""
    watch: Watch | None = None
    """Called after each step; may stop the optimisation."""

    def with_target(self, at_once: int | None = None) -> "Fit[S]":
        """A copy with `target`: the features of all images, computed `at_once` images at a time (None: all
        together)."""
        parts = [self.features(part) for part in self.images.split(at_once or max(1, len(self.images)))]
        known = [part for part in parts if part is not None]
        target = [torch.cat(maps) if len(maps) > 1 else maps[0] for maps in zip(*known, strict=True)]
        return replace(self, target=target if known else None)

    def features(self, images: Tensor) -> Target:
        """The features of images (B, 3, S, S) for the perceptual distance; None if the loss has none."""
        if self.perceptual is None:
            return None
        with torch.no_grad():
            return self.perceptual.features(for_loss(images, self.settings.distance_side))

    @property
    def at_once(self) -> int:
        """Number of images whose autograd graphs are in memory at once: on the CPU, large images gain nothing
        from batching."""
        if self.model.device.type != "cpu":
            return sys.maxsize
        return max(1, HELD_PIXELS // self.model.resolution**2)

    def side(self: "Fit[OptimisingSettings]", batch: Batch) -> int:
        """Side in px at which photographs and generated images are compared in the current step."""
        side = self.images.shape[-1]
        return min(side, self.settings.loss_side) if batch.progress < self.settings.coarse else side

    def rendered_side(self: "Fit[OptimisingSettings]", batch: Batch) -> int | None:
        """Side in px at which images are rendered in the current step: `side`, or None, that of the model, if
        the loss has a term for unseen detail."""
        return None if self._detail_weight(batch) else self.side(batch)

    def _detail_weight(self: "Fit[OptimisingSettings]", batch: Batch) -> float:
        """Weight of the term for unseen detail in the current step."""
        side, settings = self.images.shape[-1], self.settings
        if not isinstance(settings, TuningSettings) or not self.side(batch) == side < self.model.resolution:
            return 0.0
        return settings.detail_weight

    def visible(self, offsets: Offsets) -> Offsets:
        """ε or δ, with 0 for channels that are not visible at the photographs' size (all channels with
        settings.unseen)."""
        if not isinstance(self.settings, TuningSettings) or self.settings.unseen:
            return offsets
        return visible_offsets(offsets, self.model.generator.weights(), self.images.shape[-1])

    def offsets(self, variables: Variables) -> dict[str, Any]:
        """All offsets of `variables` by group; of ε and δ only what is `visible`."""
        groups: dict[str, Any] = {group: getattr(variables, group) for group in GROUPS}
        return groups | {group: self.visible(groups[group]) for group in ("epsilon", "delta")}

    def synthesized(self, variables: Variables) -> Tensor:
        """The images of `variables` at the photographs' side: (B, 3, S, S)."""
        side = self.images.shape[-1]
        return synthesize(self.model.generator, variables.w, **self.offsets(variables), side=side)

    @torch.no_grad()
    def preview(self, variables: Variables, side: int) -> Tensor:
        """The images of `variables`, reduced by area averaging to `side` px: (b, 3, side, side)."""
        return synthesize(self.model.generator, variables.w, **self.offsets(variables), side=side)

    def data_loss(
        self: "Fit[OptimisingSettings]", image: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """The data loss 𝓛, and its LPIPS term: 2·L2 + LPIPS in the paper (section 3.2), here with the weights
        of the settings, and with a penalty on excess detail that the photograph does not show (detail.py).

        image: generated, at `rendered_side`. Returns one value per image: (B,).
        """
        settings, side, detail_weight = self.settings, self.side(batch), self._detail_weight(batch)
        seen, photographs = reduced(image, side), reduced(batch.images, side)
        loss = settings.data_l2_weight * (seen - photographs).square().mean(dim=(1, 2, 3))
        lpips = self._lpips(seen, batch.target)
        if lpips is not None:
            loss = loss + settings.value("perceptual_weight") * lpips
        if detail_weight:
            loss = loss + detail_weight * excess_detail(image, photographs)
        return loss, lpips

    @torch.no_grad()
    def distortion(self, variables: Variables) -> list[dict[str, float]]:
        """Per image: MSE on [-1, 1] and, if the loss contains it, the perceptual distance at the size used
        in the loss."""
        image = self.synthesized(variables)
        columns = {"mse": (image - self.images).square().mean(dim=(1, 2, 3))}
        lpips = self._lpips(image, self.target)
        if self.perceptual is not None and lpips is not None:
            columns[f"{self.perceptual.name} (loss)"] = lpips
        return [{name: values[i].item() for name, values in columns.items()} for i in range(len(image))]

    def _lpips(self, image: Tensor, target: Target) -> Tensor | None:
        """The perceptual distance of the loss per image, (B,); None if the loss has none."""
        if self.perceptual is None or target is None:
            return None
        features = self.perceptual.features(for_loss(image, self.settings.distance_side))
        return self.perceptual.distance(features, target)
