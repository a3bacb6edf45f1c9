"""The one optimisation loop that every method runs in (paper, Algorithm 1).

All images of a batch advance together, and none feels the others: losses are summed
over the batch, Adam acts on each number alone, and ε starts from the same draw.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.codes import Code
from wrangan_cli.engine.errors import UsageError, WranganError
from wrangan_cli.engine.inversion.methods import METHOD_TABLE, Variables
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.encoders import Encoder, load_encoder
from wrangan_cli.engine.perceptual import PerceptualDistance, for_loss, load_perceptual


@dataclass(frozen=True)
class Inverter:
    """Model, encoder and loss, loaded once and used for many batches."""

    model: Model
    settings: InversionSettings
    encoder: Encoder | None
    perceptual: PerceptualDistance | None

    @classmethod
    def load(cls, model: Model, settings: InversionSettings) -> "Inverter":
        """Load what `settings` ask for; raises UsageError if the model lacks it."""
        settings = resolved(settings, model)
        encoder = load_encoder(model) if settings.init == "encoder" else None
        perceptual = None
        if settings.perceptual_weight > 0:
            perceptual = load_perceptual(settings.perceptual or model.perceptual, model.device)
        if settings.method == "encoder" and encoder is None:
            raise UsageError("method encoder needs init encoder")
        return cls(model, settings, encoder, perceptual)

    def initial_w(self, images: Tensor) -> Tensor:
        """w from the encoder, or the mean of W: (B, style_dim)."""
        if self.encoder is None:
            return self.model.w_mean.expand(images.shape[0], -1).clone()
        with torch.no_grad():
            return self.encoder(images)

    def invert(
        self, images: Tensor, on_step: Callable[[int], None] | None = None
    ) -> list[Code | WranganError]:
        """Invert a batch (B, 3, R, R) in [-1, 1]: one code per image, on the CPU.

        `on_step` is called after each step with its number. An image whose loss stops
        being finite gets a WranganError instead of a code; the others are not affected.
        Code.info holds the settings and the distortion before (at the start, ε = 0) and after.
        """
        model, settings = self.model, self.settings
        if images.shape[1:] != (3, model.resolution, model.resolution):
            raise ValueError(f"images of shape {tuple(images.shape)} for a model of {model.resolution} px")
        images = images.to(model.device)
        method = METHOD_TABLE[settings.method]
        start = self.initial_w(images)
        variables = method.start(model, start, settings)
        target = None if self.perceptual is None else self._features(images)
        before = self._distortion(Variables(w=start), images, target)
        steps = settings.steps if variables.free else 0
        with _only_gradients_of(variables):
            optimizer = _adam(variables, settings) if steps else None
            for step in range(steps):
                assert optimizer is not None
                optimizer.param_groups[0]["lr"] = method.learning_rate(settings, step / steps)
                optimizer.zero_grad(set_to_none=True)
                self._loss(variables, images, target).sum().backward()
                optimizer.step()
                if on_step:
                    on_step(step + 1)
        return self._codes(variables, images, target, before, steps)

    def _draw(self, variables: Variables) -> Tensor:
        return self.model.generator.synthesis(
            variables.w, epsilon=variables.epsilon, delta=variables.delta, noise="const"
        )

    def _features(self, images: Tensor) -> list[Tensor]:
        assert self.perceptual is not None
        with torch.no_grad():
            return self.perceptual.features(for_loss(images, self.settings.loss_side))

    def _loss(self, variables: Variables, images: Tensor, target: list[Tensor] | None) -> Tensor:
        """2·L2 + LPIPS + α‖ε‖² per image: (B,)."""
        settings = self.settings
        drawn = self._draw(variables)
        loss = settings.l2_weight * (drawn - images).square().mean(dim=(1, 2, 3))
        if self.perceptual is not None and target is not None:
            features = self.perceptual.features(for_loss(drawn, settings.loss_side))
            loss = loss + settings.perceptual_weight * self.perceptual.distance(features, target)
        return loss + settings.alpha * squared_norm(variables, settings.penalty)

    @torch.no_grad()
    def _distortion(
        self, variables: Variables, images: Tensor, target: list[Tensor] | None
    ) -> list[dict[str, float]]:
        """Per image: mse on [-1, 1] and, where it is the loss, the perceptual distance at its size."""
        drawn = self._draw(variables)
        columns = {"mse": (drawn - images).square().mean(dim=(1, 2, 3))}
        if self.perceptual is not None and target is not None:
            features = self.perceptual.features(for_loss(drawn, self.settings.loss_side))
            columns[f"{self.perceptual.name} (loss)"] = self.perceptual.distance(features, target)
        return [{name: values[i].item() for name, values in columns.items()} for i in range(len(images))]

    def _codes(
        self,
        variables: Variables,
        images: Tensor,
        target: list[Tensor] | None,
        before: list[dict[str, float]],
        steps: int,
    ) -> list[Code | WranganError]:
        # Rounded as the file stores them, so that the stated distortion is the file's.
        stored = Variables(
            w=variables.w.detach(),
            epsilon={name: value.detach().half() for name, value in variables.epsilon.items()},
            delta={name: value.detach().half() for name, value in variables.delta.items()},
        )
        after = self._distortion(stored, images, target)
        codes: list[Code | WranganError] = []
        for index in range(len(images)):
            epsilon = {name: value[index].cpu() for name, value in stored.epsilon.items()}
            delta = {name: value[index].cpu() for name, value in stored.delta.items()}
            parts = [stored.w[index], *epsilon.values(), *delta.values()]
            finite = all(bool(part.isfinite().all()) for part in parts)
            if not finite or not all(map(math.isfinite, after[index].values())):
                codes.append(WranganError("the optimisation diverged (values that are not finite)"))
                continue
            info = {
                "model": self.model.name,
                "model_sha256": self.model.sha256,
                "method": self.settings.method,
                "settings": asdict(self.settings),
                "perceptual": None if self.perceptual is None else self.perceptual.name,
                "steps": steps,
                "seed": self.settings.seed,
                "distortion": {"before": before[index], "after": after[index]},
            }
            codes.append(Code(stored.w[index].cpu(), epsilon, delta, info))
        return codes


def resolved(settings: InversionSettings, model: Model) -> InversionSettings:
    """`settings` with what they leave to the model: the learning rate that suits its σ."""
    if settings.method == "wrangan" and settings.epsilon_lr is None:
        return replace(settings, epsilon_lr=model.epsilon_lr)
    return settings


def _adam(variables: Variables, settings: InversionSettings) -> torch.optim.Adam:
    """Adam over the free variables: w in the first group, ε or δ in the second, if there are any."""
    groups: list[dict[str, Any]] = [{"params": variables.free[:1]}]
    if variables.free[1:]:
        lr = settings.lr if settings.epsilon_lr is None else settings.epsilon_lr
        groups.append({"params": variables.free[1:], "lr": lr})
    return torch.optim.Adam(groups, lr=settings.lr)


def squared_norm(variables: Variables, reduction: str) -> Tensor:
    """‖ε‖² (or ‖δ‖²) per image, over all layers: (B,); `sum`, or `mean` over the weights."""
    offsets = [*variables.epsilon.values(), *variables.delta.values()]
    if not offsets:
        return variables.w.new_zeros(variables.w.shape[0])
    total = torch.stack([offset.square().sum(dim=(1, 2, 3, 4)) for offset in offsets]).sum(dim=0)
    if reduction == "mean":
        total = total / sum(offset[0].numel() for offset in offsets)
    return total


@contextmanager
def _only_gradients_of(variables: Variables) -> Iterator[None]:
    for tensor in variables.free:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in variables.free:
            tensor.requires_grad_(False)
