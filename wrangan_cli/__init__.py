"""wrangan: invert photographs into a randomised StyleGAN2 and keep them editable.

The Python interface is here: `import wrangan`, which is the same as `import wrangan_cli as wrangan`
(docs/python.md). Its functions are imported on first use, so this import does not load torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wrangan_cli.api import (
        Code,
        Direction,
        Face,
        Inverter,
        Model,
        Scores,
        WranganError,
        align,
        directions,
        edit,
        evaluate,
        interpolate,
        inversion_settings,
        invert,
        load_code,
        load_model,
        paste,
        random_codes,
        render,
        save_code,
    )

__version__ = "0.1.0"

__all__ = [
    "Code",
    "Direction",
    "Face",
    "Inverter",
    "Model",
    "Scores",
    "WranganError",
    "__version__",
    "align",
    "directions",
    "edit",
    "evaluate",
    "interpolate",
    "inversion_settings",
    "invert",
    "load_code",
    "load_model",
    "paste",
    "random_codes",
    "render",
    "save_code",
]


if not TYPE_CHECKING:  # with __getattr__ in sight, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Names of the Python interface, imported on first use (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("wrangan_cli.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
