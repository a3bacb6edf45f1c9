"""Checkpoints of rosinality/stylegan2-pytorch (`.pt`), in both directions.

Training files hold `g`, `d`, `g_ema`, optimisers and `args`; converted files `g_ema`,
`latent_avg` and sometimes `d`; other tools wrap the same names differently (`unwrapping`). This suite uses
the same state-dict keys.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.checkpoints.records import (
    Checkpoint,
    NotConvertible,
    brief,
    collect,
    make_config,
    shape_of,
    shapes,
    taps_of_kernel,
)
from wrangan_cli.engine.checkpoints.unwrapping import ENCODERS, Contents, Network, discriminator_of
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

KIND = "rosinality"
LR_MULTIPLIER = 0.01
"""Learning-rate multiplier of the mapping network: a constant in rosinality's class, not in the file."""
DECODER = "decoder"
"""Key of the generator in an encoder's file."""
STD_KEY = "wrangan_std"
"""Extra entry of files written here: σ of the random layers, which rosinality's format lacks."""


def from_contents(contents: Contents, network: Network) -> Checkpoint:
    """A generator with rosinality's names, and the discriminator and mean of w of its file.

    Raises NotConvertible: tensors that are missing, another network.
    """
    label, way, tensors = network.label, network.place.way, dict(network.tensors)
    arch = (contents.settings(way, "args") or {}).get("arch", "stylegan2")
    if arch != "stylegan2":
        raise NotConvertible(f"its architecture is {brief(arch)}, not 'stylegan2'")
    if any(".iwt." in name or ".dwt." in name for name in tensors):
        raise NotConvertible("its architecture is 'swagan', not 'stylegan2'")
    std = contents.part_near(way, STD_KEY)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{STD_KEY}.")}
    tensors |= {f"{layer}.conv.std": value for layer, value in std.items()}
    config = _config(label, tensors, len(std), _lr_multiplier(network))
    wanted = shapes(StyleGAN2Generator, config)
    notes = _complete_noise_maps(tensors, wanted)
    weights = collect(label, tensors, {name: name for name in wanted}, wanted, _is_kernel)

    w_mean, remarks = read_mean(contents.near(way, "latent_avg"), config.style_dim)
    notes += [f"{remark}: it was measured" for remark in remarks]
    found = None
    try:
        other = discriminator_of(contents, network)
        if other is None:
            notes.append("the file has no discriminator")
        else:
            found = _discriminator(other, config)
    except NotConvertible as reason:
        notes.append(f"discriminator left out: {reason}")
    encoder = bool(contents.ways_to(*ENCODERS)) and way[-1:] == (DECODER,)
    return Checkpoint(KIND, config, weights, found, w_mean, notes, encoder)


def to_contents(
    generator: StyleGAN2Generator, w_mean: Tensor, discriminator: Discriminator | None
) -> tuple[dict[str, Any], list[str]]:
    """The contents to `torch.save` for rosinality's classes, and notes on what they cannot hold.

    The clamp is left out; the caller must check whether that matters.
    """
    config, notes = generator.config, []
    state = {name: tensor.detach().cpu().clone() for name, tensor in generator.state_dict().items()}
    std = {k.removesuffix(".conv.std"): state.pop(k) for k in list(state) if k.endswith(".conv.std")}
    if config.mapping_lr_multiplier != LR_MULTIPLIER:
        # The multiplier only scales the stored numbers: store them at rosinality's scale.
        for name in state:
            if name.startswith("style."):
                state[name] = state[name] * (config.mapping_lr_multiplier / LR_MULTIPLIER)
        notes.append("the mapping network was rescaled to rosinality's learning-rate multiplier 0.01")
    contents: dict[str, Any] = {"g_ema": state, "latent_avg": w_mean.detach().cpu().clone()}
    if std:
        contents[STD_KEY] = std
        notes.append(
            f"σ of {len(std)} layers is stored in {STD_KEY!r}, which rosinality's code does not read"
        )
    if config.channels not in [rosinality_channels(config.resolution, m) for m in (0.5, 1, 2, 4)]:
        notes.append(
            "the channel counts match no channel_multiplier: rosinality's table must be changed to load it"
        )
    if discriminator is not None and config.stddev_group == 4:
        contents["d"] = {k: v.detach().cpu().clone() for k, v in discriminator.state_dict().items()}
    elif discriminator is not None:
        notes.append(
            f"discriminator left out: its groups have {config.stddev_group or 'all'} images, rosinality's 4"
        )
    return contents, notes


def without_clamp(generator: StyleGAN2Generator) -> StyleGAN2Generator:
    """A copy whose layers do not clamp, as rosinality's do not."""
    copy = StyleGAN2Generator(replace(generator.config, conv_clamp=None))
    copy.load_state_dict(generator.state_dict())
    return copy.eval().requires_grad_(False)


def _lr_multiplier(network: Network) -> float:
    """The multiplier of the mapping network, which pickled modules record and state dicts do not."""
    layers = [a for path, a in network.attributes.items() if path.startswith("style.") and "lr_mul" in a]
    stated = {float(attributes["lr_mul"]) for attributes in layers} or {LR_MULTIPLIER}
    if len(stated) > 1:
        raise NotConvertible(f"{network.label}: lr_mul differs between the layers of its mapping network")
    return stated.pop()


def _config(
    label: str, tensors: Mapping[str, Tensor], randomized: int, lr_multiplier: float
) -> StyleGAN2Config:
    channels = {4: shape_of(label, tensors, "conv1.conv.weight", 5)[1]}
    size = 8
    while any(name.startswith(f"convs.{2 * int(math.log2(size)) - 6}.") for name in tensors):
        index = 2 * int(math.log2(size)) - 5
        channels[size] = shape_of(label, tensors, f"convs.{index}.conv.weight", 5)[1]
        size *= 2
    kernels = [tensor for name, tensor in tensors.items() if _is_kernel(name)]
    taps = {taps_of_kernel(kernel) for kernel in kernels} or {(1.0, 3.0, 3.0, 1.0)}
    if len(taps) > 1:
        raise NotConvertible(f"{label}: its resampling filters differ")
    layers = {name.split(".")[1] for name in tensors if name.startswith("style.")}
    return make_config(
        size // 2,
        channels,
        shape_of(label, tensors, "conv1.conv.modulation.weight", 2)[1],
        len(layers),
        lr_multiplier,
        taps=taps.pop(),
        randomized_layers=randomized,
    )


def _discriminator(network: Network, config: StyleGAN2Config) -> dict[str, Tensor]:
    label, tensors = network.label, network.tensors
    kernels = [tensor for name, tensor in tensors.items() if _is_kernel(name)]
    if {taps_of_kernel(kernel) for kernel in kernels} - {config.fir_taps}:
        raise NotConvertible(f"{label} has another resampling filter than the generator")
    wanted = shapes(Discriminator, config)
    return collect(label, tensors, {name: name for name in wanted}, wanted, _is_kernel)


def _complete_noise_maps(tensors: dict[str, Tensor], wanted: Mapping[str, torch.Size]) -> list[str]:
    """Sample noise maps, in order, for the oldest files of the repository, which have none."""
    maps = [name for name in wanted if name.startswith("noises.")]
    if any(name in tensors for name in maps):
        return []
    rng = random_generator(0)
    tensors |= {name: torch.randn(wanted[name], generator=rng) for name in maps}
    return ["the file has no noise maps: they were sampled with seed 0"]


def read_mean(value: object, style_dim: int, strict: bool = False) -> tuple[Tensor | None, list[str]]:
    """`latent_avg`: (style_dim,), from equal rows; None if it cannot be used, and why.

    value: (style_dim,) or (latents, style_dim) of any float type; None if the file has none. strict:
    different rows raise NotConvertible, since an encoder needs them unchanged.
    """
    if value is None:
        return None, ["the file has no mean of w (latent_avg)"]
    if not isinstance(value, Tensor) or value.shape[-1:] != (style_dim,) or not value.isfinite().all():
        return None, [f"the file's mean of w (latent_avg) is not {style_dim} finite numbers"]
    rows = value.reshape(-1, style_dim).float()
    if not torch.equal(rows, rows[:1].expand_as(rows)):
        if strict:
            raise NotConvertible("latent_avg differs from layer to layer")
        return None, ["the file's mean of w (latent_avg) differs from layer to layer"]
    return rows[0].contiguous(), []


def _is_kernel(name: str) -> bool:
    return name.endswith(".kernel")
