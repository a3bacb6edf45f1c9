"""Settings of a report, and of the methods in it, from texts such as `steps=125` or `pti.lr=1e-4`."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS, SETTINGS, applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import METRIC_SIDE

N = TypeVar("N", int, float)
LEAST_KID = 4
"""Images that a KID takes at least."""


@dataclass(frozen=True)
class ReportSettings:
    """What a report measures and shows, beyond the inversions."""

    metrics: str = ""
    """Metrics of reconstruction, names with commas between; empty: all (identity on face models only)."""
    metric_side: int = METRIC_SIDE
    """Photographs of a larger side, and their images, are reduced to it for the metrics of reconstruction; 0:
    each at its own side."""
    directions: str = ""
    """Directions of the edits, names with commas between; empty: the first five of the model."""
    strength: float = 3.0
    """Standard deviations of the edits, both ways."""
    edited: int = 12
    """Photographs whose edits are shown, from the first on."""
    shown: int = 8
    """Photographs in the figures, from the first on."""
    interpolations: int = 2
    """Pairs of neighbouring photographs in the figure of interpolations."""
    consistency: int = 4
    """Photographs of the latent editing consistency (each is inverted twice more); 0 leaves it out."""
    edit_success: int = 50
    """Photographs of the edit success; 0 leaves it out."""
    sweep: int = 4
    """Photographs of Figure 3 (each is fitted anew for every α, N and method); 0 leaves it out."""
    alphas: str = "1e-4,1e-2,0.1,1,10"
    """Weights α of the penalty in Figure 3, with commas between."""
    sweep_layers: str = ""
    """N of Figure 3, with commas between; empty: the model's own."""
    sweep_samples: int = 0
    """Moved images, of all photographs together, for the corruption of each point of Figure 3; 0: distortion
    alone."""
    separability_samples: int = 2000
    """Samples of Table 5."""
    influence_samples: int = 64
    """Samples of Table 7."""
    samples: int = 2000
    """Images of Table 3, and of each method in Table 4 (of all its codes together); 0 leaves both out."""
    seed: int = 0
    """Seed of all samples."""

    def __post_init__(self) -> None:
        counts = (
            "metric_side",
            "edited",
            "shown",
            "interpolations",
            "consistency",
            "edit_success",
            "sweep",
            "samples",
            "seed",
        )
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected 0 or more")
        if self.shown < 1 or self.influence_samples < 1:
            raise ValueError("shown and influence_samples must be 1 or more")
        if self.separability_samples and self.separability_samples < 20:
            raise ValueError("separability_samples must be 20 or more, or 0 to leave Table 5 out")
        if not math.isfinite(self.strength):
            raise ValueError(f"strength {self.strength}: expected a finite number")
        if self.sweep_samples and self.sweep_samples < LEAST_KID * max(1, self.sweep):
            every = f"{LEAST_KID} or more for each of the {self.sweep} photographs of the sweep"
            raise ValueError(f"sweep_samples must be {every}, or 0 for distortion alone")
        for name, least in (("alphas", 0.0), ("sweep_layers", 1)):
            try:
                good = all(least <= value < math.inf for value in _numbers(getattr(self, name), type(least)))
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected numbers with commas between")

    @property
    def alpha_values(self) -> tuple[float, ...]:
        """`alphas`, each once, from small to large."""
        return _numbers(self.alphas, float)

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """`sweep_layers`, likewise."""
        return _numbers(self.sweep_layers, int)


def chosen_methods(text: str) -> tuple[str, ...]:
    """`all`, or names with commas between, in the order in which the suite lists them."""
    if text.strip() == "all":
        return METHODS
    names = split_names(text)
    for name in names:
        if name not in METHODS:
            raise UsageError(f"method {name!r}: expected all, or some of {', '.join(METHODS)}")
    if not names:
        raise UsageError("no method given")
    return tuple(name for name in METHODS if name in names)


def possible_methods(
    model: Model, settings: Mapping[str, InversionSettings], everything: bool
) -> tuple[list[str], list[str]]:
    """Methods that the model has what is needed for, and a line about each of the others.

    Raises the reason where a method was asked for by name (not `everything`), UsageError where none is left.
    """
    chosen: list[str] = []
    lacking: list[str] = []
    for method, wanted in settings.items():
        try:
            Inverter.load(model, wanted)
        except (UsageError, FileError) as error:
            if not everything:
                raise
            lacking.append(f"method {method}: left out ({error})")
        else:
            chosen.append(method)
    if not chosen:
        raise UsageError("; ".join(lacking))
    return chosen, lacking


def _numbers(text: str, kind: type[N]) -> tuple[N, ...]:
    return tuple(sorted({kind(part) for part in split_names(text)}))


def split_names(text: str) -> list[str]:
    """Names with commas between, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_settings(
    texts: Iterable[str], methods: Sequence[str], **given: Any
) -> tuple[dict[str, InversionSettings], ReportSettings]:
    """NAME=VALUE and METHOD.NAME=VALUE → the settings of each method, and those of the report.

    A name is a setting of a method, or a field of ReportSettings. NAME=VALUE is for all methods that have
    it. given: fields of the report that were set in another way. Raises UsageError for an unknown name, a
    bad value, and a METHOD that has no such setting.
    """
    of_report, of_method = _fields(ReportSettings), _fields(*SETTINGS.values())
    common: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {method: {} for method in methods}
    report: dict[str, Any] = dict(given)
    for text in texts:
        left, equals, value = text.partition("=")
        method, dot, name = left.strip().rpartition(".")
        if not equals or not name or name == "method":
            raise UsageError(f"--set {text!r}: expected NAME=VALUE or METHOD.NAME=VALUE")
        if dot:
            if method not in single:
                raise UsageError(f"--set {text!r}: {method!r} is not among the methods {', '.join(methods)}")
            single[method][name] = _value(text, name, value, of_method)
        elif name in of_method and name not in ReportSettings.__dataclass_fields__:
            common[name] = _value(text, name, value, of_method)
        else:
            report[name] = _value(text, name, value, of_report)
    try:
        of_report_settings = ReportSettings(**report)
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = {
        method: inversion_settings(method, **{**applicable(method, common), **single[method]})
        for method in methods
    }
    if len({one.size for one in settings.values()}) > 1:
        raise UsageError("size: methods are compared at one side: give --set size=… for all of them")
    return settings, of_report_settings


def _fields(*kinds: type) -> dict[str, Any]:
    """The types of the fields of all these dataclasses, by name."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds):
        types_of = typing.get_type_hints(kind)
        found |= {field.name: types_of[field.name] for field in dataclasses.fields(kind)}
    return found


def _value(text: str, name: str, value: str, fields: Mapping[str, Any]) -> Any:
    if name not in fields:
        known = sorted({*_fields(*SETTINGS.values(), ReportSettings)} - {"method"})
        raise UsageError(f"--set {text!r}: no setting {name!r}; there are {', '.join(known)}")
    kinds = typing.get_args(fields[name]) if isinstance(fields[name], types.UnionType) else (fields[name],)
    if type(None) in kinds and value == "none":
        return None
    for kind in kinds:
        try:
            if kind is bool and value in ("true", "false"):
                return value == "true"
            if kind in (int, float, str):
                return kind(value)
        except ValueError:
            continue
    raise UsageError(f"--set {text!r}: {value!r} is no value of {name}")
