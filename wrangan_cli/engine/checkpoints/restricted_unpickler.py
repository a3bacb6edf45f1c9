"""A pickle reader that builds data and can run nothing from the file.

NVIDIA publishes StyleGAN2 as Python pickles, and a pickle is a program: its reader calls
whatever function the file names. Here every name that a network pickle needs stands for
a small class of this module that only keeps data (tensors, numbers, settings); any
other name is refused. Source text that the file carries stays text, and the bytes of
tensors nested in it are read by `torch.load(weights_only=True)`.
"""

import io
import math
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.errors import FileError

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
"""What a broken or hostile stream makes pickle and torch raise."""


class RefusedGlobal(pickle.UnpicklingError):
    """The file asks for a function or class that no network needs."""

    def __init__(self, name: str) -> None:
        super().__init__(f"refused: the file asks for {name}, which could run code")


class _Sealed(type):
    """Classes that a pickle cannot change (its BUILD instruction may set attributes)."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"refused: the file tries to change {cls.__name__}.{name}")


class _Data(metaclass=_Sealed):
    """Base of the stand-ins: no `__dict__`, no state but what a subclass accepts."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"refused: unexpected state for {type(self).__name__}")


class PlainDict(dict[Any, Any], metaclass=_Sealed):
    """Stands for `collections.OrderedDict` and `dnnlib.EasyDict`; attributes are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _PlainSet(set[Any], metaclass=_Sealed):
    __slots__ = ()


class PersistentObject(_Data):
    """Stands for what NVIDIA's `torch_utils.persistence` rebuilds from embedded source.

    class_name: str. state: the attributes, a dict. The source text is ignored.
    """

    __slots__ = ("class_name", "state")
    class_name: str
    state: dict[str, Any]

    def __new__(cls, meta: object) -> "PersistentObject":
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise pickle.UnpicklingError("a persistent object without state")
        made = super().__new__(cls)
        made.class_name = str(meta.get("class_name"))
        made.state = meta["state"]
        return made


class TensorFlowNetwork(_Data):
    """Stands for `dnnlib.tflib.network.Network`; state: what its `__getstate__` gave."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __new__(cls) -> "TensorFlowNetwork":
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a TensorFlow network whose state is no dict")
        self.state = state


class StoredTensor(_Data):
    """Stands for a torch tensor or parameter; `value` is a CPU tensor."""

    __slots__ = ("value",)
    value: Tensor

    def __new__(
        cls, storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> "StoredTensor":
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without storage")
        # No tensor of a network repeats its values by stride 0: a cheap guard against
        # sizes that would not fit into memory.
        if math.prod(size) > storage.values.numel():
            raise pickle.UnpicklingError("a tensor larger than its storage")
        made = super().__new__(cls)
        made.value = storage.values.as_strided(size, stride, offset)
        return made


class _Parameter(_Data):
    def __new__(cls, data: object, *_: object) -> Any:
        if not isinstance(data, StoredTensor):
            raise pickle.UnpicklingError("a parameter that is no tensor")
        return data


class _Storage(_Data):
    """The values of a tensor, from the bytes of a nested torch file."""

    __slots__ = ("values",)
    values: Tensor

    def __new__(cls, data: bytes) -> "_Storage":
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a tensor storage that is not bytes")
        made = super().__new__(cls)
        made.values = _as_vector(load_weights_only(io.BytesIO(data)))
        return made


class _DType(_Data):
    __slots__ = ("dtype",)
    dtype: np.dtype[Any]

    def __new__(cls, code: str, *_: object) -> Self:
        # Numbers only: object arrays would hold pickled objects, others are no weights.
        if not isinstance(code, str) or not re.fullmatch(r"[fiub][1248]", code):
            kind = code if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"refused: a NumPy array of type '{kind}', not of numbers")
        made = super().__new__(cls)
        made.dtype = np.dtype(code)
        return made

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a NumPy type of unknown byte order")
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("refused: a NumPy type with fields")
        self.dtype = self.dtype.newbyteorder(state[1])


class _ArrayClass(_Data):
    """Stands for the class `numpy.ndarray`, which pickles only mention."""


class StoredArray(_Data):
    """Stands for a NumPy array; `value` is an array of numbers, or None if never filled."""

    __slots__ = ("value",)
    value: np.ndarray[Any, Any] | None

    def __new__(cls, *_: object) -> Self:
        made = super().__new__(cls)
        made.value = None
        return made

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("a NumPy array of an unknown form")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _AnyDType(_DType):
    """Numbers, or Python objects: of the one array that `read_object_array` is about."""

    __slots__ = ()

    def __new__(cls, code: str, *rest: object) -> Self:
        made = super().__new__(cls, "u1" if code == "O8" else code, *rest)
        if code == "O8":
            made.dtype = np.dtype(object)
        return made


class StoredObjects(StoredArray):
    """Stands for a NumPy array of either kind; `objects` is the list of an array of Python objects."""

    __slots__ = ("objects",)
    objects: list[Any] | None

    def __new__(cls, *_: object) -> Self:
        made = super().__new__(cls)
        made.objects = None
        return made

    def __setstate__(self, state: object) -> None:
        held = state[2:5:2] if isinstance(state, tuple) and len(state) == 5 else ()
        if not (held and isinstance(held[0], _AnyDType) and held[0].dtype.hasobject):
            super().__setstate__(state)
        elif isinstance(held[1], list):
            self.objects = held[1]
        else:
            raise pickle.UnpicklingError("a NumPy array of objects without a list of them")


class _ArrayFromBuffer(_Data):
    """The form of arrays in pickles of protocol 5."""

    def __new__(cls, data: object, dtype: object, shape: tuple[int, ...], order: str) -> Any:
        made = StoredArray()
        made.value = _array(data, dtype, shape, order)
        return made


class _ArrayScalar(_Data):
    def __new__(cls, dtype: object, data: object) -> Any:
        return _array(data, dtype, (), "C").item()


_ALLOWED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): PlainDict,
    ("builtins", "set"): _PlainSet,
    ("__builtin__", "set"): _PlainSet,
    ("dnnlib.util", "EasyDict"): PlainDict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): PersistentObject,
    ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("dnnlib.tflib.network", "Network"): TensorFlowNetwork,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _ArrayClass,
    **{
        (f"{package}.{module}", name): stand_in
        for package in ("numpy.core", "numpy._core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", StoredArray),
            ("multiarray", "scalar", _ArrayScalar),
            ("numeric", "_frombuffer", _ArrayFromBuffer),
        )
    },
}


# The one in Python: that in C takes memory for as many objects as the highest number in the stream says,
# tens of gigabytes for six bytes of a broken file.
class _RestrictedUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise RefusedGlobal(f"{module}.{name}") from None


def read_pickle(path: Path) -> Any:
    """The data of a pickle file: plain values and this module's stand-ins.

    Raises FileError: a name that is not allowed, a truncated or broken stream.
    """
    try:
        with open(path, "rb") as stream:
            return _RestrictedUnpickler(stream).load()
    except READ_ERRORS as error:
        raise FileError(path, one_line(error)) from error


class _ObjectUnpickler(_RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = super().find_class(module, name)
        return {_DType: _AnyDType, StoredArray: StoredObjects}.get(stand_in, stand_in)


def read_object_array(path: Path, stream: BinaryIO) -> list[Any]:
    """The objects of a NumPy array, pickled from where `stream` stands: plain values and stand-ins.

    path: for the message. Raises FileError: a name that is not allowed, a truncated or broken stream.
    """
    try:
        array = _ObjectUnpickler(stream).load()
    except READ_ERRORS as error:
        raise FileError(path, one_line(error)) from error
    if not isinstance(array, StoredObjects) or array.objects is None:
        raise FileError(path, "no array of objects")
    return array.objects


def load_weights_only(stream: BinaryIO | Path) -> Any:
    """`torch.load` on the CPU, of tensors and plain values only.

    Raises RefusedGlobal with the name that the file asks for, or what torch raises.
    """
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols that it does not write itself.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        if asked:
            raise RefusedGlobal(asked[1] or asked[2]) from error
        cause = re.search(r"WeightsUnpickler error: ([^\n]+)", str(error))
        raise pickle.UnpicklingError(cause[1] if cause else str(error)) from error


def one_line(error: BaseException) -> str:
    """The cause of a reading error in one printable line."""
    ends = ("truncated", "Ran out of", "exhausted")
    if isinstance(error, EOFError | struct.error) or any(word in str(error) for word in ends):
        return "the file is truncated"
    text = printable(str(error).split(". ")[0])
    return text if isinstance(error, pickle.UnpicklingError) else f"not readable as a checkpoint ({text})"


def printable(text: str, length: int = 300) -> str:
    """Names in a file may hold line ends and terminal commands: one line of what can be printed."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:length]


def _array(data: object, dtype: object, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("refused: a NumPy array that is not plain numbers")
    array = np.frombuffer(data, dtype.dtype)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _as_vector(storage: object) -> Tensor:
    if isinstance(storage, torch.storage.TypedStorage):
        # The public `untyped()` warns that typed storages are deprecated; files have them.
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    raise pickle.UnpicklingError("nested tensor data that is no storage")
