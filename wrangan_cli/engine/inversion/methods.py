"""The inversion methods by name; each is a function in a small file."""

from collections.abc import Callable
from typing import Any

from wrangan_cli.engine.inversion import projector, pti, trained, weight_tuning, wrangan
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.loop import Result

METHOD_TABLE: dict[str, Callable[[Fit[Any]], Result]] = {
    "wrangan": wrangan.invert,
    "weight-tuning": weight_tuning.invert,
    "sg2-w": projector.invert_w,
    "sg2-w-plus": projector.invert_w_plus,
    "pti": pti.invert,
    "encoder": trained.invert,
    "e4e": trained.invert,
    "restyle": trained.invert,
    "hyperstyle": trained.invert,
}
