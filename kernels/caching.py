"""Where the whole suite keeps what it can make or get again."""

import os
from pathlib import Path

from platformdirs import user_cache_path

ENVIRONMENT = "WRANGAN_CACHE"
"""Environment variable: a folder in place of the user's cache."""


def user_cache() -> Path:
    """$WRANGAN_CACHE, else `wrangan` where the system keeps caches: on Linux in $XDG_CACHE_HOME or
    ~/.cache. Nothing is made."""
    if own := os.environ.get(ENVIRONMENT):
        return Path(own).expanduser().absolute()
    return user_cache_path("wrangan", appauthor=False)
