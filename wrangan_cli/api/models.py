"""Models by name, by path, or by the codes made with them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from wrangan_cli.engine import library
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.runtime import resolve_device
from wrangan_cli.engine.editing.directions import Direction, load_directions
from wrangan_cli.engine.models import folder as folders
from wrangan_cli.engine.models.codes import Code, check_finite, check_fit
from wrangan_cli.engine.models.folder import Model

ModelLike = Model | str | Path
"""A loaded model, the name of a bundled one, or a model folder."""

_LOADED: WeakValueDictionary[str, Model] = WeakValueDictionary()
"""Models in memory, by the sha256 that their codes record."""


def load_model(name_or_path: str | Path = DEFAULT_MODEL, device: str | torch.device = "auto") -> Model:
    """Load a model, to use in many calls of the other functions.

    name_or_path: a bundled model (`ffhq`, the default; `ffhq-256`, `faces-64`, `churches-64`) or a
    model's folder. The weights of the `ffhq` models are fetched on first use. device: `auto` (CUDA,
    else MPS, else CPU) or a device of torch's.

    Its main attributes: `model.name`, `model.resolution` (side of its images in px), `model.device`. As long
    as the model is in memory, functions find it for codes that were made with it.

    Raises WranganError: an unknown name, an unavailable device, files that are missing or broken,
    weights that cannot be fetched.
    """
    model = library.load_model(str(name_or_path), resolve_device(str(device)))
    _LOADED[model.sha256] = model
    return model


def directions(model: ModelLike = DEFAULT_MODEL, path: str | Path | None = None) -> dict[str, Direction]:
    """The directions in which a model's codes can be edited, by name.

    Each has `range`, the lowest and highest sensible strength, and `layers`, the rows of W+ that it moves
    (None: all); strengths are in standard deviations of w along it. path: a file of directions, as written by
    `wrangan directions`, in place of the model's. The dict is empty if the model has none.

    Raises WranganError for a file that is broken or belongs to another model.
    """
    return load_directions(model_of(model), None if path is None else Path(path))


def model_of(given: ModelLike | None, codes: Sequence[Code] = ()) -> Model:
    """The given model; else the one with which `codes` were made; else the default.

    Raises WranganError for codes of a different model, or of a model that cannot be found and must be given,
    and for values that are not finite.
    """
    if isinstance(given, Model):
        model = given
    elif given is not None:
        model = _by_name(str(given))
    else:
        model = _made_with(codes[0]) if codes else _by_name(DEFAULT_MODEL)
    for number, code in enumerate(codes, 1):
        name = Path("code" if len(codes) == 1 else f"code {number}")
        check_fit(name, code, model)
        check_finite(name, code)
    return model


def _made_with(code: Code) -> Model:
    loaded = _LOADED.get(str(code.info.get("model_sha256")))
    if loaded is not None:
        return loaded
    name = library.bundled_model_of(code.info)
    if name is None and "model" not in code.info:
        record = "{'model': model.name, 'model_sha256': model.sha256}"
        raise UsageError(
            f"the code does not name its model: give model=, or create the code with info={record}"
        )
    if name is None:
        made_with = str(code.info["model"])
        raise UsageError(
            f"code made with the model {made_with!r}, which is not bundled: load it, or give model="
        )
    return _by_name(name)


def _by_name(name: str) -> Model:
    # A folder may change while the program runs; a bundled model does not.
    return _bundled(name) if name in folders.bundled_models() else load_model(name)


@lru_cache(maxsize=2)
def _bundled(name: str) -> Model:
    return load_model(name)
