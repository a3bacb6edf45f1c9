"""Stand-ins for NumPy's names in a pickle: arrays of numbers and text, and their types."""

import pickle
import re
from typing import Any, Self

import numpy as np

from wrangan_cli.engine.checkpoints.sealed import Data


class DType(Data):
    __slots__ = ("dtype",)
    dtype: np.dtype[Any]

    def __new__(cls, code: str, *_: object) -> Self:
        # Only numbers and text: object arrays would hold pickled objects.
        if not isinstance(code, str) or not re.fullmatch(r"[fiub][1248]|c8|c16|[US]\d{1,6}", code):
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


class StoredArray(Data):
    """Stands for a NumPy array; `value` is an array of numbers or text, or None if never filled."""

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


class AnyDType(DType):
    """Numbers, or Python objects in the one array that `read_object_array` reads."""

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
        if not (held and isinstance(held[0], AnyDType) and held[0].dtype.hasobject):
            super().__setstate__(state)
        elif isinstance(held[1], list):
            self.objects = held[1]
        else:
            raise pickle.UnpicklingError("a NumPy array of objects without a list of them")


def array_from_buffer(data: object, dtype: object, shape: tuple[int, ...], order: str) -> StoredArray:
    """An array as pickles of protocol 5 store it."""
    made = StoredArray()
    made.value = _array(data, dtype, shape, order)
    return made


def array_scalar(dtype: object, data: object) -> Any:
    return _array(data, dtype, (), "C").item()


def _array(data: object, dtype: object, shape: tuple[int, ...], order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("refused: a NumPy array that is not plain numbers")
    array = np.frombuffer(data, dtype.dtype)
    return array.reshape(shape, order="F" if order == "F" else "C")
