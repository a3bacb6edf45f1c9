"""The Python interface of wrangan, by the name of its command (docs/python.md).

The code is in the package `wrangan_cli`, the command-line suite; this module passes its names on.
"""

from typing import TYPE_CHECKING, Any

import wrangan_cli

if TYPE_CHECKING:
    from wrangan_cli import *  # noqa: F403

__all__ = wrangan_cli.__all__


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """As wrangan_cli does: imported on first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(wrangan_cli, name)


def __dir__() -> list[str]:
    return dir(wrangan_cli)
