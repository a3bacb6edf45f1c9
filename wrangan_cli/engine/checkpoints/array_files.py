"""Arrays in files of other tools: NumPy's `.npy` and `.npz`, torch's `.pt`; nothing in them is executed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, cause_of
from wrangan_cli.engine.checkpoints.numpy_stand_ins import StoredArray
from wrangan_cli.engine.checkpoints.restricted_unpickler import read_object_array
from wrangan_cli.engine.checkpoints.stand_ins import StoredTensor

TORCH_SUFFIXES = (".pt", ".pth")


def read_numpy(path: Path) -> dict[str, Any]:
    """The arrays of a `.npz` by name; that of a `.npy` has the name "". FileError for pickled objects."""
    try:
        # Without pickles: an array of objects would run code on reading.
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except Exception as error:
        # numpy raises ValueError, EOFError, OSError, zipfile's and zlib's errors, and tokenize's.
        raise FileError(
            path, f"not a readable {path.suffix} file of plain arrays ({cause_of(error)})"
        ) from error


def read_pickled_numpy(path: Path) -> Any:
    """The content of a `.npy` of Python objects, or None for one of plain numbers.

    A single object (shape ()) is returned itself, several as a list. The content consists of plain values and
    stand-ins of the restricted unpickler, which `numbers` accepts. Raises FileError as `read_object_array`
    does.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                return None
            header = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            try:
                shape, _, dtype = header[version[0] - 1](stream)
            except Exception:  # noqa: BLE001 - NumPy raises what its parsers of Python do
                return None
            if not dtype.hasobject:
                return None
            objects = read_object_array(path, stream)
    except (OSError, ValueError):
        return None  # not a .npy: `read_numpy` reports it
    if len(objects) != math.prod(shape):
        raise FileError(path, f"{len(objects)} objects in an array of shape {shape}")
    return objects[0] if shape == () else objects


def is_array(value: object) -> bool:
    """Whether `numbers` accepts the value."""
    return isinstance(value, Tensor | np.ndarray | StoredArray | StoredTensor)


def numbers(path: Path, value: object, label: str) -> Tensor:
    """An array of real numbers as a tensor on the CPU, with unchanged dtype.

    label: its name in the FileError for anything else, such as text, complex numbers or booleans.
    """
    if isinstance(value, StoredArray | StoredTensor):
        value = value.value
    if not isinstance(value, Tensor | np.ndarray):
        raise FileError(path, f"{label} is not an array but {type(value).__name__}")
    try:
        # A copy in the machine's byte order, which torch requires; it also warns about read-only arrays.
        plain = np.array(value, value.dtype.newbyteorder("=")) if isinstance(value, np.ndarray) else value
        tensor = torch.as_tensor(plain).detach().cpu()
    except TypeError as error:
        raise FileError(path, f"{label} does not hold numbers ({value.dtype})") from error
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_quantized or tensor.is_sparse:
        raise FileError(path, f"{label} holds {tensor.dtype}, not real numbers")
    return tensor
