"""How NVIDIA's two file formats name the tensors of StyleGAN2 (PyTorch and TensorFlow)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints.records import NotConvertible, shape_of
from wrangan_cli.engine.models.config import StyleGAN2Config


@dataclass(frozen=True)
class Naming:
    """Templates: {i} layer of the mapping network, {r} side in px, {k} noise map, {layer} a layer."""

    dense: str
    const: str
    first: str
    """The convolution at 4 px."""
    up: str
    second: str
    rgb: str
    noise: str
    w_mean: str
    weight: str
    """This and the following ones: a tensor of one {layer}."""
    bias: str
    style_weight: str
    style_bias: str
    noise_strength: str
    from_rgb: str
    """From here on: tensors of the discriminator."""
    block_first: str
    block_down: str
    block_skip: str
    last_conv: str
    last_dense: str
    output: str


TORCH = Naming(
    dense="mapping.fc{i}",
    const="synthesis.b4.const",
    first="synthesis.b4.conv1",
    up="synthesis.b{r}.conv0",
    second="synthesis.b{r}.conv1",
    rgb="synthesis.b{r}.torgb",
    noise="{layer}.noise_const",
    w_mean="mapping.w_avg",
    weight="{layer}.weight",
    bias="{layer}.bias",
    style_weight="{layer}.affine.weight",
    style_bias="{layer}.affine.bias",
    noise_strength="{layer}.noise_strength",
    from_rgb="b{r}.fromrgb",
    block_first="b{r}.conv0",
    block_down="b{r}.conv1",
    block_skip="b{r}.skip",
    last_conv="b4.conv",
    last_dense="b4.fc",
    output="b4.out",
)

TENSORFLOW = Naming(
    dense="mapping/Dense{i}",
    const="synthesis/4x4/Const/const",
    first="synthesis/4x4/Conv",
    up="synthesis/{r}x{r}/Conv0_up",
    second="synthesis/{r}x{r}/Conv1",
    rgb="synthesis/{r}x{r}/ToRGB",
    noise="synthesis/noise{k}",
    w_mean="dlatent_avg",
    weight="{layer}/weight",
    bias="{layer}/bias",
    style_weight="{layer}/mod_weight",
    style_bias="{layer}/mod_bias",
    noise_strength="{layer}/noise_strength",
    from_rgb="{r}x{r}/FromRGB",
    block_first="{r}x{r}/Conv0",
    block_down="{r}x{r}/Conv1_down",
    block_skip="{r}x{r}/Skip",
    last_conv="4x4/Conv",
    last_dense="4x4/Dense0",
    output="Output",
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a generator, as read from the shapes of its tensors."""

    resolution: int
    channels: dict[int, int]
    style_dim: int
    mapping_layers: int


def generator_sizes(label: str, tensors: Mapping[str, Tensor], naming: Naming) -> Sizes:
    """Read the sizes of a generator; NotConvertible if a tensor that determines them is missing."""
    first = naming.weight.format(layer=naming.first)
    channels = {4: shape_of(label, tensors, first, 4)[0]}
    size = 8
    while any(_has(tensors, prefix.format(r=size)) for prefix in (naming.up, naming.second, naming.rgb)):
        name = naming.weight.format(layer=naming.second.format(r=size))
        channels[size] = shape_of(label, tensors, name, 4)[0]
        size *= 2
    style = naming.style_weight.format(layer=naming.first)
    layers = 0
    while _has(tensors, naming.dense.format(i=layers)):
        layers += 1
    colours = shape_of(label, tensors, naming.weight.format(layer=naming.rgb.format(r=size // 2)), 4)[0]
    if colours != 3:
        raise NotConvertible(f"{label} generates images with {colours} channels, not RGB")
    for index in range(layers):
        name = naming.weight.format(layer=naming.dense.format(i=index))
        wide = list(shape_of(label, tensors, name, 2))
        dim = shape_of(label, tensors, style, 2)[1]
        if wide != [dim, dim]:
            raise NotConvertible(
                f"{label}: {name} has shape {wide}; z, w and all layers must have size {dim}"
            )
    return Sizes(size // 2, channels, shape_of(label, tensors, style, 2)[1], layers)


def discriminator_channels(label: str, tensors: Mapping[str, Tensor], naming: Naming) -> dict[int, int]:
    """The width of a discriminator at each size."""
    last = naming.weight.format(layer=naming.last_conv)
    channels = {4: shape_of(label, tensors, last, 4)[0]}
    size = 8
    while _has(tensors, naming.block_first.format(r=size)):
        name = naming.weight.format(layer=naming.block_first.format(r=size))
        channels[size] = shape_of(label, tensors, name, 4)[0]
        size *= 2
    return channels


def generator_names(config: StyleGAN2Config, naming: Naming) -> dict[str, str]:
    """Name in this suite → name in the file, for every tensor of a generator."""
    names = {"input.input": naming.const}
    for i in range(config.mapping_layers):
        names |= _pair(f"style.{i + 1}", naming.dense.format(i=i), naming)
    layers = [("conv1", naming.first)]
    rgbs = [("to_rgb1", naming.rgb.format(r=4))]
    for j, size in enumerate(config.resolutions[1:]):
        layers.append((f"convs.{2 * j}", naming.up.format(r=size)))
        layers.append((f"convs.{2 * j + 1}", naming.second.format(r=size)))
        rgbs.append((f"to_rgbs.{j}", naming.rgb.format(r=size)))
    for name, layer in layers + rgbs:
        names[f"{name}.conv.weight"] = naming.weight.format(layer=layer)
        names[f"{name}.conv.modulation.weight"] = naming.style_weight.format(layer=layer)
        names[f"{name}.conv.modulation.bias"] = naming.style_bias.format(layer=layer)
    for name, layer in rgbs:
        names[f"{name}.bias"] = naming.bias.format(layer=layer)
    for k, (name, layer) in enumerate(layers):
        names[f"{name}.activate.bias"] = naming.bias.format(layer=layer)
        names[f"{name}.noise.weight"] = naming.noise_strength.format(layer=layer)
        names[f"noises.noise_{k}"] = naming.noise.format(layer=layer, k=k)
    return names


def discriminator_names(config: StyleGAN2Config, naming: Naming) -> dict[str, str]:
    """Name in this suite → name in the file, for every tensor of a discriminator."""
    names = _pair("convs.0", naming.from_rgb.format(r=config.resolution), naming, ".0", ".1")
    for k, size in enumerate(reversed(config.resolutions[1:])):
        block = f"convs.{k + 1}"
        names |= _pair(f"{block}.conv1", naming.block_first.format(r=size), naming, ".0", ".1")
        names |= _pair(f"{block}.conv2", naming.block_down.format(r=size), naming, ".1", ".2")
        names[f"{block}.skip.1.weight"] = naming.weight.format(layer=naming.block_skip.format(r=size))
    names |= _pair("final_conv", naming.last_conv, naming, ".0", ".1")
    names |= _pair("final_linear.0", naming.last_dense, naming)
    names |= _pair("final_linear.1", naming.output, naming)
    return names


def complete_noise(
    tensors: dict[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, torch.Size]
) -> list[str]:
    """If a generator has no noise at all (`use_noise=False`), give it noise of strength 0.

    Adds to `tensors`; returns notes. A generator that has any noise is not changed.
    """
    noise = [name for name in wanted if name.endswith(".noise.weight") or name.startswith("noises.")]
    if any(names[name] in tensors for name in noise):
        return []
    tensors |= {names[name]: torch.zeros(wanted[name]) for name in noise}
    return ["the generator was trained without noise inputs: noise strengths are 0"]


def _pair(name: str, layer: str, naming: Naming, weight: str = "", bias: str = "") -> dict[str, str]:
    return {
        f"{name}{weight}.weight": naming.weight.format(layer=layer),
        f"{name}{bias}.bias": naming.bias.format(layer=layer),
    }


def _has(tensors: Mapping[str, Tensor], layer: str) -> bool:
    return any(name.startswith((layer + ".", layer + "/")) for name in tensors)
