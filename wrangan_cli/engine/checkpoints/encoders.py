"""Published encoders (`.pt`): pSp, e4e, ReStyle, HyperStyle and its encoder into W.

Such a file holds `state_dict` with the trained network under `encoder.` or `hypernet.` and the
generator that it was trained for under `decoder.`, the command line in `opts`, and `latent_avg`,
the mean of w to which the network's output is added. Sizes are read from the shapes.

The networks are computed as published, but images reach 256 px here by the mean of areas, and
there by bilinear or bicubic resampling of the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints import rosinality
from wrangan_cli.engine.checkpoints.detect import torch_contents
from wrangan_cli.engine.checkpoints.encoder_names import (
    body_names,
    head_names,
    hypernet_names,
    neutral_tensors,
    styled_conv_name,
)
from wrangan_cli.engine.checkpoints.records import NotConvertible, brief, collect, shape_of
from wrangan_cli.engine.checkpoints.restricted_unpickler import READ_ERRORS, one_line, printable
from wrangan_cli.engine.errors import FileError, UsageError
from wrangan_cli.engine.files import sha256
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.encoders import (
    FILE,
    KINDS,
    AnyEncoder,
    Encoder,
    EncoderConfig,
    Hypernet,
    HypernetConfig,
    StyleEncoder,
    StyleEncoderConfig,
    kind_of,
    layer_shapes,
    misfit,
    read_any,
    save_encoder,
)

INPUT_SIDE = 256
PASSES = 5
"""Of ReStyle and HyperStyle, where the file does not say."""
INTO_W = ("WEncoder", "BackboneEncoderUsingLastLayerIntoW", "SingleStyleCodeEncoder")
PYRAMIDS = ("Encoder4Editing", "GradualStyleEncoder", "ResNetGradualStyleEncoder")
SINGLES = (
    "BackboneEncoder",
    "ProgressiveBackboneEncoder",
    "ResNetBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
)
HYPERNETS = ("SharedWeightsHyperNetResNet", "SharedWeightsHyperNetResNetSeparable")
N = TypeVar("N", bound=AnyEncoder)
CLOSE = 1e-3
"""Relative distance of two generators below which they count as the same."""


@dataclass(frozen=True)
class Report:
    """What was converted."""

    kind: str
    """One of KINDS."""
    network: str
    """Its name in the file (`opts.encoder_type`)."""
    path: Path
    """The file that was written."""
    parameters: int
    round_trip: bool
    """What was written reads back equal, bit for bit."""
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": self.kind,
            "network": self.network,
            "parameters": self.parameters,
            "round_trip": self.round_trip,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """For a person at a terminal."""
        equal = "equal" if self.round_trip else "DIFFERENT"
        return [
            f"{self.network} as {self.kind}: {self.parameters:,} parameters; read back {equal}",
            *(f"note: {note}" for note in self.notes),
        ]


def install_published(source: Path, model: Model, overwrite: bool = False) -> Report:
    """Write the network of a published file into a model's folder.

    Raises FileError: unreadable, refused, not convertible, or for a generator of other sizes;
    UsageError where the model has such a network already and `overwrite` is not set.
    """
    try:
        network, name, notes = from_contents(torch_contents(source), model)
    except NotConvertible as error:
        raise FileError(source, printable(str(error))) from error
    except READ_ERRORS as error:
        raise FileError(source, one_line(error)) from error
    kind = kind_of(network)
    path = model.path / KINDS[kind].file
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: add --overwrite to replace it")
    about = {"converted_from": source.name, "sha256": sha256(source), "network": name}
    # In full precision: the same numbers as in the file.
    save_encoder(model.path, network, model, about, torch.float32)
    back, own = read_any(path, kind)[0].state_dict(), network.state_dict()
    equal = all(torch.equal(back[key], value) for key, value in own.items())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Report(kind, name, path, parameters, equal, notes)


def from_contents(data: object, model: Model) -> tuple[AnyEncoder, str, list[str]]:
    """The network of a file's contents, its name there, and notes.

    Raises NotConvertible: another network, tensors that are missing or misshapen, another size of
    generator.
    """
    if not is_published(data):
        raise NotConvertible("a PyTorch file, but not one with a trained encoder (state_dict)")
    assert isinstance(data, dict)
    state, opts = _tensors(data["state_dict"]), _options(data.get("opts"))
    name = opts.get("encoder_type")
    network: AnyEncoder
    if name in HYPERNETS:
        network = _hypernet(_part(state, "hypernet."), opts, model)
    elif name in INTO_W:
        network = _into_w(_part(state, "encoder."))
    elif name in PYRAMIDS or name in SINGLES:
        network = _styles(_part(state, "encoder."), opts, str(name))
    else:
        raise NotConvertible(f"its encoder_type is {brief(name)}, which is not known here")
    unfit = misfit(network, model)
    if unfit:
        raise NotConvertible(unfit)
    notes = _compare_generators(_part(state, "decoder."), model)
    if isinstance(network, Hypernet):
        if model.companion(FILE) is None:
            notes.append("needs the encoder into W that it was trained with: convert that file too")
    else:
        notes += _set_mean(network, data.get("latent_avg"), opts, model)
    return network.eval().requires_grad_(False), str(name), notes


def is_published(data: object) -> bool:
    """Whether the contents of a torch file are those of a trained encoder."""
    state = data.get("state_dict") if isinstance(data, dict) else None
    return isinstance(state, dict) and any(str(name).startswith(("encoder.", "hypernet.")) for name in state)


def _into_w(source: dict[str, Tensor]) -> Encoder:
    backbone, widths, blocks = _body(source)
    if backbone != "ir-se":
        raise NotConvertible("an encoder into W on a ResNet, which is not known here")
    style_dim = shape_of("encoder", source, "linear.weight", 2)[0]
    with torch.device("meta"):
        network = Encoder(EncoderConfig(style_dim, widths, blocks, INPUT_SIDE))
    names = body_names(network.body, source)
    found = _collected(network, source, names, {"head.": "linear."})
    # The mean of the map is the mean of its 16 parts; the learning rate's scale is worked in.
    scale = found["head.weight"].shape[1] ** -0.5
    found["head.weight"] = (found["head.weight"] * (scale / 16)).repeat_interleave(16, dim=1)
    return _loaded(network, found)


def _styles(source: dict[str, Tensor], opts: Mapping[str, Any], name: str) -> StyleEncoder:
    backbone, widths, blocks = _body(source)
    rows = {int(key.split(".")[1]) for key in source if re.match(r"styles\.\d+\.", key)}
    convs = [key for key in source if re.fullmatch(r"styles\.0\.convs\.\d+\.weight", key)]
    channels = _stem(source, backbone)[1]
    with torch.device("meta"):
        network = StyleEncoder(
            StyleEncoderConfig(
                style_dim=shape_of("encoder", source, "styles.0.linear.weight", 2)[0],
                num_latents=len(rows),
                widths=widths,
                blocks=blocks,
                input_side=_input_side(len(convs), len(widths)),
                input_channels=channels,
                backbone=backbone,
                heads="pyramid" if name in PYRAMIDS else "single",
                deltas="Progressive" in name or name == "Encoder4Editing",
                head_width=shape_of("encoder", source, "styles.0.linear.weight", 2)[1],
                passes=_passes(opts) if channels == 6 else 1,
            )
        )
    names = body_names(network.body, source) | head_names(network)
    return _loaded(network, _collected(network, source, names, {}))


def _hypernet(source: dict[str, Tensor], opts: Mapping[str, Any], model: Model) -> Hypernet:
    backbone, widths, blocks = _body(source)
    shapes = layer_shapes(model.generator)
    indices = sorted({int(k.split(".")[1]) for k in source if re.match(r"refinement_blocks\.\d+\.", k)})
    places: dict[str, str] = {}
    layers: dict[str, tuple[int, int]] = {}
    sizes = {"shared_width": 0, "shared_inner": 1, "inner": 1, "area": 1, "linear": 0}
    heights = set()
    for index in indices:
        name, place = styled_conv_name(index), f"refinement_blocks.{index}."
        if name is None:
            raise NotConvertible("it changes toRGB layers, for which codes have no place")
        if name not in shapes:
            raise NotConvertible(f"it changes a layer {name}, which {model.name} has not")
        places[name] = place
        layers[name], height, found = _refinement(source, place, name, shapes[name])
        heights.add(height)
        sizes |= found
    if len(heights) != 1 or sizes["area"] not in (1, 9):
        raise NotConvertible("its refinement blocks do not fit each other")
    config = HypernetConfig(
        layers=layers,
        widths=widths,
        blocks=blocks,
        input_side=_input_side(heights.pop(), len(widths)),
        backbone=backbone,
        shared_width=sizes["shared_width"],
        shared_inner=sizes["shared_inner"],
        inner=sizes["inner"],
        features=sizes["features"],
        separate="linear" if sizes["linear"] else "separable",
        kernel=3 if sizes["area"] == 9 else 1,
        passes=_passes(opts),
    )
    with torch.device("meta"):
        network = Hypernet(config)
    names = body_names(network.body, source) | hypernet_names(network, places)
    return _loaded(network, _collected(network, source, names, {}))


def _refinement(
    source: Mapping[str, Tensor], place: str, name: str, shape: tuple[int, int]
) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Of one layer's block: (output, input) channels, how often it halves its map down to 1 px, and sizes.

    place: prefix of its tensors. shape: what the model's layer has.
    """

    def side(tensor: str, dimensions: int, at: int = 0) -> int:
        return shape_of("hypernet", source, tensor, dimensions)[at]

    inner = side(f"{place}convs.0.weight", 4)
    convs = len([key for key in source if re.fullmatch(re.escape(place) + r"convs\.\d+\.weight", key)])
    if f"{place}linear.weight" in source:
        features = side(f"{place}linear.weight", 2)
        width = side("shared_weight_hypernet.b2", 1) // features
        area = side("shared_weight_hypernet.b1", 1) // width
        found = {"features": features, "shared_width": width, "shared_inner": inner, "area": area}
        return (width, width), convs - 1, found
    kernels = f"{place}output.0.make_kernel_in.weight"
    if kernels in source:
        inputs = side(f"{place}output.0.kernel_linear_in.weight", 2)
        outputs = side(f"{place}output.0.kernel_linear_out.weight", 2)
        found = {"features": side(kernels, 2, 1), "inner": inner, "area": side(kernels, 2) // inputs}
        return (outputs, inputs), convs, found
    products = side(f"{place}output.1.weight", 4)
    if products != shape[0] * shape[1]:
        raise NotConvertible(f"it gives {products} offsets for {name} of {shape}")
    found = {"features": side(f"{place}output.1.weight", 4, 1), "inner": inner, "linear": 1}
    return shape, convs + 1, found


def _body(source: Mapping[str, Tensor]) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Backbone, widths and blocks of the stages: a stage is a run of blocks of one width."""
    plain = "input_layer.0.weight" not in source
    part = "conv1.weight" if plain else "res_layer.1.weight"
    outputs: list[int] = []
    while f"body.{len(outputs)}.{part}" in source:
        outputs.append(shape_of("encoder", source, f"body.{len(outputs)}.{part}", 4)[0])
    if not outputs:
        raise NotConvertible("its body is neither an IR-SE network nor a ResNet of plain blocks")
    runs = [(width, len(list(run))) for width, run in groupby(outputs)]
    return "resnet" if plain else "ir-se", tuple(w for w, _ in runs), tuple(n for _, n in runs)


def _stem(source: Mapping[str, Tensor], backbone: str) -> torch.Size:
    return shape_of("encoder", source, "conv1.weight" if backbone == "resnet" else "input_layer.0.weight", 4)


def _input_side(convs: int, stages: int) -> int:
    if convs + stages > 11:
        raise NotConvertible("it works on images of more than 2048 px")
    return 2 ** (convs + stages)


def _passes(opts: Mapping[str, Any]) -> int:
    passes = opts.get("n_iters_per_batch", PASSES)
    if not isinstance(passes, int) or not 1 <= passes <= 100:
        raise NotConvertible(f"n_iters_per_batch is {brief(passes)}")
    return passes


def _collected(
    network: AnyEncoder, source: dict[str, Tensor], names: dict[str, str], more: dict[str, str]
) -> dict[str, Tensor]:
    """The file's tensors by own names; `more`: prefixes of those whose shape is another here."""
    wanted = {}
    own = network.state_dict()
    for name, there in names.items():
        wanted[name] = own[name].shape
        if name.endswith((".down.weight", ".up.weight")) and there in source:
            # Fewer hidden numbers are filled up later.
            wanted[name] = shape_of("encoder", source, there, 4)[:2]
    for prefix, there in more.items():
        for part in ("weight", "bias"):
            names[prefix + part] = there + part
            wanted[prefix + part] = shape_of("encoder", source, there + part, 2 if part == "weight" else 1)
    return collect("encoder", source, names, wanted, _superfluous, "the network of its encoder_type")


def _loaded(network: N, found: dict[str, Tensor]) -> N:
    """The network on the CPU with the file's tensors, and with what the published one lacks."""
    network.to_empty(device="cpu")
    network.load_state_dict(neutral_tensors(network.state_dict(), found))
    return network


def _set_mean(
    network: Encoder | StyleEncoder, latent_avg: object, opts: Mapping[str, Any], model: Model
) -> list[str]:
    if opts.get("start_from_latent_avg", True) is False:
        network.w_mean.zero_()
        return []
    mean = rosinality.read_mean(latent_avg, model.generator.config.style_dim)
    network.w_mean.copy_(model.w_mean if mean is None else mean)
    return [] if mean is not None else ["the file has no mean of w (latent_avg): the model's is taken"]


def _compare_generators(decoder: dict[str, Tensor], model: Model) -> list[str]:
    """How far the generator in the file is from the model's; NotConvertible where sizes differ."""
    if not decoder:
        return ["the file has no generator: that it is the model's cannot be checked"]
    own, difference, size = model.generator.state_dict(), 0.0, 0.0
    for name, tensor in own.items():
        if name.endswith((".kernel", ".std")) or name.startswith("noises."):
            continue
        if name not in decoder or decoder[name].shape != tensor.shape:
            raise NotConvertible(f"its generator has other sizes than {model.name}: {name}")
        difference += float((decoder[name].double() - tensor.cpu().double()).square().sum())
        size += float(tensor.double().square().sum())
    distance = (difference / max(size, 1e-12)) ** 0.5
    if distance <= CLOSE:
        return []
    return [f"its generator differs from {model.name} by {distance:.1%} of the weights: trained for another"]


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _options(opts: object) -> dict[str, Any]:
    """`opts` as a dict: files hold one, or an argparse.Namespace."""
    if opts is None:
        raise NotConvertible("lacks opts, which say what network it is")
    return dict(opts) if isinstance(opts, dict) else dict(vars(opts))


def _tensors(state: object) -> dict[str, Tensor]:
    if not isinstance(state, dict):
        raise NotConvertible("state_dict is not a dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise NotConvertible(f"state_dict: {brief(name)} is no tensor")
    return dict(state)


def _superfluous(name: str) -> bool:
    # The shared head stands once more under each block that uses it.
    return name.endswith("num_batches_tracked") or ".hypernet." in name
