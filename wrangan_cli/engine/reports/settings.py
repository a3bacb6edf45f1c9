"""Settings of a report and of its methods, from strings such as `steps=125` or `pti.lr=1e-4`."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from wrangan_cli.engine.base.choices import choices_in
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import METHODS, SETTINGS, applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import METRIC_SIDE

N = TypeVar("N", int, float)
LEAST_KID = 4
"""Minimum number of images for KID."""


@dataclass(frozen=True)
class ReportSettings:
    """What a report measures and shows."""

    metrics: str = ""
    """Metrics of reconstruction, separated by commas; empty: all (identity only for models of faces)."""
    metric_side: int = METRIC_SIDE
    """Side in px to which larger photographs and their images are reduced for the metrics of reconstruction;
    0: do not reduce."""
    directions: str = ""
    """Directions of the edits, separated by commas; empty: the first five of the model."""
    strength: float = 3.0
    """Strength of the edits in standard deviations, both ways."""
    edited: int = 12
    """Number of photographs whose edits are shown."""
    shown: int = 8
    """Number of photographs in the figures."""
    interpolations: int = 2
    """Number of pairs of neighbouring photographs in the figure of interpolations."""
    consistency: int = 4
    """Number of photographs for latent editing consistency (each is re-inverted twice); 0: leave it out."""
    edit_success: int = 50
    """Number of photographs for edit success; 0: leave it out."""
    sweep: int = 4
    """Number of photographs for Figure 3 (each is refitted for every α, N and method); 0: leave it out."""
    alphas: str = "1e-4,1e-2,0.1,1,10"
    """Weights α of the penalty in Figure 3, separated by commas."""
    sweep_layers: str = ""
    """Values of N in Figure 3, separated by commas; empty: that of the model."""
    sweep_samples: int = 0
    """Number of moved images, over all photographs together, for the corruption at each point of Figure 3; 0:
    only distortion."""
    separability_samples: int = 2000
    """Number of samples for Table 5."""
    influence_samples: int = 64
    """Number of samples for Table 7."""
    samples: int = 2000
    """Number of images for Table 3, and for each method in Table 4 (over all its codes); 0: leave both
    out."""
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
                raise ValueError(f"{name} {getattr(self, name)!r}: expected numbers separated by commas")

    @property
    def alpha_values(self) -> tuple[float, ...]:
        """The values of `alphas`, each once, in ascending order."""
        return _numbers(self.alphas, float)

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """The values of `sweep_layers`, likewise."""
        return _numbers(self.sweep_layers, int)


def chosen_methods(text: str) -> tuple[str, ...]:
    """`all`, or names separated by commas, in the order of METHODS."""
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
    """Methods that the model supports, and a line about each of the others.

    Raises the error of an unsupported method if it was requested by name (not `everything`), UsageError if no
    method is left.
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
    """Names separated by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_settings(
    texts: Iterable[str], methods: Sequence[str], **given: Any
) -> tuple[dict[str, InversionSettings], ReportSettings]:
    """NAME=VALUE and METHOD.NAME=VALUE → the settings of each method, and those of the report.

    A name is a setting of a method, or a field of ReportSettings. NAME=VALUE applies to all methods that have
    the setting. given: fields of the report that are set by other options. Raises UsageError for an unknown
    name, a bad value, and a METHOD that has no such setting.
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
        raise UsageError("size: methods are compared at the same side: give --set size=… for all of them")
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
    annotation = fields[name]
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if choices := choices_in(annotation):  # the settings validate them
        kinds = tuple(type(choice) for choice in choices)
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
    raise UsageError(f"--set {text!r}: {value!r} is not a valid value of {name}")
