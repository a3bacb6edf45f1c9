"""Inversion by trained networks alone (e4e, restyle, hyperstyle), and the initial w for other methods."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.inversion.fit import Fit, Prediction
from wrangan_cli.engine.inversion.loop import Result
from wrangan_cli.engine.inversion.method_settings import TrainedSettings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.encoders import (
    KINDS,
    Hypernet,
    StyleEncoder,
    average_image,
    encoded,
    load_encoder,
    load_hypernet,
    load_style_encoder,
    refined,
    start_where_trained,
    weight_offsets,
)
from wrangan_cli.engine.models.folder import Model

STYLE_KINDS = ("e4e", "restyle")


def invert(fit: Fit[TrainedSettings]) -> Result:
    """The prediction of the method's network, without any steps; for method encoder, the initial w."""
    w = fit.initial_w
    variables = Variables(w.clone()) if fit.predict is None else fit.predict(fit.images, w)
    return Result(variables, [0] * len(fit.images))


def load_networks(
    model: Model, settings: InversionSettings
) -> tuple[Callable[[Tensor], Tensor] | None, Prediction | None]:
    """The function that gives the initial w (`load_initial`), and the one that predicts a code without
    optimisation, for methods that have a network for it.

    Raises UsageError if the model lacks a network, or if the method cannot use that start; FileError if
    the network is broken or belongs to another model.
    """
    if settings.method in ("encoder", "hyperstyle") and settings.start != "encoder":
        raise UsageError(f"method {settings.method} needs init encoder")
    if settings.method == "hyperstyle":
        encoder, hypernet = load_encoder(model), load_hypernet(model)
        return start_where_trained(encoder, hypernet), _refinement(model, hypernet)
    initial = load_initial(model, settings.start)
    if settings.method not in STYLE_KINDS:
        return initial, None
    to_codes = _style_codes(model, load_style_encoder(model, settings.method))
    return initial, lambda images, w: Variables(w=to_codes(images))  # noqa: ARG005


def _refinement(model: Model, hypernet: Hypernet) -> Prediction:

    @torch.no_grad()
    def predict(images: Tensor, w: Tensor) -> Variables:
        offsets = refined(hypernet, model.generator, images, w)
        return Variables(w=w.clone(), delta=weight_offsets(model.generator, offsets))

    return predict


def load_initial(model: Model, name: str) -> Callable[[Tensor], Tensor] | None:
    """The function from images to the initial w (B, style_dim); None for the mean of W.

    `encoder`: the encoder into W. `e4e`, `restyle`: the first row of their codes, which is the
    w of all latents before any delta is added. Raises as `load_networks` does, and UsageError for
    an encoder without deltas, whose first row is only the latent of the coarsest layer.
    """
    if name == "mean":
        return None
    if name == "encoder":
        return load_encoder(model)
    encoder = load_style_encoder(model, name)
    if not encoder.config.deltas:
        raise UsageError(f"init {name}: the model's network predicts separate latents and no common w")
    to_codes = _style_codes(model, encoder)
    return lambda images: to_codes(images)[:, 0]


def network_files(model: Model, settings: InversionSettings) -> dict[str, str]:
    """The sha256, by name, of the network files in the model's folder that a code depends on."""
    paths = [model.companion(name) for name in _files_of(settings)]
    found = {path: path.stat() for path in paths if path}
    return {path.name: _sha256_of(path, at.st_mtime_ns, at.st_size) for path, at in found.items()}


def lacking_networks(model: Model, settings: InversionSettings) -> list[str]:
    """The names of the network files that the inversion needs and the model does not have."""
    return [name for name in _files_of(settings) if model.companion(name) is None]


def _files_of(settings: InversionSettings) -> list[str]:
    """The names of the network files that the method and its initial w need, each once."""
    kinds = ["w" if name == "encoder" else name for name in (settings.start, settings.method)]
    return list(dict.fromkeys(KINDS[kind].file for kind in kinds if kind in KINDS))


@lru_cache(maxsize=16)
def _sha256_of(path: Path, modified: int, size: int) -> str:  # noqa: ARG001
    """Cached by the file's time and size, since it is needed for every photograph."""
    return sha256(path)


def _style_codes(model: Model, encoder: StyleEncoder) -> Callable[[Tensor], Tensor]:
    # Its codes start from this mean of w, which in a published file differs slightly from the measured one.
    average = average_image(model.generator, encoder.w_mean)

    @torch.no_grad()
    def to_codes(images: Tensor) -> Tensor:
        return encoded(encoder, model.generator, images, average)

    return to_codes
