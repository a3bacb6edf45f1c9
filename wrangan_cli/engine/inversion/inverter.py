"""The one optimisation loop that every method runs in (paper, Algorithm 1).

All images of a batch advance together, and none feels the others: losses are summed
over the batch, the optimizer moves each image by itself, and every draw is the same for every image.
An image that is done leaves the batch.
"""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.cores import on_cores
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.photographs import by_side, load_photograph
from wrangan_cli.engine.inversion import graph
from wrangan_cli.engine.inversion.batch import Batch, Target, not_all, not_yet
from wrangan_cli.engine.inversion.budget import planned
from wrangan_cli.engine.inversion.methods import METHOD_TABLE, Moment
from wrangan_cli.engine.inversion.optimizers import make_optimizer
from wrangan_cli.engine.inversion.pti import tuning_distance
from wrangan_cli.engine.inversion.schedule import settled_from
from wrangan_cli.engine.inversion.settings import PREDICTED, PTI_STOP, TUNING, InversionSettings
from wrangan_cli.engine.inversion.trained import Prediction, load_networks, network_files
from wrangan_cli.engine.inversion.variables import GROUPS, Variables
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import reduced
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss, load_perceptual
from wrangan_cli.engine.models.rendering import synthesize

_log = logging.getLogger("wrangan")
HELD_PIXELS = 512 * 512
"""Pixels of the model's images whose graph is in memory at a time on the CPU: one image from 512 px on."""


@dataclass(frozen=True)
class Inverter:
    """Model, encoder and loss, loaded once and used for many batches."""

    model: Model
    settings: InversionSettings
    encoder: Callable[[Tensor], Tensor] | None
    """From images to w (B, style_dim); None: w starts at the mean of W."""
    perceptual: PerceptualDistance | None
    pivot: "Inverter | None" = None
    """What finds the w at which pti tunes; None: w is where it starts."""
    predict: Prediction | None = None
    """The network of a method that does not optimise (trained.py)."""
    on_plan: bool = False
    """Whether the settings' steps are already those that its seconds allow."""
    cuda_graph: bool = False
    """Whether the steps are replays of a captured CUDA graph (graph.py)."""

    @classmethod
    def load(cls, model: Model, settings: InversionSettings, cuda_graph: bool = False) -> "Inverter":
        """Load what `settings` ask for; raises UsageError if the model lacks it, or if `cuda_graph` is asked
        for where steps cannot be captured."""
        settings = resolved(settings, model)
        encoder, predict = load_networks(model, settings)
        perceptual, own = None, settings.perceptual or model.perceptual
        if settings.value("perceptual_weight") > 0:
            name = tuning_distance(settings, model) if settings.method == "pti" else own
            try:
                perceptual = load_perceptual(name, model.device)
            except WranganError as error:
                if isinstance(error, UsageError) or settings.method not in PREDICTED:
                    raise
                _log.warning(
                    "%s needs no perceptual distance; its codes do not state it (%s)", settings.method, error
                )
        pivot = None
        if settings.pivot is not None:
            same = perceptual is None or perceptual.name == own
            pivot_loss = perceptual if same else load_perceptual(own, model.device)
            pivot = cls(model, settings.pivot, encoder, pivot_loss)
        if cuda_graph and (cause := graph.why_not_captured(settings, model.device)):
            raise UsageError(f"a CUDA graph was asked for, but {cause}")
        return cls(model, settings, encoder, perceptual, pivot, predict, cuda_graph=cuda_graph)

    def load_photo(self, path: Path) -> Tensor:
        """A photograph as `invert` takes it: (3, S, S) in [-1, 1], the central square. S is `settings.size`
        or the photograph's own side, and at most the model's. Raises FileError as `load_image` does."""
        return load_photograph(path, self.model.resolution, self.settings.size)

    def initial_w(self, images: Tensor) -> Tensor:
        """w from the encoder, or the mean of W: (B, style_dim)."""
        if self.encoder is None:
            return self.model.w_mean.expand(images.shape[0], -1).clone()
        with torch.no_grad():
            return self.encoder(images)

    def within(self, images: Tensor) -> "Inverter":
        """The inverter with the steps that `settings.seconds` allows for such a batch, by a trial; itself
        where no seconds are set."""
        if self.on_plan or self.settings.seconds is None:
            return self

        def trial(settings: InversionSettings, on_step: Callable[[int], None]) -> None:
            self._with(settings).invert(images, on_step)

        return self._with(planned(self.settings, trial, len(images)))

    def _with(self, settings: InversionSettings) -> "Inverter":
        pivot = None if self.pivot is None or settings.pivot is None else self.pivot._with(settings.pivot)
        return replace(self, settings=settings, pivot=pivot, on_plan=True)

    def invert(
        self, images: Tensor, on_step: Callable[[int], None] | None = None
    ) -> list[Code | WranganError]:
        """Invert a batch (B, 3, S, S) in [-1, 1]: one code per image, on the CPU.

        The model's images are reduced by area to S, which is at most their side.

        `on_step` is called after each step with its number. An image whose loss stops
        being finite gets a WranganError instead of a code; the others are not affected.
        Code.info holds the settings, the steps that were done, and the distortion before (at the
        start, without offsets) and after.
        """
        model = self.model
        side = images.shape[-1]
        if images.shape[1:] != (3, side, side) or side > model.resolution:
            raise ValueError(f"images of shape {tuple(images.shape)} for a model of {model.resolution} px")
        within = self.within(images)
        with model.generator.cached_weights():
            return within._inverted(images.to(model.device), on_step)

    def invert_each(self, photos: Sequence[Tensor]) -> list[Code | WranganError]:
        """`invert` for photographs (3, S, S) of several sides, in their order; those of one side together."""
        codes: dict[int, Code | WranganError] = {}
        for places in by_side(photos):
            batch = torch.stack([photos[place] for place in places])
            codes |= zip(places, self.invert(batch), strict=True)
        return [codes[place] for place in range(len(photos))]

    def _inverted(self, images: Tensor, on_step: Callable[[int], None] | None) -> list[Code | WranganError]:
        model, settings = self.model, self.settings
        start, abouts = self._start(images, on_step)
        if self.predict is None:
            variables = METHOD_TABLE[settings.method].start(model, start, settings)
        else:
            variables = self.predict(images, start)
        target = self.features(images)
        before = self.distortion(Variables(w=start), images, target)
        # Steps of the pivot come before, and count.
        base = settings.total_steps - settings.loop_steps
        variables, steps = self._optimised(
            variables, images, target, lambda step: on_step(base + step) if on_step else None
        )
        codes = self._codes(variables, images, target)
        for index, code in enumerate(codes):
            if isinstance(code, Code):
                code.info["steps"] = steps[index]
                code.info["distortion"] = {"before": before[index], **code.info["distortion"]}
                code.info.update(abouts[index])
        return codes

    def _start(
        self, images: Tensor, on_step: Callable[[int], None] | None
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """w to begin with, and what to record of how it was found, per image."""
        if self.pivot is None:
            return self.initial_w(images), [{} for _ in images]
        w, abouts = self.initial_w(images), []
        for index, found in enumerate(self.pivot.invert(images, on_step)):
            # Its noise maps are not kept, as in the authors' code: the tuning has the model's.
            w[index] = found.w.to(w) if isinstance(found, Code) else math.nan
            kept = found.info if isinstance(found, Code) else {}
            abouts.append({"pivot": {name: kept[name] for name in ("method", "steps", "distortion") if kept}})
        return w, abouts

    def _optimised(
        self, variables: Variables, images: Tensor, target: Target, on_step: Callable[[int], None]
    ) -> tuple[Variables, list[int]]:
        """The variables after the steps, and how many steps each image took."""
        settings, method = self.settings, METHOD_TABLE[self.settings.method]
        total = settings.loop_steps if variables.free else 0
        batch = Batch(variables, images, target, torch.arange(len(images)), [total] * len(images))
        if total == 0:
            return variables, batch.steps
        for tensor in variables.free:
            tensor.requires_grad_(True)
        if self.cuda_graph:
            self._replay(batch, total, on_step)
            return batch.finished(), batch.steps
        groups, side = method.groups(variables, settings), images.shape[-1]
        optimizer = make_optimizer(settings, groups, lambda: self._draw(variables, side, side))
        rng = random_generator(settings.seed)
        for step in range(total):
            moment = Moment(self.model, settings, self.perceptual, rng, step / total)
            optimizer.zero_grad()
            loss, stay = self._graded_loss(batch, moment)
            if settings.plateau and moment.share >= settled_from(settings):
                stay = batch.falling(loss, settings.plateau, stay)
            if stay is not None:
                batch.let_go(~stay, step, optimizer)
                loss = loss[stay]
                if len(batch.rows) == 0:
                    return batch.finished(), batch.steps
            optimizer.step(loss, method.factors(settings, step / total))
            if method.after_step is not None:
                method.after_step(self.model, batch.variables)
            on_step(step + 1)
        optimizer.settle()
        return batch.finished(), batch.steps

    def _graded_loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor | None]:
        """The loss of each image (b,), its gradients left in the free variables, and which images have not
        reached `stop_at`, if there is one: the others have no gradient."""
        count, at_once = len(batch.rows), self.at_once
        if count <= at_once:
            loss, distance = self.loss(batch.variables, batch.images, batch.target, moment)
            stay = not_yet(distance, self.settings.stop_at)
            going = loss if stay is None else loss[stay]
            if len(going):
                going.sum().backward()
            return loss, stay
        for tensor in batch.variables.free:
            tensor.grad = torch.zeros_like(tensor)
        state = moment.rng.get_state()

        def computed(first: int) -> tuple[Tensor, Tensor]:
            # The same draws for every image, as if all were computed together.
            moment.rng.set_state(state)
            loss, stay = self._graded_loss(batch.part(slice(first, first + at_once)), moment)
            return loss.detach(), torch.ones_like(loss, dtype=torch.bool) if stay is None else stay

        # Other methods draw numbers in a step, or change the network for each image.
        each = on_cores if self.settings.method in TUNING else map
        losses, stays = zip(*each(computed, range(0, count, at_once)), strict=True)
        return torch.cat(losses), not_all(torch.cat(stays))

    @property
    def at_once(self) -> int:
        """Images whose graph is in memory at a time: on the CPU large images gain nothing from company."""
        if self.model.device.type != "cpu":
            return sys.maxsize
        return max(1, HELD_PIXELS // self.model.resolution**2)

    def _replay(self, batch: Batch, total: int, on_step: Callable[[int], None]) -> None:
        """The steps of Adam as replays of one captured step."""
        settings, method = self.settings, METHOD_TABLE[self.settings.method]
        # What depends on the moment is not captured: `why_not_captured`.
        moment = Moment(self.model, settings, self.perceptual, random_generator(settings.seed), 0.0)
        groups = method.groups(batch.variables, settings)
        rates = [group["lr"] for group in groups]
        optimizer = graph.capturable_adam(groups, self.model.device)
        step = graph.gradient_step(
            optimizer, lambda: self.loss(batch.variables, batch.images, batch.target, moment)[0]
        )
        with graph.Steps(step, lambda: graph.changed_by(optimizer)) as take:
            for index in range(total):
                first, later = method.factors(settings, index / total)
                factors = [first, *[later] * (len(rates) - 1)]
                graph.set_rates(optimizer, [r * f for r, f in zip(rates, factors, strict=True)])
                take()
                on_step(index + 1)

    def _draw(self, variables: Variables, side: int, photo_side: int) -> Tensor:
        """The images (B, 3, side, side) for photographs of `photo_side` px."""
        offsets = self.offsets(variables, photo_side)
        return synthesize(self.model.generator, variables.w, **offsets, side=side)

    def offsets(self, variables: Variables, photo_side: int) -> dict[str, Any]:
        """Those of `variables` by group; ε and δ of what such photographs do not show are 0."""
        offsets: dict[str, Any] = {group: getattr(variables, group) for group in GROUPS}
        if self.settings.unseen or self.settings.method not in TUNING:
            return offsets
        weights = self.model.generator.weights()
        for group in ("epsilon", "delta"):
            offsets[group] = {
                name: _first(value, weights[name].shown(photo_side)) for name, value in offsets[group].items()
            }
        return offsets

    def features(self, images: Tensor) -> Target:
        """What the perceptual distance of the loss compares, of images (B, 3, S, S); None without one."""
        if self.perceptual is None:
            return None
        with torch.no_grad():
            return self.perceptual.features(for_loss(images, self.settings.distance_side))

    def loss(
        self, variables: Variables, images: Tensor, target: Target, moment: Moment
    ) -> tuple[Tensor, Tensor | None]:
        """2·L2 + LPIPS + α‖ε‖² (or the method's own penalty) per image, and the LPIPS in it: (B,)."""
        loss, distance = self.data_loss(variables, images, target, moment)
        return loss + METHOD_TABLE[self.settings.method].penalty(moment, variables), distance

    def data_loss(
        self, variables: Variables, images: Tensor, target: Target, moment: Moment
    ) -> tuple[Tensor, Tensor | None]:
        """2·L2 + LPIPS per image, and the LPIPS in it: (B,). target: of `images`, by `features`."""
        settings, method = self.settings, METHOD_TABLE[self.settings.method]
        shown = (
            variables if method.drawn_w is None else replace(variables, w=method.drawn_w(moment, variables))
        )
        photo_side = images.shape[-1]
        if moment.share < settings.coarse:
            images = reduced(images, settings.loss_side)
        drawn = self._draw(shown, images.shape[-1], photo_side)
        loss = settings.data_l2_weight * (drawn - images).square().mean(dim=(1, 2, 3))
        distance = None
        if self.perceptual is not None and target is not None:
            features = self.perceptual.features(for_loss(drawn, settings.distance_side))
            distance = self.perceptual.distance(features, target)
            loss = loss + settings.value("perceptual_weight") * distance
        return loss, distance

    @torch.no_grad()
    def distortion(self, variables: Variables, images: Tensor, target: Target) -> list[dict[str, float]]:
        """Per image: mse on [-1, 1] and, where it is the loss, the perceptual distance at its size."""
        drawn = self._draw(variables, images.shape[-1], images.shape[-1])
        columns = {"mse": (drawn - images).square().mean(dim=(1, 2, 3))}
        if self.perceptual is not None and target is not None:
            features = self.perceptual.features(for_loss(drawn, self.settings.distance_side))
            columns[f"{self.perceptual.name} (loss)"] = self.perceptual.distance(features, target)
        return [{name: values[i].item() for name, values in columns.items()} for i in range(len(images))]

    def _codes(self, variables: Variables, images: Tensor, target: Target) -> list[Code | WranganError]:
        # Rounded as the file stores them, so that the stated distortion is the file's.
        groups: dict[str, Any] = {
            g: {k: v.detach().half() for k, v in values.items()}
            for g, values in self.offsets(variables, images.shape[-1]).items()
        }
        stored = Variables(w=variables.w.detach(), **groups)
        after = self.distortion(stored, images, target)
        codes: list[Code | WranganError] = []
        for index in range(len(images)):
            own = {g: {k: v[index].cpu() for k, v in values.items()} for g, values in groups.items()}
            parts = [stored.w[index], *(value for values in own.values() for value in values.values())]
            finite = all(bool(part.isfinite().all()) for part in parts)
            if not finite or not all(map(math.isfinite, after[index].values())):
                codes.append(WranganError(f"{self.settings.method} gave values that are not finite"))
                continue
            info = {
                "model": self.model.name,
                "model_sha256": self.model.sha256,
                "method": self.settings.method,
                "settings": asdict(self.settings),
                "networks": network_files(self.model, self.settings),
                "perceptual": None if self.perceptual is None else self.perceptual.name,
                "seed": self.settings.seed,
                "side": images.shape[-1],
                "distortion": {"after": after[index]},
            }
            codes.append(Code(stored.w[index].cpu(), info=info, **own))
        return codes


def _first(offsets: Tensor, outputs: int) -> Tensor:
    """offsets (B, O, I, k, k) of the first `outputs` channels, and 0 for the others."""
    if outputs == offsets.shape[1]:
        return offsets
    rest = offsets.new_zeros((len(offsets), offsets.shape[1] - outputs, *offsets.shape[2:]))
    return torch.cat([offsets[:, :outputs], rest], dim=1)


def resolved(settings: InversionSettings, model: Model) -> InversionSettings:
    """`settings` with what they leave to the model or the method: what suits the model's σ, where w
    starts, the threshold of pti. UsageError for settings that do not go with what the model names."""
    try:
        settings = replace(settings, init=settings.start).with_defaults(model.inversion)
    except ValueError as error:
        raise UsageError(f"{model.name}, by its config.json: {error}") from error
    if settings.method == "pti" and settings.stop_at is None:
        # The authors' threshold is one of LPIPS; below 0.06 of the shift-tolerant distance is every pivot.
        lpips = settings.value("perceptual_weight") > 0 and tuning_distance(settings, model).startswith(
            "lpips"
        )
        settings = replace(settings, stop_at=PTI_STOP if lpips else 0.0)
    return settings
