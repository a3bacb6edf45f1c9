"""A pickle reader that builds data and cannot run anything from the file.

NVIDIA publishes StyleGAN2 as Python pickles, torch's files hold one, and a pickle is a program: its
reader calls whatever function the file names. Here every harmless name stands for a small class that
only keeps data (`stand_ins`); any other name is refused. Source text that the file carries stays text.

The same reader serves both. torch opens its files, whose tensors are beside the pickle, and is
given this reader for the pickle. Its restricted reader (`weights_only`) supports only three kinds of dict and
no pickle newer than protocol 2, and every foreign class must be registered before reading.
"""

import io
import pickle
import re
import struct
import tarfile
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import torch

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.numpy_stand_ins import AnyDType, DType, StoredArray, StoredObjects
from wrangan_cli.engine.checkpoints.sealed import Data
from wrangan_cli.engine.checkpoints.stand_ins import Storage, as_vector, stand_in

READ_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    OSError,
    struct.error,
)
"""Errors that pickle and torch raise for a broken or hostile stream."""


class _NestedStorage(Data):
    """Stands for `torch.storage._load_from_bytes`: a torch file within the pickle, of one storage."""

    def __new__(cls, data: bytes) -> Any:
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a tensor storage that is not bytes")
        return Storage(as_vector(load_torch(io.BytesIO(data))))


class RestrictedUnpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """`pickle.Unpickler` that resolves every name to one of `stand_ins`.

    The implementation in Python: the one in C keeps its memo in an array, and five bytes of a damaged or
    hostile file can make it allocate tens of GB for the largest index.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _NestedStorage
        return stand_in(module, name)


class _Reader:
    """The `pickle_module` for `torch.load`."""

    Unpickler = RestrictedUnpickler

    @staticmethod
    def load(stream: BinaryIO, **options: Any) -> Any:
        return RestrictedUnpickler(stream, **options).load()


def load_pickle(path: Path) -> Any:
    """The data of a pickle file: plain values and stand-ins.

    Raises one of READ_ERRORS: a name that is not allowed, a truncated or broken stream.
    """
    with open(path, "rb") as stream:
        return RestrictedUnpickler(stream).load()


class _ObjectUnpickler(RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return {DType: AnyDType, StoredArray: StoredObjects}.get(found, found)


def read_object_array(path: Path, stream: BinaryIO) -> list[Any]:
    """The objects of a NumPy array, pickled from the position of `stream`: plain values and stand-ins.

    path: for the message. Raises FileError: a name that is not allowed, a truncated or broken stream.
    """
    try:
        array = _ObjectUnpickler(stream).load()
    except READ_ERRORS as error:
        raise FileError(path, one_line(error)) from error
    if not isinstance(array, StoredObjects) or array.objects is None:
        raise FileError(path, "not an array of objects")
    return array.objects


def load_torch(stream: BinaryIO) -> Any:
    """The data of a file of `torch.save`, on the CPU: plain values and stand-ins.

    Raises one of READ_ERRORS, as `load_pickle`.
    """
    stream.seek(0)
    start = stream.read(2)
    stream.seek(0)
    # Use torch's readers to tell what torch would do with a file, so that the two cannot disagree. It
    # hands programs to its compiler, and unpacks tar archives.
    if start == b"PK":
        if "constants.pkl" in torch._C.PyTorchFileReader(stream).get_all_records():
            raise pickle.UnpicklingError(
                "a TorchScript program (torch.jit.save), not weights: save the network's state_dict"
            )
    elif tarfile.is_tarfile(stream):
        raise pickle.UnpicklingError("PyTorch's format before 2017 (a tar archive)")
    stream.seek(0)
    with warnings.catch_warnings():
        # torch warns about classes whose source it does not find.
        warnings.simplefilter("ignore")
        return torch.load(stream, map_location="cpu", weights_only=False, pickle_module=_Reader)


def one_line(error: BaseException) -> str:
    """The cause of a reading error in one printable line."""
    truncated = re.search(
        r"truncated|exhausted|Ran out of|failed finding central directory|unexpected EOF", str(error)
    )
    if isinstance(error, EOFError | struct.error) or truncated:
        return "the file is truncated"
    text = printable(str(error).split(". ")[0])
    refused = isinstance(error, pickle.UnpicklingError)
    return text if refused else f"not readable as a checkpoint ({text})"


def printable(text: str, length: int = 300) -> str:
    """Text from a file as one printable line, without line ends and control characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:length]
