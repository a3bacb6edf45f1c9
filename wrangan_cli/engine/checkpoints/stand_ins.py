"""Stand-ins for the names in a pickle: small classes that keep data and run nothing.

A pickle calls whatever function it names. `stand_in` returns, for each harmless name, a class of
this module in place of the original: tensors and arrays become numbers, settings plain
dicts, dates, paths and the like plain values. It refuses every other name.
"""

import datetime
import decimal
import fractions
import keyword
import math
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints.numpy_stand_ins import DType, StoredArray, array_from_buffer, array_scalar
from wrangan_cli.engine.checkpoints.sealed import Data, RefusedGlobal, Sealed

REPEATED_AT_MOST = 2**22
"""Limit for tensors that repeat their storage (stride 0): a guard against sizes beyond the memory."""
RANGE_AT_MOST = 2**20
_SIMPLE = (str, int, float, bool, bytes, tuple, type(None))


class PlainDict(dict[Any, Any], metaclass=Sealed):
    """Stands for `collections.OrderedDict` and `Counter`; attributes are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _PlainSet(set[Any], metaclass=Sealed):
    __slots__ = ()


class _ClassOfObjects(Sealed):
    def __call__(cls, *arguments: Any) -> Any:
        # A member of an enumeration is stored as its class, called with the value. Objects with a
        # state are made another way (`__new__`), or without arguments.
        if len(arguments) == 1 and isinstance(arguments[0], _SIMPLE):
            return arguments[0]
        return cls.__new__(cls, *arguments)  # type: ignore[arg-type]


class StoredObject(dict[Any, Any], metaclass=_ClassOfObjects):
    """An object of an unknown class: its items and attributes as a dict, nothing else.

    Used for torch modules (`_parameters`, `_buffers`, `_modules`, settings), namespaces and dicts with
    attributes. class_name: the name in the file.
    """

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]
    class_name = ""
    dump_patches = False
    """torch reads this from modules in its old files."""

    def __new__(cls, *_: Any, **__: Any) -> "StoredObject":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        # With slots, the state is a pair of attributes and slots.
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                # Items take precedence over attributes of the same name.
                self.update({name: value for name, value in part.items() if name not in self})
            elif part is not None:
                self.setdefault("state", part)

    def append(self, value: object) -> None:
        """For subclasses of list: store elements by number."""
        self[len(self)] = value


def _class(name: str) -> type[StoredObject]:
    return _ClassOfObjects(  # type: ignore[return-value]
        "StoredObject", (StoredObject,), {"__slots__": (), "class_name": name}
    )


def persistent_object(meta: object) -> StoredObject:
    """What NVIDIA's `torch_utils.persistence` rebuilds from embedded source: only its state."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise pickle.UnpicklingError("a persistent object without state")
    made = _class(str(meta.get("class_name")))()
    made.update(meta["state"])
    return made  # type: ignore[no-any-return]


class TensorFlowNetwork(Data):
    """Stands for `dnnlib.tflib.network.Network`; state: the result of its `__getstate__`."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __new__(cls) -> "TensorFlowNetwork":
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a TensorFlow network whose state is not a dict")
        self.state = state


class StoredTensor(Data):
    """Stands for a torch tensor or parameter; `value` is a CPU tensor."""

    __slots__ = ("value",)
    value: Tensor

    def __new__(
        cls, storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> "StoredTensor":
        values = storage.values if isinstance(storage, Storage) else as_vector(storage)
        if math.prod(size) > max(values.numel(), REPEATED_AT_MOST):
            raise pickle.UnpicklingError("a tensor larger than its storage")
        made = super().__new__(cls)
        made.value = values.as_strided(size, stride, offset)
        return made


class Storage(Data):
    """The values of a tensor, (n,), from the bytes of a nested torch file."""

    __slots__ = ("values",)
    values: Tensor

    def __new__(cls, values: Tensor) -> "Storage":
        made = super().__new__(cls)
        made.values = values
        return made


def as_vector(storage: object) -> Tensor:
    """The values of a torch storage, (n,); UnpicklingError for anything else."""
    if isinstance(storage, torch.storage.TypedStorage):
        # The public `untyped()` warns that typed storages are deprecated; files have them.
        return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    raise pickle.UnpicklingError("a tensor without storage")


def _parameter(data: object, *_: object) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise pickle.UnpicklingError("a parameter that is not a tensor")
    return data


def _with_attributes(rebuild: object, _: object, arguments: Any, *__: object) -> StoredTensor:
    """A tensor that has attributes, which are dropped."""
    if rebuild not in (_TENSOR, _PARAMETER):
        raise pickle.UnpicklingError("a tensor of an unknown form")
    return rebuild(*arguments)  # type: ignore[operator,no-any-return]


# --- Plain values ----------------------------------------------------------------------


def _encoded(text: object, codec: object = "") -> bytes:
    """How protocol 2 stores bytes: as text of Latin-1."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise RefusedGlobal("_codecs.encode")
    return text.encode("latin-1")


def _bytes(data: object = b"") -> bytes:
    # A number would allocate that many bytes.
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("bytes of an unknown form")
    return bytes(data)


def _range(*bounds: Any) -> range:
    # A set or list made from it would be as long.
    if len(made := range(*bounds)) > RANGE_AT_MOST:
        raise pickle.UnpicklingError("a range of too many numbers")
    return made


def _path(*parts: object) -> str:
    # The first part holds the root, if there is one.
    root, rest = (str(parts[0]), parts[1:]) if parts and str(parts[0])[-1:] in ("/", "\\") else ("", parts)
    return root + ("\\" if "\\" in root else "/").join(map(str, rest))


def _fraction(numerator: object = 0, denominator: object = 1) -> fractions.Fraction:
    # "1e999999999" would be a number with that many digits.
    if isinstance(numerator, str):
        first, _, second = numerator.partition("/")
        return fractions.Fraction(int(first), int(second or 1))
    if not isinstance(numerator, int) or not isinstance(denominator, int):
        raise pickle.UnpicklingError("a fraction of an unknown form")
    return fractions.Fraction(numerator, denominator)


def _member(owner: object = None, name: object = None) -> type[StoredObject]:
    """A class inside of a class, in old protocols."""
    if not isinstance(owner, _ClassOfObjects) or not isinstance(name, str):
        raise RefusedGlobal("builtins.getattr")
    return _class(f"{owner.class_name}.{name}")  # type: ignore[attr-defined]


def _rebuilt(owner: object, *_: object) -> StoredObject:
    """An object in protocols 0 and 1."""
    if not isinstance(owner, _ClassOfObjects):
        raise pickle.UnpicklingError("an object of an unknown form")
    return owner.__new__(owner)  # type: ignore[no-any-return,call-overload]


def _as_list(values: Iterable[Any] = (), *_: object) -> list[Any]:
    return list(values)


def _function(name: str, build: Callable[..., Any]) -> type:
    """A class whose call returns the result of `build`; unlike a function, a pickle cannot change it."""

    def new(_: type, *arguments: Any) -> Any:
        return build(*arguments)

    return Sealed(name, (Data,), {"__slots__": (), "__new__": new})


def _mentioned(name: str) -> type:
    """A type that files only mention (as a default or a dtype): calling it is refused."""

    def new(_: type, *__: Any) -> NoReturn:
        raise RefusedGlobal(name)

    return Sealed(name, (Data,), {"__slots__": (), "__new__": new})


_TENSOR = StoredTensor
_PARAMETER = _function("Parameter", _parameter)
_SAME: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": complex,
    "builtins.frozenset": frozenset,
    "builtins.getattr": _member,
    "builtins.range": _range,
    "builtins.slice": slice,
    "collections.defaultdict": lambda *_: {},
    "collections.deque": _as_list,
    "copyreg._reconstructor": _rebuilt,
    "datetime.date": datetime.date,
    "datetime.datetime": datetime.datetime,
    "datetime.time": datetime.time,
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": _fraction,
    "torch.Size": lambda sides=(): tuple(sides),
    "torch.device": lambda *place: ":".join(map(str, place)),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
    **{
        f"{module}.{pure}{system}Path": _path
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("", "Posix", "Windows")
    },
    **{f"numpy.{core}.multiarray.scalar": array_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": array_from_buffer for core in ("core", "_core")},
}
_ALLOWED: dict[str, Any] = {
    **{name: _function(name, build) for name, build in _SAME.items()},
    **{
        name: _mentioned(name)
        for name in (
            *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
            *(f"numpy.{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
            *(f"numpy.{kind}" for kind in ("ndarray", "bool_", "bool", "float16", "float32", "float64")),
            *(f"typing.{kind}" for kind in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
            *("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"),
        )
    },
    **{f"numpy.{core}.multiarray._reconstruct": StoredArray for core in ("core", "_core")},
    "builtins.object": _class("object"),
    "builtins.set": _PlainSet,
    "argparse.Namespace": _class("argparse.Namespace"),
    "types.SimpleNamespace": _class("types.SimpleNamespace"),
    "collections.Counter": PlainDict,
    "collections.OrderedDict": PlainDict,
    "dnnlib.tflib.network.Network": TensorFlowNetwork,
    "numpy.dtype": DType,
    "torch._utils._rebuild_tensor": StoredTensor,
    "torch._utils._rebuild_tensor_v2": StoredTensor,
    "uuid.UUID": _class("uuid.UUID"),
}
_KNOWN = sys.stdlib_module_names | {"torch", "numpy", "wrangan_cli", "wrangan_kernels"}
"""Packages whose harmless classes are listed above; for others no list is possible."""
_MODULES_OF_TORCH = ("torch.nn.modules.", "torch.nn.parallel.", "torch.optim.swa_utils")


def stand_in(module: str, name: str) -> Any:
    """The stand-in for a name in a pickle; RefusedGlobal for names not known to be data.

    Classes of packages other than Python's, torch's and NumPy's (by their names: `Generator`, `EasyDict`)
    become StoredObjects, and so do torch's layers: their content is data, and their code does not run.
    """
    # Protocol 2 uses the names of Python 2.
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if full in _ALLOWED:
        return _ALLOWED[full]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    stranger = module.split(".")[0] not in _KNOWN or module.startswith(_MODULES_OF_TORCH)
    if stranger and _is_class(name):
        return _class(full)
    raise RefusedGlobal(full)


def _is_class(name: str) -> bool:
    """Whether this is the name of a class, by Python's convention: functions start with a lower-case
    letter."""
    parts = name.split(".")
    proper = all(part.isidentifier() and not keyword.iskeyword(part) for part in parts)
    return proper and parts[-1].lstrip("_")[:1].isupper()
