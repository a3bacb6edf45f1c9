"""Our limits in place of Pillow's while photographs are read, and no output from it or its libraries."""

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
    """Use our limits for sizes and texts in place of Pillow's, and suppress warnings about odd metadata.

    Blocks may overlap in several threads: the first one changes the limits, the last one restores them.
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
    """Keep libtiff from printing messages about broken files before Pillow raises.

    Affects the library loaded by Pillow. If it cannot be accessed, it keeps printing.
    """
    import ctypes

    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
