"""What the tests of the Python interface share."""

from typing import Any

import pytest

from wrangan_cli.api import faces, models

FEW: dict[str, Any] = {"init": "mean", "steps": 3, "perceptual_weight": 0.0}
"""An inversion that needs no network but the generator."""


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    models._LOADED.clear()
    models._bundled.cache_clear()
    faces._detector.cache_clear()
