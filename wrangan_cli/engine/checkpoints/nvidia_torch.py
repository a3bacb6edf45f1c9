"""NVIDIA's PyTorch pickles of StyleGAN2 (stylegan2-ada-pytorch and stylegan3 repositories).

A dict of modules `G`, `D`, `G_ema`, or one of them alone, as PTI saves it. Each module
states how it runs in its own attributes (clamp, learning-rate gain, filter, activation),
so these are read rather than the constructor's arguments, whose defaults differ between
the two repositories.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wrangan_cli.engine.checkpoints.naming import TORCH
from wrangan_cli.engine.checkpoints.nvidia_assembly import DiscriminatorRecord, GeneratorRecord, assemble
from wrangan_cli.engine.checkpoints.records import Checkpoint, NotConvertible, brief, taps_of_kernel
from wrangan_cli.engine.checkpoints.unwrapping import Contents, Network, discriminator_of

KIND = "nvidia-torch"
_STYLEGAN3_LAYERS = ("synthesis.input.", "synthesis.L0_")


def from_contents(contents: Contents, network: Network) -> Checkpoint:
    """A generator with NVIDIA's names, and the discriminator of its file.

    Raises NotConvertible: conditional, StyleGAN3, another architecture, tensors that are missing, a state
    dict, which does not contain the settings.
    """
    generator = _generator(network)
    discriminator: DiscriminatorRecord | NotConvertible | None = None
    try:
        other = discriminator_of(contents, network)
        discriminator = None if other is None else _discriminator(other)
    except NotConvertible as reason:
        discriminator = reason
    return assemble(KIND, TORCH, network.label, generator, discriminator)


def _generator(module: Network) -> GeneratorRecord:
    label = module.label
    if any(name.startswith(_STYLEGAN3_LAYERS) for name in module.tensors):
        raise NotConvertible(f"{label} is a StyleGAN3 generator; only StyleGAN2 can be converted")
    _refuse_conditional(module)
    if not module.attributes:
        raise NotConvertible(
            f"{label} is a state dict of NVIDIA's network, which states neither its clamp nor its "
            "learning-rate multiplier: convert the .pkl that it was taken from"
        )
    for path, attributes in module.attributes.items():
        if attributes.get("architecture", "skip") != "skip":
            kind = brief(attributes["architecture"])
            raise NotConvertible(f"{label}: {path} has the {kind} architecture, not 'skip'")
    layers = {p: a for p, a in module.attributes.items() if p.startswith("synthesis.") and "conv_clamp" in a}
    convs = {p: a for p, a in layers.items() if p.rpartition(".")[2] in ("conv0", "conv1")}
    dense = {p: a for p, a in module.attributes.items() if p.startswith("mapping.fc")}
    _check_activation(label, convs | dense)
    lr_multiplier = _the_one(label, "bias_gain", dense)
    if lr_multiplier is None:
        raise NotConvertible(f"{label} does not state the learning-rate multiplier of its mapping network")
    # A 3×3 convolution that keeps the size has a filter too, but does not use it.
    filters = [
        tensor
        for name, tensor in module.tensors.items()
        if name.endswith("resample_filter") and ".b4." not in name and ".conv1." not in name
    ]
    return GeneratorRecord(
        module.tensors, float(lr_multiplier), _clamp(label, layers), _common_taps(label, filters)
    )


def _discriminator(module: Network) -> DiscriminatorRecord:
    _refuse_conditional(module)
    for path, attributes in module.attributes.items():
        if attributes.get("architecture", "resnet") != "resnet":
            kind = brief(attributes["architecture"])
            raise NotConvertible(f"D: {path or 'it'} has the {kind} architecture, not 'resnet'")
    layers = {p: a for p, a in module.attributes.items() if "conv_clamp" in a and not p.endswith("skip")}
    _check_activation("D", layers | {p: a for p, a in module.attributes.items() if p == "b4.fc"})
    deviation = module.attributes.get("b4.mbstd")
    if deviation is None:
        raise NotConvertible("D has no minibatch standard deviation")
    if deviation.get("num_channels", 1) != 1:
        raise NotConvertible("D has more than one channel of minibatch standard deviation")
    group = deviation.get("group_size")
    filters = [
        tensor
        for name, tensor in module.tensors.items()
        if name.endswith(("conv1.resample_filter", "skip.resample_filter"))
    ]
    return DiscriminatorRecord(
        module.tensors,
        _clamp("D", layers),
        _common_taps("D", filters),
        None if group is None else int(group),
    )


def _refuse_conditional(module: Network) -> None:
    classes = module.attributes.get("", {}).get("c_dim", 0)
    if classes or any(name.startswith("mapping.embed.") for name in module.tensors):
        raise NotConvertible(
            f"{module.label} is conditional ({brief(classes)} label values); only unconditional networks fit"
        )


def _check_activation(label: str, layers: Mapping[str, Mapping[str, Any]]) -> None:
    for path, attributes in layers.items():
        if attributes.get("activation", "lrelu") != "lrelu":
            raise NotConvertible(
                f"{label}: {path} has the activation {brief(attributes['activation'])}, not 'lrelu'"
            )


def _clamp(label: str, layers: Mapping[str, Mapping[str, Any]]) -> float | None:
    clamp = _the_one(label, "conv_clamp", layers)
    return None if clamp is None else float(clamp)


def _the_one(label: str, attribute: str, layers: Mapping[str, Mapping[str, Any]]) -> Any:
    """The value that all layers share; NotConvertible if they do not."""
    values = {attributes.get(attribute) for attributes in layers.values()}
    if len(values) > 1:
        raise NotConvertible(f"{label}: {attribute} differs between layers")
    return values.pop() if values else None


def _common_taps(label: str, filters: list[Tensor]) -> tuple[float, ...]:
    every = {taps_of_kernel(tensor) for tensor in filters}
    if len(every) != 1:
        raise NotConvertible(f"{label}: its resampling filters are missing or differ")
    return every.pop()
