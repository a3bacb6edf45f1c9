"""Safetensors files with one JSON record in their metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wrangan_cli.engine.errors import FileError
from wrangan_cli.engine.files import replaced_atomically

_KEY = "wrangan"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and `record` (JSON values) atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replaced_atomically(path) as temporary:
        save_file(plain, temporary, metadata={_KEY: json.dumps(dict(record), sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (CPU, dtype as stored) and the record.

    Raises FileError when the file is missing, truncated, not safetensors, or not
    written by this suite.
    """
    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        with safe_open(path, framework="pt") as stream:
            record = json.loads((stream.metadata() or {})[_KEY])
            return {name: stream.get_tensor(name) for name in stream.keys()}, record  # noqa: SIM118
    except KeyError as error:
        raise FileError(path, "a safetensors file, but not one that wrangan wrote") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(path, f"not a readable safetensors file ({error})") from error
