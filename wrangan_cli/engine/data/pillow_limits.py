"""Pillow and the libraries below it, while photographs are read: our limits, and no lines of theirs."""

import contextlib
import threading
import warnings
from collections.abc import Iterator
from functools import cache

from PIL import Image, PngImagePlugin

from wrangan_cli.engine.data.side_information import TEXT_LIMIT

_quiet_lock = threading.Lock()
_quiet_blocks = contextlib.ExitStack()
_quiet_depth = 0


@contextlib.contextmanager
def pillow_without_remarks() -> Iterator[None]:
    """Our own limits of sizes and texts instead of Pillow's, and no warnings about odd metadata.

    Blocks may overlap in several threads: what the first one changed the last one restores.
    """
    global _quiet_depth
    with _quiet_lock:
        if _quiet_depth == 0:
            _silence_libtiff()
            _quiet_blocks.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
            for name, limit in (("MAX_TEXT_CHUNK", TEXT_LIMIT), ("MAX_TEXT_MEMORY", 4 * TEXT_LIMIT)):
                _quiet_blocks.callback(setattr, PngImagePlugin, name, getattr(PngImagePlugin, name))
                setattr(PngImagePlugin, name, limit)
            _quiet_blocks.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_blocks.close()


@cache
def _silence_libtiff() -> None:
    """libtiff prints lines of its own about a broken file, before Pillow raises; not any more.

    The library is the one that Pillow has loaded. Where it cannot be reached it goes on printing.
    """
    import ctypes

    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
