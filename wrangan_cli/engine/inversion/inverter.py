"""Photographs → codes: model, networks and loss are loaded once and used for any number of batches."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.photographs import by_side, load_photograph
from wrangan_cli.engine.inversion import graph
from wrangan_cli.engine.inversion.budget import with_steps_for_time
from wrangan_cli.engine.inversion.fit import Fit, Prediction, Watch
from wrangan_cli.engine.inversion.method_settings import (
    PTI_STOP,
    PtiSettings,
    TrainedSettings,
    WranganSettings,
)
from wrangan_cli.engine.inversion.methods import METHOD_TABLE
from wrangan_cli.engine.inversion.offsets import random_weights
from wrangan_cli.engine.inversion.pti import tuning_distance
from wrangan_cli.engine.inversion.settings import InversionSettings, OptimisingSettings
from wrangan_cli.engine.inversion.std_power import PoweredModel, with_std_power
from wrangan_cli.engine.inversion.trained import load_networks, network_files
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PerceptualDistance, load_perceptual

_log = logging.getLogger("wrangan")
S = TypeVar("S", bound=InversionSettings)


@dataclass(frozen=True)
class Inverter:
    """Model, encoder and loss, loaded once and used for many batches."""

    model: Model
    settings: InversionSettings
    encoder: Callable[[Tensor], Tensor] | None
    """From images to w (B, style_dim); None: w starts at the mean of W."""
    perceptual: PerceptualDistance | None
    pivot: "Inverter | None" = None
    """Finds the pivot of pti; None: the pivot is the initial w."""
    predict: Prediction | None = None
    """The network of a method that does not optimise (trained.py)."""
    steps_planned: bool = False
    """Whether `settings` already has the number of steps that `seconds` allows."""
    cuda_graph: bool = False
    """Whether the steps replay a captured CUDA graph (graph.py)."""
    watch: Watch | None = None
    """Called after each step; may stop the optimisation."""
    powered: PoweredModel | None = None
    """The model with σ to the power `std_power`, which is fitted; None: `model` itself."""

    @classmethod
    def load(cls, model: Model, settings: InversionSettings, cuda_graph: bool = False) -> "Inverter":
        """Load what `settings` need; UsageError if the model lacks it, or if `cuda_graph` is set and the
        steps cannot be captured."""
        settings = resolved(settings, model)
        powered = None
        if isinstance(settings, WranganSettings):
            random_weights(model)
            if (power := settings.value("std_power")) != 1:
                powered = with_std_power(model, power)
        encoder, predict = load_networks(model, settings)
        perceptual, general = None, settings.perceptual or model.perceptual
        if settings.value("perceptual_weight") > 0:
            name = tuning_distance(settings, model) if isinstance(settings, PtiSettings) else general
            try:
                perceptual = load_perceptual(name, model.device)
            except WranganError as error:
                if isinstance(error, UsageError) or not isinstance(settings, TrainedSettings):
                    raise
                _log.warning(
                    "%s needs no perceptual distance; its codes will not record one (%s)",
                    settings.method,
                    error,
                )
        pivot = None
        if settings.pivot is not None:
            same = perceptual is None or perceptual.name == general
            pivot_loss = perceptual if same else load_perceptual(general, model.device)
            pivot = cls(model, settings.pivot, encoder, pivot_loss)
        if cuda_graph and (cause := graph.why_not_captured(settings, model.device)):
            raise UsageError(f"cannot use a CUDA graph: {cause}")
        return cls(
            model, settings, encoder, perceptual, pivot, predict, cuda_graph=cuda_graph, powered=powered
        )

    @property
    def fitted_model(self) -> Model:
        """The model that is fitted; codes store ε in units of the σ of `model`."""
        return self.model if self.powered is None else self.powered.model

    def load_photo(self, path: Path) -> Tensor:
        """The central square of a photograph, for `invert`: (3, S, S) in [-1, 1]. S is `settings.size`
        or else the photograph's side, and at most that of the model. Raises FileError as `load_image`
        does."""
        return load_photograph(path, self.model.resolution, self.settings.size)

    def watched(self, watch: Watch) -> "Inverter":
        """A copy that calls `watch` after each step, also while it finds the pivot."""
        pivot = None if self.pivot is None else self.pivot.watched(watch)
        return replace(self, pivot=pivot, watch=watch)

    def initial_w(self, images: Tensor) -> Tensor:
        """w from the encoder, or the mean of W: (B, style_dim)."""
        if self.encoder is None:
            return self.model.w_mean.expand(images.shape[0], -1).clone()
        with torch.no_grad():
            return self.encoder(images)

    def within(self, images: Tensor) -> "Inverter":
        """A copy with the number of steps that `settings.seconds` allows for such a batch, found by a trial;
        itself if `seconds` is unset."""
        settings = self.settings
        if self.steps_planned or not isinstance(settings, OptimisingSettings) or settings.seconds is None:
            return self

        def trial(settings: InversionSettings, on_step: Callable[[int], None]) -> None:
            self._with(settings).invert(images, on_step)

        return self._with(with_steps_for_time(settings, trial, len(images)))

    def _with(self, settings: InversionSettings) -> "Inverter":
        pivot = None if self.pivot is None or settings.pivot is None else self.pivot._with(settings.pivot)
        return replace(self, settings=settings, pivot=pivot, steps_planned=True)

    def invert(
        self, images: Tensor, on_step: Callable[[int], None] | None = None
    ) -> list[Code | WranganError]:
        """Invert a batch (B, 3, S, S) in [-1, 1]: one code per image, on the CPU.

        The model's images are reduced by area averaging to S, which is at most their side.

        `on_step` is called after each step with its number. An image whose loss stops
        being finite gets a WranganError instead of a code; the others are not affected.
        Code.info holds the settings, the number of steps, and the distortion before (at the initial
        w, without offsets) and after.
        """
        model = self.model
        side = images.shape[-1]
        if images.shape[1:] != (3, side, side) or side > model.resolution:
            raise ValueError(f"images of shape {tuple(images.shape)} for a model of {model.resolution} px")
        inverter = self.within(images)
        with self.fitted_model.generator.cached_weights():
            return inverter._inverted(images.to(model.device), on_step)

    def invert_each(self, photos: Sequence[Tensor]) -> list[Code | WranganError]:
        """`invert` for photographs (3, S, S) of different sides, in order; equal sides form one batch."""
        codes: dict[int, Code | WranganError] = {}
        for places in by_side(photos):
            batch = torch.stack([photos[place] for place in places])
            codes |= zip(places, self.invert(batch), strict=True)
        return [codes[place] for place in range(len(photos))]

    def _inverted(self, images: Tensor, on_step: Callable[[int], None] | None) -> list[Code | WranganError]:
        settings = self.settings
        initial_w, records = self._start(images, on_step)
        # The pivot's steps come first, and count too.
        base = settings.total_steps - settings.loop_steps
        fit = self.fit(images, initial_w, lambda step: on_step(base + step) if on_step else None)
        before = fit.distortion(Variables(initial_w))
        variables, steps = METHOD_TABLE[settings.method](fit)
        codes = self._codes(fit, variables)
        for index, code in enumerate(codes):
            if isinstance(code, Code):
                code.info["steps"] = steps[index]
                code.info["distortion"] = {"before": before[index], **code.info["distortion"]}
                code.info.update(records[index])
        return codes

    def fit(
        self,
        images: Tensor,
        initial_w: Tensor,
        on_step: Callable[[int], None] = lambda _: None,
        features_at_once: int | None = None,
    ) -> Fit[Any]:
        """The problem for a method: images (B, 3, S, S), starting at initial_w (B, style_dim) or W+.

        features_at_once: number of images whose perceptual features are computed together (None: all).
        """
        return Fit[Any](
            self.fitted_model,
            self.settings,
            self.perceptual,
            images,
            initial_w,
            random_generator(self.settings.seed),
            predict=self.predict,
            on_step=on_step,
            cuda_graph=self.cuda_graph,
            watch=self.watch,
        ).with_target(features_at_once)

    def _start(
        self, images: Tensor, on_step: Callable[[int], None] | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The initial w and, per image, what to record about how it was found."""
        if self.pivot is None:
            return self.initial_w(images), [{} for _ in images]
        w, records = self.initial_w(images), []
        for index, found in enumerate(self.pivot.invert(images, on_step)):
            # As in the authors' code, the pivot's noise maps are dropped: the tuning uses the model's.
            w[index] = found.w.to(w) if isinstance(found, Code) else math.nan
            kept = found.info if isinstance(found, Code) else {}
            records.append(
                {"pivot": {name: kept[name] for name in ("method", "steps", "distortion") if kept}}
            )
        return w, records

    def _codes(self, fit: Fit, variables: Variables) -> list[Code | WranganError]:
        found = fit.offsets(variables)
        if self.powered is not None:
            found["epsilon"] = self.powered.to_original(found["epsilon"])
        # Rounded as in the file, so that the recorded distortion is that of the stored code.
        groups: dict[str, Any] = {
            g: {k: v.detach().half() for k, v in values.items()} for g, values in found.items()
        }
        stored = Variables(w=variables.w.detach(), **groups)
        after = replace(fit, model=self.model).distortion(stored)
        codes: list[Code | WranganError] = []
        for index in range(len(fit.images)):
            offsets = {g: {k: v[index].cpu() for k, v in values.items()} for g, values in groups.items()}
            parts = [stored.w[index], *(value for values in offsets.values() for value in values.values())]
            finite = all(bool(part.isfinite().all()) for part in parts)
            if not finite or not all(map(math.isfinite, after[index].values())):
                codes.append(WranganError(f"{self.settings.method} diverged: values are not finite"))
                continue
            info = {
                "model": self.model.name,
                "model_sha256": self.model.sha256,
                "method": self.settings.method,
                "settings": asdict(self.settings),
                "networks": network_files(self.model, self.settings),
                "perceptual": None if self.perceptual is None else self.perceptual.name,
                "seed": self.settings.seed,
                "side": fit.images.shape[-1],
                "distortion": {"after": after[index]},
            }
            codes.append(Code(stored.w[index].cpu(), info=info, **offsets))
        return codes


def resolved(settings: S, model: Model) -> S:
    """`settings` with all unset values filled in: those that suit the model's σ, the start of w, pti's
    threshold. UsageError for settings that conflict with those that the model names."""
    try:
        settings = replace(settings, init=settings.start).with_defaults(model.inversion)
    except ValueError as error:
        raise UsageError(f"{model.name}, by its config.json: {error}") from error
    if isinstance(settings, PtiSettings) and settings.stop_at is None:
        # The authors' threshold is for LPIPS; in the shift-tolerant distance every pivot is below 0.06.
        lpips = settings.value("perceptual_weight") > 0 and tuning_distance(settings, model).startswith(
            "lpips"
        )
        settings = replace(settings, stop_at=PTI_STOP if lpips else 0.0)
    return settings
