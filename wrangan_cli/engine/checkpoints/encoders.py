"""Published encoders (`.pt`): pSp, e4e, ReStyle, HyperStyle and its encoder into W.

Such a file holds `state_dict` with the trained network under `encoder.` or `hypernet.` and the
generator that it was trained for under `decoder.`, the command line in `opts`, and `latent_avg`,
the mean of w to which the network's output is added. Sizes are read from the shapes.

The networks are computed as published, except that images are reduced to 256 px here by area averaging,
there by bilinear or bicubic resampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.checkpoints import rosinality
from wrangan_cli.engine.checkpoints.detect import read_data
from wrangan_cli.engine.checkpoints.encoder_networks import PYRAMIDS, hypernet, into_w, styles
from wrangan_cli.engine.checkpoints.records import NotConvertible, brief, listed
from wrangan_cli.engine.checkpoints.restricted_unpickler import READ_ERRORS, one_line, printable
from wrangan_cli.engine.checkpoints.unwrapping import ENCODERS, Contents, contents_of
from wrangan_cli.engine.models.encoders import (
    FILE,
    KINDS,
    AnyEncoder,
    Encoder,
    Hypernet,
    StyleEncoder,
    incompatibility,
    kind_of,
    read_any,
    save_encoder,
)
from wrangan_cli.engine.models.folder import Model

INTO_W = ("WEncoder", "BackboneEncoderUsingLastLayerIntoW", "SingleStyleCodeEncoder")
SINGLES = (
    "BackboneEncoder",
    "ProgressiveBackboneEncoder",
    "ResNetBackboneEncoder",
    "ResNetProgressiveBackboneEncoder",
)
HYPERNETS = ("SharedWeightsHyperNetResNet", "SharedWeightsHyperNetResNetSeparable")
MEAN_IF_ASKED = (
    "Encoder4Editing",
    "GradualStyleEncoder",
    "BackboneEncoderUsingLastLayerIntoW",
    "SingleStyleCodeEncoder",
)
"""Networks of pSp and e4e, to whose output the mean of w is added if `start_from_latent_avg` says so. ReStyle
and HyperStyle always add it; there the option only affects a loss."""
CLOSE = 1e-3
"""Two generators with a smaller relative distance count as the same."""


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
    """Whether the written file reads back bit for bit."""
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
    UsageError if the model already has such a network and `overwrite` is not set.
    """
    try:
        network, name, notes = from_contents(contents_of(read_data(source)), model)
    except NotConvertible as error:
        raise FileError(source, printable(str(error))) from error
    except READ_ERRORS as error:
        raise FileError(source, one_line(error)) from error
    kind = kind_of(network)
    path = model.path / KINDS[kind].file
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: add --overwrite to replace it")
    about = {"converted_from": source.name, "sha256": sha256(source), "network": name}
    # In full precision, so that the numbers are those of the file.
    save_encoder(model.path, network, model, about, torch.float32)
    back, own = read_any(path, kind)[0].state_dict(), network.state_dict()
    equal = all(torch.equal(back[key], value) for key, value in own.items())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Report(kind, name, path, parameters, equal, notes)


def from_contents(contents: Contents, model: Model) -> tuple[AnyEncoder, str, list[str]]:
    """The network of a file's contents, its name there, and notes.

    Raises NotConvertible: another network, tensors that are missing or misshapen, another size of
    generator.
    """
    ways = contents.ways_to(*ENCODERS)
    if not ways:
        keys = listed(contents.keys) or "no named entries"
        raise NotConvertible(f"holds no trained encoder (encoder, hypernet); the file has {keys}")
    way = ways[0]
    opts = contents.settings(way, "opts")
    if opts is None:
        raise NotConvertible("lacks opts, which name the network")
    name, latent_avg = opts.get("encoder_type"), contents.near(way, "latent_avg")
    _refuse_cars(opts)
    network: AnyEncoder
    if name in HYPERNETS:
        mean, remarks = rosinality.read_mean(latent_avg, model.generator.config.style_dim, strict=True)
        network = hypernet(contents.part((*way, "hypernet")), opts, model, mean)
    elif name in INTO_W:
        network = into_w(contents.part((*way, "encoder")))
    elif name in PYRAMIDS or name in SINGLES:
        network = styles(contents.part((*way, "encoder")), opts, str(name))
    else:
        raise NotConvertible(f"its encoder_type is {brief(name)}, which is not known here")
    unfit = incompatibility(network, model)
    if unfit:
        raise NotConvertible(unfit)
    notes = _compare_generators(contents.part((*way, rosinality.DECODER)), model)
    if isinstance(network, Hypernet):
        if model.companion(FILE) is None:
            notes.append("needs the encoder into W that it was trained with: convert that file too")
        if latent_avg is not None:
            notes += [f"{remark}: that of the encoder into W is taken" for remark in remarks]
    else:
        notes += _set_mean(network, str(name), latent_avg, opts, model)
    return network.eval().requires_grad_(False), str(name), notes


def _refuse_cars(opts: Mapping[str, Any]) -> None:
    """NotConvertible for networks that see 4:3 images, cut out of the generator's square."""
    trained_on = opts.get("dataset_type")
    if isinstance(trained_on, str) and "cars" in trained_on:
        raise NotConvertible(
            f"its dataset_type is {brief(trained_on)}: it sees cars at 192 × 256 px, photographs here are "
            "square (--out makes a model of its generator alone)"
        )


def _set_mean(
    network: Encoder | StyleEncoder, name: str, latent_avg: object, opts: Mapping[str, Any], model: Model
) -> list[str]:
    six = isinstance(network, StyleEncoder) and network.config.input_channels == 6
    if name in MEAN_IF_ASKED and not six and opts.get("start_from_latent_avg", True) is False:
        network.w_mean.zero_()
        return []
    mean, remarks = rosinality.read_mean(latent_avg, model.generator.config.style_dim, strict=True)
    network.w_mean.copy_(model.w_mean if mean is None else mean)
    return [f"{remark}: the model's is taken" for remark in remarks]


def _compare_generators(decoder: dict[str, Tensor], model: Model) -> list[str]:
    """Compare the generator in the file with the model's; NotConvertible if sizes differ."""
    if not decoder:
        return ["the file has no generator, so it cannot be checked that it belongs to the model"]
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
