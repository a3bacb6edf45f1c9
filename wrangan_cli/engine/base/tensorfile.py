"""Tensors on disk: safetensors files with one JSON record in their metadata, and torch files."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, cause_of
from wrangan_cli.engine.base.files import replaced_atomically

_KEY = "wrangan"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and `record` (JSON values) atomically; FileError if that fails (disk full …)."""
    with clear_write_errors(path), replaced_atomically(path) as temporary:
        store_tensors(temporary, tensors, record)


def store_tensors(temporary: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Only write, for callers that rename the file themselves; SafetensorError or OSError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={_KEY: json.dumps(dict(record), sort_keys=True)})


@contextlib.contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of `store_tensors` into a FileError about `path`."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise FileError(path, f"not written ({cause_of(error)})") from error


def write_torch(path: Path, contents: Mapping[str, Any]) -> None:
    """`torch.save` tensors and plain values atomically; FileError if that fails (disk full …)."""
    try:
        with replaced_atomically(path) as temporary, open(temporary, "wb") as stream:
            torch.save(dict(contents), stream)
    except (RuntimeError, OSError) as error:
        # torch raises another error on top of the system's.
        said = error.__context__ if isinstance(error.__context__, OSError) else error
        raise FileError(path, f"not written ({cause_of(said)})") from error


@contextlib.contextmanager
def opened_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """`safe_open` for a path of any bytes; safetensors itself accepts only UTF-8."""
    with contextlib.ExitStack() as stack:
        name = str(path)
        try:
            name.encode()
        except UnicodeEncodeError:
            name = f"/dev/fd/{stack.enter_context(open(path, 'rb')).fileno()}"
        yield stack.enter_context(safe_open(name, framework=framework))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (CPU, dtype as stored) and the record.

    Raises FileError when the file is missing, truncated, not safetensors, or not
    written by this suite.
    """
    if not path.is_file():
        raise FileError(path, "no such file")
    try:
        with opened_tensors(path) as stream:
            record = json.loads((stream.metadata() or {})[_KEY])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except KeyError as error:
        raise FileError(path, "a safetensors file, but not one that wrangan wrote") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(path, f"not a readable safetensors file ({cause_of(error)})") from error
    if not isinstance(record, dict):
        raise FileError(path, "a safetensors file, but not one that wrangan wrote")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise FileError(path, f"{name} holds {tensor.dtype}, not real numbers")
    return tensors, record
