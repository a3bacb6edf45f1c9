"""Models named by `--model`: a folder, or a bundled model, whose weights are fetched if they do not ship."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.base.fetching import FetchError
from wrangan_cli.engine.checkpoints.fetched_models import joined_model
from wrangan_cli.engine.inversion.method_settings import check_named
from wrangan_cli.engine.models import folder as folders
from wrangan_cli.engine.models.folder import CONFIG, Model, read_config, read_model


def load_model(name_or_path: str = DEFAULT_MODEL, device: torch.device | str = "cpu") -> Model:
    """Read a model in float32 onto `device`.

    Raises UsageError for an unknown name, FileError for files that are missing, broken,
    or do not fit each other, FetchError if its weights cannot be fetched.
    """
    folder = find_model(name_or_path)
    model = read_model(folder, device)
    try:
        check_named(model.inversion)
    except ValueError as error:
        raise FileError(folder / CONFIG, f"inversion: {error}") from error
    return model


def find_model(name_or_path: str) -> Path:
    """The folder for the name of a bundled model or a path; if it is neither, a UsageError lists the names.

    A bundled model whose weights do not ship is fetched into the cache if necessary, with a message
    in the log; raises as `fetched_models.joined_model` does.
    """
    bundled = folders.bundled_models()
    if name_or_path in bundled:
        return _with_weights(bundled[name_or_path])
    path = Path(name_or_path)
    if (path / CONFIG).is_file():
        return _with_weights(path)
    if path.is_dir():
        raise FileError(path, "a folder without config.json: not a model")
    names = ", ".join(bundled) or "none"
    raise UsageError(f"model {name_or_path!r}: neither a folder nor a bundled model ({names})")


def bundled_model_of(info: Mapping[str, Any]) -> str | None:
    """Name of the bundled model with which a code was made, by its record: the model that it names, or the
    default model under another name. None for any other model."""
    bundled = folders.bundled_models()
    if (name := str(info.get("model", "unknown"))) in bundled:
        return name
    # By the record in its folder, so that no model is fetched only to find that it does not match.
    shipped = bundled.get(DEFAULT_MODEL)
    if shipped is not None and folders.recorded_sha256(shipped) == info.get("model_sha256"):
        return DEFAULT_MODEL
    return None


def _with_weights(folder: Path) -> Path:
    """The folder itself, or the one in the cache if its weights are fetched."""
    if "fetch" not in read_config(folder):
        return folder
    bundled = folders.bundled_models()
    # The cache knows it only by name: another model of that name would replace it there.
    if folder.resolve() not in [path.resolve() for path in bundled.values()]:
        raise FileError(
            folder, "its weights would have to be fetched, which is possible only for bundled models"
        )
    try:
        return joined_model(folder)
    except FetchError as error:
        whole = [name for name, path in bundled.items() if "fetch" not in read_config(path)]
        others = f"; or use a model that needs no download: --model {', '.join(whole)}" if whole else ""
        raise FetchError(f"model {folder.name}: {error}{others}") from error
