"""The Python interface: what the commands do, for pictures and codes in memory (docs/python.md).

Use it as `import wrangan`. It calls the same engine as the commands; nothing is printed. Errors that a user
can act on are `WranganError`, one clear line each; remarks go to the log `wrangan`.
"""

from wrangan_cli.api.codes import edit, interpolate, load_code, render, save_code
from wrangan_cli.api.evaluation import Scores, evaluate
from wrangan_cli.api.faces import align, paste
from wrangan_cli.api.inversion import Inverter, invert
from wrangan_cli.api.models import directions, load_model
from wrangan_cli.api.pictures import Face
from wrangan_cli.api.sampling import random_codes
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.editing.directions import Direction
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model

__all__ = [
    "Code",
    "Direction",
    "Face",
    "Inverter",
    "Model",
    "Scores",
    "WranganError",
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
