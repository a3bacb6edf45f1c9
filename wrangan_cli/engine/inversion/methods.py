"""What each method may move: the free variables of a batch, the penalty, the schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion import projector, pti
from wrangan_cli.engine.inversion.schedule import constant, projector_ramp, rise_of_offsets, warm_and_decay
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import StyledWeight
from wrangan_cli.engine.models.perceptual import PerceptualDistance
from wrangan_cli.engine.models.randomized import tunable_weights


@dataclass(frozen=True)
class Moment:
    """What a step of the loop is taken with."""

    model: Model
    settings: InversionSettings
    perceptual: PerceptualDistance | None
    rng: torch.Generator
    """For draws that are the same for every image."""
    share: float
    """Of the steps done, 0…1."""


def _one_rate(variables: Variables, lr: float) -> list[dict[str, Any]]:
    return [{"params": list(variables.free), "lr": lr}]


def _w_and_offsets(variables: Variables, settings: InversionSettings) -> list[dict[str, Any]]:
    """w in the first group, ε or δ in the second, if there are any."""
    betas = (0.9, settings.beta2)
    groups: list[dict[str, Any]] = [
        {"params": variables.free[:1], "lr": settings.value("lr"), "betas": betas}
    ]
    if variables.free[1:]:
        lr = settings.value("lr") if settings.epsilon_lr is None else settings.epsilon_lr
        groups.append({"params": variables.free[1:], "lr": lr, "betas": betas})
    return groups


def offsets_penalty(moment: Moment, variables: Variables) -> Tensor:
    """α‖ε‖² (or α‖δ‖²) per image: (B,)."""
    return moment.settings.value("alpha") * squared_norm(variables, moment.settings.penalty)


def squared_norm(variables: Variables, reduction: str) -> Tensor:
    """‖ε‖² (or ‖δ‖²) per image, over all weights: (B,); `sum`, or `mean` over the weights."""
    offsets = [*variables.epsilon.values(), *variables.delta.values()]
    if not offsets:
        return variables.w.new_zeros(variables.w.shape[0])
    total = _SquareSum.apply(*offsets)
    if reduction == "mean":
        total = total / sum(offset[0].numel() for offset in offsets)
    return total


class _SquareSum(torch.autograd.Function):
    """Σ x² per image over all tensors, (B, …) → (B,): passes over each once, forward and back
    (`square().sum()`: five times)."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        norms = [torch.linalg.vector_norm(x.flatten(1), dim=1) for x in tensors]
        return torch.stack(norms).square().sum(dim=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        twice = (2 * grad)[:, None, None, None, None]
        return tuple(x * twice for x in ctx.saved_tensors)


@dataclass(frozen=True)
class Method:
    """One way of inverting, as the shared loop needs it."""

    start: Callable[[Model, Tensor, InversionSettings], Variables]
    """(model, w (B, style_dim), settings) → variables."""
    schedule: Callable[[InversionSettings, float], float] = constant
    """(settings, share of the steps done, 0…1) → factor of the learning rates."""
    later: Callable[[InversionSettings, float], float] = constant
    """The same, of all groups but the first: a factor beside that one."""
    groups: Callable[[Variables, InversionSettings], list[dict[str, Any]]] = _w_and_offsets
    """(variables, settings) → Adam's groups: all that is free, with the full learning rates."""
    penalty: Callable[[Moment, Variables], Tensor] = offsets_penalty
    """What the loss has beside the data term, per image: (B,)."""
    drawn_w: Callable[[Moment, Variables], Tensor] | None = None
    """w as a step draws it, where it is not w itself."""
    after_step: Callable[[Model, Variables], None] | None = None
    """What a step ends with, in place."""

    def factors(self, settings: InversionSettings, share: float) -> tuple[float, float]:
        """Of the learning rate of the first group, and of all others', when `share` of the steps are done."""
        factor = self.schedule(settings, share)
        return factor, factor * self.later(settings, share)


def _wrangan(model: Model, w: Tensor, settings: InversionSettings) -> Variables:
    weights = model.generator.random_weights()
    if not weights:
        raise UsageError(
            f"model {model.name} has no random layers, which method wrangan needs: "
            "make some with `wrangan train randomize`, or use weight-tuning"
        )
    variables = Variables(w=w.clone())
    variables.epsilon = _small_offsets(weights, w, settings)
    variables.free = [variables.w, *variables.epsilon.values()]
    return variables


def _weight_tuning(model: Model, w: Tensor, settings: InversionSettings) -> Variables:
    variables = Variables(w=w.clone())
    variables.delta = _small_offsets(tunable_weights(model.generator), w, settings)
    variables.free = [variables.w, *variables.delta.values()]
    return variables


def _projector(start: Callable[[Model, Tensor, InversionSettings], Variables]) -> Method:
    return Method(
        start,
        projector_ramp,
        groups=lambda variables, settings: _one_rate(variables, settings.projection_lr),
        penalty=lambda moment, variables: (
            moment.settings.noise_weight * projector.noise_penalty(moment.model, variables)
        ),
        drawn_w=lambda moment, variables: projector.noisy_w(
            moment.model, moment.settings, variables.w, moment.share, moment.rng
        ),
        after_step=projector.normalise_noise,
    )


def _pti_penalty(moment: Moment, variables: Variables) -> Tensor:
    if moment.settings.pti_locality == 0:
        return variables.w.new_zeros(variables.w.shape[0])
    return pti.locality(moment.model, moment.settings, moment.perceptual, variables, moment.rng)


def _encoder(model: Model, w: Tensor, settings: InversionSettings) -> Variables:  # noqa: ARG001
    return Variables(w=w.clone())


def _small_offsets(
    weights: Mapping[str, StyledWeight], w: Tensor, settings: InversionSettings
) -> dict[str, Tensor]:
    """N(0, epsilon_init²) of one seed for each image of w (B, …), the same for all: no image depends on
    its batch."""
    rng = random_generator(settings.seed)
    offsets = {}
    for name, weight in weights.items():
        draw = torch.randn(weight.shape, generator=rng) * settings.epsilon_init
        offsets[name] = draw.to(w)[None].repeat(len(w), 1, 1, 1, 1)
    return offsets


METHOD_TABLE: dict[str, Method] = {
    "wrangan": Method(_wrangan, warm_and_decay, rise_of_offsets),
    "weight-tuning": Method(_weight_tuning, warm_and_decay, rise_of_offsets),
    "sg2-w": _projector(projector.start_w),
    "sg2-w-plus": _projector(projector.start_w_plus),
    "pti": Method(
        pti.start,
        groups=lambda variables, settings: _one_rate(variables, settings.pti_lr),
        penalty=_pti_penalty,
    ),
    "encoder": Method(_encoder),
    # Their variables come from a network (trained.py); nothing is free.
    **{name: Method(_encoder) for name in ("e4e", "restyle", "hyperstyle")},
}
