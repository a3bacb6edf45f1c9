"""The encoders' files in a model's folder: their names by kind, writing, reading, checking."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wrangan_cli.engine.base.errors import FileError, UsageError, cause_of
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.models.encoders.hypernet import Hypernet, HypernetConfig, layer_shapes
from wrangan_cli.engine.models.encoders.styles import StyleEncoder, StyleEncoderConfig
from wrangan_cli.engine.models.encoders.w import Encoder, EncoderConfig
from wrangan_cli.engine.models.folder import Model, load_weights, stored_weights

FILE = "encoder.safetensors"
AnyEncoder = Encoder | StyleEncoder | Hypernet


@dataclass(frozen=True)
class Kind:
    """One kind of encoder."""

    file: str
    """Name of its file in a model's folder."""
    record: str
    """The kind that its file records."""
    network: Callable[[dict[str, Any]], AnyEncoder]
    """Makes the network from the record of its sizes."""


KINDS = {
    "w": Kind(FILE, "encoder", lambda sizes: Encoder(EncoderConfig.from_json(sizes))),
    "e4e": Kind(
        "encoder-e4e.safetensors",
        "encoder-e4e",
        lambda sizes: StyleEncoder(StyleEncoderConfig.from_json(sizes)),
    ),
    "restyle": Kind(
        "encoder-restyle.safetensors",
        "encoder-restyle",
        lambda sizes: StyleEncoder(StyleEncoderConfig.from_json(sizes)),
    ),
    "hyperstyle": Kind(
        "hypernet.safetensors", "hypernet", lambda sizes: Hypernet(HypernetConfig.from_json(sizes))
    ),
}
"""By the name that `wrangan train encoder --kind` and the inversion methods use."""


def kind_of(network: nn.Module) -> str:
    """The kind of a network."""
    if isinstance(network, Hypernet):
        return "hyperstyle"
    if isinstance(network, StyleEncoder):
        return "e4e" if network.config.input_channels == 3 else "restyle"
    return "w"


def load_encoder(model: Model) -> Encoder:
    """The encoder into W of a model's folder, on the model's device, in evaluation mode.

    Raises UsageError if there is none, FileError if it is broken or belongs to another model.
    """
    encoder, _ = _load(model, "w", ", or start from the mean of W with --init mean")
    assert isinstance(encoder, Encoder)
    return encoder


def start_where_trained(encoder: Encoder, hypernet: Hypernet) -> Encoder:
    """The encoder, adding to the hypernetwork's stored mean of w in place of its own, if there is one."""
    if hypernet.w_mean is not None:
        encoder.w_mean.copy_(hypernet.w_mean)
    return encoder


def load_style_encoder(model: Model, kind: str) -> StyleEncoder:
    """The encoder `e4e` or `restyle` of a model's folder; raises as `load_encoder` does."""
    encoder, _ = _load(model, kind)
    assert isinstance(encoder, StyleEncoder)
    return encoder


def load_hypernet(model: Model) -> Hypernet:
    """The hypernetwork of a model's folder; raises as `load_encoder` does.

    Also raises FileError if the model's encoder is no longer the one whose codes it was trained on.
    """
    hypernet, record = _load(model, "hyperstyle")
    assert isinstance(hypernet, Hypernet)
    trained_on, there = record.get("encoder_sha256"), encoder_sha256(model)
    if trained_on is not None and there is not None and trained_on != there:
        path = model.companion(KINDS["hyperstyle"].file) or model.path
        raise FileError(path, f"was trained with another {FILE} than that of {model.name}")
    return hypernet


def read_encoder(path: Path) -> tuple[Encoder, str | None]:
    """The encoder into W in a file, on the CPU, and the sha256 of the model for which it was trained.

    Raises FileError if the file is broken or holds something else.
    """
    encoder, trained_for = read_any(path, "w")
    assert isinstance(encoder, Encoder)
    return encoder, trained_for


def read_any(path: Path, kind: str) -> tuple[AnyEncoder, str | None]:
    """`read_encoder` for each of KINDS."""
    network, record = _read(path, kind)
    return network, record.get("model_sha256")


def kind_in(path: Path) -> str:
    """The kind of the encoder in a file; FileError if it holds none."""
    holds = read_tensors(path)[1].get("kind", KINDS["w"].record)
    for name, kind in KINDS.items():
        if kind.record == holds:
            return name
    raise FileError(path, f"holds {holds!r}, not an encoder")


def _read(path: Path, kind: str) -> tuple[AnyEncoder, dict[str, Any]]:
    """The network of a file, on the CPU, and the file's record."""
    tensors, record = read_tensors(path)
    holds = record.get("kind", KINDS["w"].record)  # the oldest files do not record it
    if holds != KINDS[kind].record:
        raise FileError(path, f"holds {holds!r}, not {KINDS[kind].record!r}")
    try:
        network = KINDS[kind].network(record["encoder"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"bad encoder settings ({cause_of(error)})") from error
    # A counter of batch normalisation that only matters in training.
    tensors |= {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    load_weights(network, tensors, path)
    return network, record


def save_encoder(
    folder: Path,
    encoder: AnyEncoder,
    model: Model,
    record: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write an encoder of any kind for `model` into `folder`, under its kind's file name."""
    tensors = {
        name: tensor
        for name, tensor in stored_weights(encoder, dtype).items()
        if not name.endswith("num_batches_tracked")
    }
    kind = KINDS[kind_of(encoder)]
    path = folder / kind.file
    about = {"kind": kind.record, "encoder": encoder.config.to_json(), "model_sha256": model.sha256}
    write_tensors(path, tensors, {**record, **about})
    return path


def encoder_sha256(model: Model) -> str | None:
    """sha256 of the file of the model's encoder into W; None if there is none."""
    path = model.companion(FILE)
    return sha256(path) if path else None


def incompatibility(network: AnyEncoder, model: Model) -> str | None:
    """Why a network is incompatible with a model, in a few words; None if it is compatible."""
    config = model.generator.config
    if isinstance(network, Hypernet):
        shapes = layer_shapes(model.generator)
        for name, shape in network.config.layers.items():
            if shapes.get(name) != shape:
                return f"it changes a layer {name} of {shape}, which {model.name} does not have"
        if network.config.style_dim not in (0, config.style_dim):
            return f"its mean of w has length {network.config.style_dim}, {model.name} has {config.style_dim}"
        return None
    if network.config.style_dim != config.style_dim:
        return f"it predicts w of length {network.config.style_dim}, {model.name} needs {config.style_dim}"
    if isinstance(network, StyleEncoder) and network.config.num_latents != config.num_latents:
        return f"it predicts {network.config.num_latents} latents, {model.name} needs {config.num_latents}"
    return None


def _load(model: Model, kind: str, otherwise: str = "") -> tuple[AnyEncoder, dict[str, Any]]:
    """The network in a model's folder, checked to fit the model, and its file's record."""
    path = model.companion(KINDS[kind].file)
    if path is None:
        wanted = "" if kind == "w" else f" --kind {kind}"
        raise UsageError(
            f"model {model.name} has no {KINDS[kind].file}: train one with "
            f"`wrangan train encoder{wanted}`{otherwise}"
        )
    network, record = _read(path, kind)
    made_for = record.get("model_sha256")
    # Offsets apply only to the weights of the same generator.
    if not (made_for == model.sha256 if kind == "hyperstyle" else model.accepts(made_for)):
        raise FileError(path, f"was trained for another model, not for {model.name}")
    unfit = incompatibility(network, model)
    if unfit:
        raise FileError(path, unfit)
    return network.to(model.device).eval().requires_grad_(False), record
