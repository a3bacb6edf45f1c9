"""Names of the tensors in published encoders: name in this suite → name in the file."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.models.encoders import Hypernet, StyleEncoder
from wrangan_cli.engine.models.encoders.blocks import ResidualSEBlock

STEM = 3
"""Layers before the first block in this suite's bodies."""
_NORM = ("weight", "bias", "running_mean", "running_var")
_IR_PARTS = {
    **{f"body.0.{part}": f"res_layer.0.{part}" for part in _NORM},
    "body.1.weight": "res_layer.1.weight",
    # body.2, a normalisation, has no counterpart and becomes the identity.
    "body.3.weight": "res_layer.2.weight",
    "body.4.weight": "res_layer.3.weight",
    **{f"body.5.{part}": f"res_layer.4.{part}" for part in _NORM},
    "body.6.down.weight": "res_layer.5.fc1.weight",
    "body.6.up.weight": "res_layer.5.fc2.weight",
    "skip.0.weight": "shortcut_layer.0.weight",
    **{f"skip.1.{part}": f"shortcut_layer.1.{part}" for part in _NORM},
}
_SEPARABLE_PARTS = {
    "make_in": "make_kernel_in",
    "make_out": "make_kernel_out",
    "mix_in": "kernel_linear_in",
    "mix_out": "kernel_linear_out",
}


def styled_conv_name(index: int) -> str | None:
    """The styled convolution at `index` in HyperStyle's numbering of all layers; None for a toRGB layer.

    0 is the convolution at 4 px, 1 its toRGB; then two convolutions and a toRGB at each size.
    """
    if index == 0:
        return "conv1"
    place, kind = divmod(index - 2, 3)
    return None if index == 1 or kind == 2 else f"convs.{2 * place + kind}"


def body_names(body: nn.Sequential, source: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of a body's stem and blocks."""
    plain = "input_layer.0.weight" not in source
    stem = ("conv1", "bn1", "relu") if plain else ("input_layer.0", "input_layer.1", "input_layer.2")
    names = {"body.0.weight": f"{stem[0]}.weight", "body.2.weight": f"{stem[2]}.weight"}
    names |= {f"body.1.{part}": f"{stem[1]}.{part}" for part in _NORM}
    for index, block in enumerate(list(body)[STEM:]):
        for own in block.state_dict():
            if own.endswith("num_batches_tracked"):
                continue
            part = _IR_PARTS.get(own) if isinstance(block, ResidualSEBlock) else own
            if part is not None:
                names[f"body.{index + STEM}.{own}"] = f"body.{index}.{part}"
    return names


def head_names(network: StyleEncoder) -> dict[str, str]:
    """Names of the heads and of the maps between the depths of a pyramid."""
    names = {}
    for own in network.state_dict():
        if own.startswith("heads."):
            names[own] = "styles." + own.removeprefix("heads.")
        elif own.startswith("laterals."):
            _, depth, part = own.split(".")
            names[own] = f"latlayer{int(depth) + 1}.{part}"
    return names


def hypernet_names(network: Hypernet, places: Mapping[Any, str]) -> dict[str, str]:
    """Names of the shared head and the refinement blocks; places: prefix of each layer's block by name."""
    names = {}
    prefixes = {name.replace(".", "_"): prefix for name, prefix in places.items()}
    for own in network.state_dict():
        if own.startswith("shared_head."):
            names[own] = "shared_weight_hypernet." + own.removeprefix("shared_head.")
        elif own.startswith("refinements."):
            _, layer, part = own.split(".", 2)
            first, _, rest = part.partition(".")
            if first in _SEPARABLE_PARTS:
                part = f"output.0.{_SEPARABLE_PARTS[first]}.{rest}"
            elif first == "output":
                part = f"output.1.{rest}"
            names[own] = prefixes[layer] + part
    return names


def neutral_tensors(state: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole state dict: the tensors found, and neutral values for the rest.

    The gates of the published networks have no biases and may have fewer hidden units, which is
    equivalent to zeros.
    """
    whole = {}
    for name, own in state.items():
        given = found.get(name)
        if given is None:
            # A normalisation that is the identity has variance 1 minus its epsilon.
            value = 1.0 if name.endswith((".weight", "running_var")) else 0.0
            whole[name] = torch.full_like(own, value)
            if name.endswith("running_var"):
                whole[name] -= nn.BatchNorm2d(1).eps
        elif given.shape != own.shape:
            whole[name] = torch.zeros_like(own)
            whole[name][tuple(slice(side) for side in given.shape)] = given
        else:
            whole[name] = given
    return whole
