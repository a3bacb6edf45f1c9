"""Codes as inputs of commands: the files in folders, and the model of each code."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.engine.base.errors import FileError

if TYPE_CHECKING:
    import torch

    from wrangan_cli.engine.models.codes import Code
    from wrangan_cli.engine.models.folder import Model


def code_files(paths: Iterable[Path]) -> Iterator[Path | FileError]:
    """Files as given, folders as their `.st` files sorted by name; an error for a folder without any."""
    from wrangan_cli.engine.models.codes import find_codes

    for path in paths:
        try:
            yield from find_codes(path)
        except FileError as error:
            yield error
        except OSError as error:
            yield FileError(path, error.strerror or str(error))


class CodeModels:
    """Loads codes with their models, each model once.

    The model is the one given; else the bundled model that the code names; else the
    default model, if the code was made with it.
    """

    def __init__(self, given: str | None, device: "torch.device") -> None:
        from wrangan_cli.engine.library import load_model

        self._device = device
        self._loaded: dict[str, Model] = {}
        self._given = load_model(given, device) if given is not None else None

    def load(self, path: Path) -> "tuple[Code, Model]":
        """A code, checked against its model, and the model; FileError if either cannot be found."""
        from wrangan_cli.engine.models.codes import load_code

        model = self._given or self._named_by(path)
        return load_code(path, model), model

    def _named_by(self, path: Path) -> "Model":
        from wrangan_cli.engine.library import bundled_model_of
        from wrangan_cli.engine.models.codes import read_info

        info = read_info(path)
        name = bundled_model_of(info)
        if name is None:
            if "model" not in info:
                raise FileError(path, "does not name its model: give --model")
            made_with = str(info["model"])
            raise FileError(
                path,
                f"made with the model {made_with!r}, which is not bundled: give its folder as --model",
            )
        return self._bundled(name)

    def _bundled(self, name: str) -> "Model":
        from wrangan_cli.engine.library import load_model

        if name not in self._loaded:
            self._loaded[name] = load_model(name, self._device)
        return self._loaded[name]
