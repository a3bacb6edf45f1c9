"""Networks from the tensors of published encoder files; sizes are read from the shapes."""

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from wrangan_cli.engine.base.choices import Backbone
from wrangan_cli.engine.checkpoints.encoder_names import (
    body_names,
    head_names,
    hypernet_names,
    neutral_tensors,
    styled_conv_name,
)
from wrangan_cli.engine.checkpoints.records import NotConvertible, brief, collect, shape_of
from wrangan_cli.engine.models.encoders import (
    AnyEncoder,
    Encoder,
    EncoderConfig,
    Hypernet,
    HypernetConfig,
    StyleEncoder,
    StyleEncoderConfig,
    layer_shapes,
)
from wrangan_cli.engine.models.folder import Model

INPUT_SIDE = 256
PASSES = 5
"""Passes of ReStyle and HyperStyle, if the file does not say."""
PYRAMIDS = ("Encoder4Editing", "GradualStyleEncoder", "ResNetGradualStyleEncoder")
N = TypeVar("N", bound=AnyEncoder)


def into_w(source: dict[str, Tensor]) -> Encoder:
    """An encoder into W, from the tensors under `encoder.`; its mean of w is left at 0."""
    backbone, widths, blocks = _body(source)
    if backbone != "ir-se":
        raise NotConvertible("an encoder into W on a ResNet, which is not known here")
    style_dim = shape_of("encoder", source, "linear.weight", 2)[0]
    with torch.device("meta"):
        network = Encoder(EncoderConfig(style_dim, widths, blocks, INPUT_SIDE))
    names = body_names(network.body, source)
    found = _collected(network, source, names, {"head.": "linear."})
    # The mean of the map is the mean of its 16 parts; the scale of the learning rate is included.
    scale = found["head.weight"].shape[1] ** -0.5
    found["head.weight"] = (found["head.weight"] * (scale / 16)).repeat_interleave(16, dim=1)
    return _loaded(network, found)


def styles(source: dict[str, Tensor], opts: Mapping[str, Any], name: str) -> StyleEncoder:
    """An encoder into W+, likewise; name: its class."""
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


def hypernet(
    source: dict[str, Tensor], opts: Mapping[str, Any], model: Model, w_mean: Tensor | None
) -> Hypernet:
    """HyperStyle's network, from the tensors under `hypernet.`; w_mean: the file's, (style_dim,)."""
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
            raise NotConvertible("it changes toRGB layers, which codes cannot store")
        if name not in shapes:
            raise NotConvertible(f"it changes a layer {name}, which {model.name} does not have")
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
        style_dim=0 if w_mean is None else len(w_mean),
    )
    with torch.device("meta"):
        network = Hypernet(config)
    names = body_names(network.body, source) | hypernet_names(network, places)
    tensors = _collected(network, source, names, {})
    return _loaded(network, tensors if w_mean is None else tensors | {"w_mean": w_mean})


def _refinement(
    source: Mapping[str, Tensor], place: str, name: str, shape: tuple[int, int]
) -> tuple[tuple[int, int], int, dict[str, int]]:
    """For one layer's block: (output, input) channels, number of halvings of its map down to 1 px, and sizes.

    place: prefix of its tensors. shape: that of the model's layer.
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


def _body(source: Mapping[str, Tensor]) -> tuple[Backbone, tuple[int, ...], tuple[int, ...]]:
    """Backbone, widths and blocks of the stages; a stage is a run of blocks of equal width."""
    plain = "input_layer.0.weight" not in source
    part = "conv1.weight" if plain else "res_layer.1.weight"
    outputs: list[int] = []
    while f"body.{len(outputs)}.{part}" in source:
        outputs.append(shape_of("encoder", source, f"body.{len(outputs)}.{part}", 4)[0])
    if not outputs:
        raise NotConvertible("its body is neither an IR-SE network nor a ResNet of plain blocks")
    runs = [(width, len(list(run))) for width, run in groupby(outputs)]
    return "resnet" if plain else "ir-se", tuple(w for w, _ in runs), tuple(n for _, n in runs)


def _stem(source: Mapping[str, Tensor], backbone: Backbone) -> torch.Size:
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
    """The file's tensors by this suite's names; `more`: prefixes of those whose shape differs here."""
    wanted = {}
    own = network.state_dict()
    for name, there in names.items():
        wanted[name] = own[name].shape
        if name.endswith((".down.weight", ".up.weight")) and there in source:
            # Missing hidden units are filled up later.
            wanted[name] = shape_of("encoder", source, there, 4)[:2]
    for prefix, there in more.items():
        for part in ("weight", "bias"):
            names[prefix + part] = there + part
            wanted[prefix + part] = shape_of("encoder", source, there + part, 2 if part == "weight" else 1)
    return collect("encoder", source, names, wanted, _superfluous, "the network of its encoder_type")


def _loaded(network: N, found: dict[str, Tensor]) -> N:
    """The network on the CPU with the file's tensors, and neutral values for those that the file lacks."""
    network.to_empty(device="cpu")
    network.load_state_dict(neutral_tensors(network.state_dict(), found))
    return network


def _superfluous(name: str) -> bool:
    # The shared head is stored again under each block that uses it.
    return name.endswith("num_batches_tracked") or ".hypernet." in name
