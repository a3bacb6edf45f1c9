"""What `--model` names: a folder, or a bundled model, whose weights are fetched where they do not ship."""

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
    or do not fit each other, FetchError where its weights cannot be fetched.
    """
    folder = find_model(name_or_path)
    model = read_model(folder, device)
    try:
        check_named(model.inversion)
    except ValueError as error:
        raise FileError(folder / CONFIG, f"inversion: {error}") from error
    return model


def find_model(name_or_path: str) -> Path:
    """The folder of a bundled model's name or of a path; UsageError lists the names if neither.

    A bundled model whose weights are elsewhere is fetched into the cache, if it is not there yet:
    that is said in the log, and raises what `fetched_models.joined_model` does.
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
    """Name of the bundled model that a code was made with, by its record: the one that it names, or the
    default model under another name. None for any other model."""
    bundled = folders.bundled_models()
    if (name := str(info.get("model", "unknown"))) in bundled:
        return name
    # By what its folder says: a model that is not the code's is not fetched for it.
    shipped = bundled.get(DEFAULT_MODEL)
    if shipped is not None and folders.recorded_sha256(shipped) == info.get("model_sha256"):
        return DEFAULT_MODEL
    return None


def _with_weights(folder: Path) -> Path:
    """The folder itself, or that in the cache for one whose weights are fetched."""
    if "fetch" not in read_config(folder):
        return folder
    bundled = folders.bundled_models()
    # By its name alone it is known in the cache: another of that name would replace it there.
    if folder.resolve() not in [path.resolve() for path in bundled.values()]:
        raise FileError(folder, "its weights are fetched, which only those of bundled models are")
    try:
        return joined_model(folder)
    except FetchError as error:
        whole = [name for name, path in bundled.items() if "fetch" not in read_config(path)]
        others = f"; or use a model that needs nothing: --model {', '.join(whole)}" if whole else ""
        raise FetchError(f"model {folder.name}: {error}{others}") from error
