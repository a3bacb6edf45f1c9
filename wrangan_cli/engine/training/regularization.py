"""StyleGAN2's two lazy regularisers: R1 for D, path lengths for G."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import mean_over_ranks
from wrangan_cli.engine.training.adversarial_state import AdversarialState, Losses
from wrangan_cli.engine.training.losses import path_lengths, r1_penalty


def regularise_discriminator(state: AdversarialState, reals: Sequence[Tensor]) -> dict[str, Tensor]:
    """Take a step of StyleGAN2's D on `gradient_penalties`, if due; returns what to report."""
    if not state.native or state.steps % state.settings.r1_interval:
        return {}
    return state.minimise(gradient_penalties(state, reals), *state.optimizers_d[:1])


def regularise_generator(state: AdversarialState) -> dict[str, Tensor]:
    """Take a step of G on `path_length_penalties`, if due; returns what to report."""
    settings = state.settings
    if settings.path_length_weight <= 0 or state.steps % settings.path_length_interval:
        return {}
    report = state.minimise(path_length_penalties(state), state.optimizer_g)
    return report | {"path_length": state.path_mean}


def gradient_penalties(state: AdversarialState, reals: Sequence[Tensor]) -> Losses:
    """γ/2 · r1_interval · R1 of the micro-batches `reals` (b, 3, R, R)."""
    weight = state.settings.r1_gamma / 2 * state.settings.r1_interval
    assert state.discriminator is not None
    augment = state.augmentation()
    for part, real in enumerate(reals):
        images = real.detach().requires_grad_(True)
        penalty = r1_penalty(state.discriminator(augment(images, part)), images)
        yield penalty * weight, {"loss/r1": penalty.detach()}


def path_length_penalties(state: AdversarialState) -> Losses:
    """The squared distance of the path lengths of half a batch from their moving mean; updates the mean."""
    parts = state.shards.half_parts
    side, colours = state.generator.config.resolution, state.generator.config.image_channels
    inputs = state.sample_inputs(half=True)
    noise = state.streams.normal(state.shards.half, colours, side, side)

    def lengths(part: int) -> Tensor:
        given = inputs[part]
        w = state.map_to_w(given)
        images = state.generator.synthesis(w, epsilon=given.epsilon, noise=given.noise)
        return path_lengths(images, w, noise[parts[part].to(state.device)])

    # The mean to which the lengths are pulled includes all of them. With micro-batches they
    # are measured once beforehand, since their graphs would not fit into memory together.
    whole = lengths(0) if len(parts) == 1 else None
    measured = [lengths(part).detach() for part in range(len(parts))] if whole is None else [whole.detach()]
    mean = mean_over_ranks(torch.cat(measured).mean())
    state.path_mean = state.path_mean.lerp(mean.to(state.path_mean.dtype), 0.01)
    weight = state.settings.path_length_weight * state.settings.path_length_interval
    for part in range(len(parts)):
        current = lengths(part) if whole is None else whole
        penalty = (current - state.path_mean).square().mean()
        yield penalty * weight, {"loss/path_length": penalty.detach()}
