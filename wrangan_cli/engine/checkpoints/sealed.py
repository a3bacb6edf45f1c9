"""Base of the classes that stand in for names in a pickle, and the error that refuses a name."""

import pickle
from typing import NoReturn


class RefusedGlobal(pickle.UnpicklingError):
    """The file asks for a function or class that no network needs."""

    def __init__(self, name: str) -> None:
        super().__init__(f"refused: the file asks for {name}, which could run code")


class Sealed(type):
    """Classes that a pickle cannot change (its BUILD instruction may set attributes)."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"refused: the file tries to change {cls.__name__}.{name}")


class Data(metaclass=Sealed):
    """Base of the stand-ins: no `__dict__`, and no state except what a subclass accepts."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"refused: unexpected state for {type(self).__name__}")
