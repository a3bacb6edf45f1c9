"""The settings of each method, and `inversion_settings`, which makes them from the method's name."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

from wrangan_cli.engine.base.choices import Perceptual
from wrangan_cli.engine.base.errors import UsageError, expected_one_of
from wrangan_cli.engine.inversion.settings import (
    InversionSettings,
    OptimisingSettings,
    Start,
    TuningSettings,
    check_not_negative,
    check_steps,
)

WHOLE_SIDE = 1 << 16
"""Larger than any image, so that none is reduced."""
PUBLISHED_STEPS = 1000
"""Steps of StyleGAN2's projector in the code of NVIDIA and of rosinality."""
PTI_STOP = 0.06
"""LPIPS at which pti's tuning ends, in the authors' code."""


@dataclass(frozen=True)
class WranganSettings(TuningSettings):
    """wrangan: Algorithm 1 of the paper."""

    FALLBACK: ClassVar[Mapping[str, Any]] = {**TuningSettings.FALLBACK, "std_power": 1.0}
    NAMED_BY_MODEL: ClassVar[tuple[str, ...]] = (*FALLBACK, "epsilon_lr")

    method: Literal["wrangan"] = "wrangan"
    std_power: float | None = None
    """Power of σ that distributes the movement over the weights, at constant root mean square: 1 is the
    paper's σ, 0 moves all weights equally, 2 confines the movement to those that hardly change other images.
    Unset: the model's choice, otherwise 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "std_power")

    def with_defaults(self, named: Mapping[str, Any]) -> Self:
        """As inherited, except that a schedule measured for one optimiser does not apply to the other."""
        if self.optimizer not in (None, named.get("optimizer", self.FALLBACK["optimizer"])):
            named = {n: value for n, value in named.items() if n not in ("decay", "epsilon_warmup")}
        return super().with_defaults(named)


@dataclass(frozen=True)
class WeightTuningSettings(TuningSettings):
    """weight-tuning: Simple Weight Tune of the paper (section 3.2)."""

    NAMED_BY_MODEL: ClassVar[tuple[str, ...]] = ("steps",)
    """Only the steps, so that it is compared with wrangan at equal cost."""

    method: Literal["weight-tuning"] = "weight-tuning"


@dataclass(frozen=True)
class ProjectionSettings(OptimisingSettings):
    """The settings of sg2-w, sg2-w-plus and pti, whose pivot is a projection (Karras et al. 2020, appendix
    D)."""

    protocol: Literal["equal-cost", "published"] = "equal-cost"
    """equal-cost: the same data term as all methods, and 500 steps. published: the perceptual distance
    alone, and 1000 steps, as in the code of NVIDIA and of rosinality (pti's pivot takes pti_pivot_steps in
    both)."""
    w_noise: float = 0.05
    """Initial noise on w in the projection, in units of the size of W (StyleGAN2, appendix D); fades out
    over 75 % of the steps."""
    noise_weight: float = 1e5
    """Weight of the penalty that keeps the fitted noise maps like noise (StyleGAN2, appendix D); 0: use the
    model's noise maps, without fitting them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "w_noise", "noise_weight")
        if self.protocol != "published":
            return
        if self.l2_weight not in (0.0, type(self).l2_weight):
            raise ValueError(
                f"l2_weight {self.l2_weight}: protocol published uses the perceptual distance alone"
            )
        if self.seconds is not None:
            raise ValueError("seconds: protocol published fixes the number of steps")
        if self.perceptual_weight == 0:
            raise ValueError("perceptual_weight 0: protocol published uses the perceptual distance alone")

    def with_defaults(self, named: Mapping[str, Any]) -> Self:
        """As inherited, with the values of the protocol."""
        chosen = super().with_defaults(named)
        return replace(chosen, l2_weight=0.0) if self.protocol == "published" else chosen

    @property
    def _usual_start(self) -> Start:
        return "mean"


@dataclass(frozen=True)
class ProjectorSettings(ProjectionSettings):
    """sg2-w, sg2-w-plus: StyleGAN2's projector."""

    FALLBACK: ClassVar[Mapping[str, Any]] = {**ProjectionSettings.FALLBACK, "steps": 500}

    method: Literal["sg2-w", "sg2-w-plus"] = "sg2-w"
    steps: int | None = None
    """Number of steps. Unset: 500 (protocol published: 1000)."""
    projection_lr: float = 0.1
    """Adam's learning rate, ramped up over the first 5 % of the steps and down over the last 25 %
    (StyleGAN2, appendix D)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self, "steps")
        check_not_negative(self, "projection_lr")
        if self.protocol == "published" and self.steps not in (None, PUBLISHED_STEPS):
            raise ValueError(f"steps {self.steps}: protocol published takes {PUBLISHED_STEPS}")

    def value(self, name: str) -> Any:
        """As inherited, except for the steps of the protocol."""
        if name == "steps" and self.protocol == "published":
            return PUBLISHED_STEPS
        return super().value(name)


@dataclass(frozen=True)
class PtiSettings(ProjectionSettings):
    """pti: Pivotal Tuning (Roich et al. 2021). Defaults are those of the authors' code."""

    method: Literal["pti"] = "pti"
    pti_pivot: Literal["sg2-w", "encoder"] = "sg2-w"
    """The fixed w of pti: sg2-w (found by the projector, starting at init), or the encoder's."""
    pti_pivot_steps: int = 450
    """Number of steps of the projector that finds pti's pivot."""
    pti_pivot_lr: float = 0.01
    """Adam's learning rate in the projector that finds pti's pivot."""
    pti_steps: int = 350
    """Number of steps of pti's tuning."""
    pti_lr: float = 3e-4
    """Adam's learning rate in pti's tuning."""
    pti_l2_weight: float = 1.0
    """Weight of the mean squared error in pti's tuning."""
    pti_perceptual: Literal[Perceptual, ""] = ""
    """Perceptual distance of pti's tuning; empty: LPIPS-Alex, or its shift-tolerant variant if the model's
    distance is shift-tolerant."""
    pti_loss_side: int = 0
    """Like loss_side, for pti's tuning, whose threshold depends on it; 0: the generator's side, as in the
    authors' code."""
    pti_locality: float = 0.0
    """Weight of pti's locality regulariser (the authors use 0.1); 0: leave it out."""
    pti_locality_distance: float = 30.0
    """Distance from the pivot at which the locality regulariser samples, in W+."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self, "pti_pivot_steps", "pti_steps")
        check_not_negative(
            self, "pti_lr", "pti_pivot_lr", "pti_l2_weight", "pti_locality", "pti_locality_distance"
        )
        if self.pti_loss_side < 0:
            raise ValueError(f"pti_loss_side {self.pti_loss_side}: expected 0 or more")
        if self.pti_l2_weight == self.perceptual_weight == 0:
            raise ValueError("pti_l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.pti_pivot == "encoder" and self.init == "mean":
            raise ValueError("pti_pivot encoder and init mean: the pivot cannot be both")

    @property
    def _usual_start(self) -> Start:
        return "encoder" if self.pti_pivot == "encoder" else "mean"

    @property
    def data_l2_weight(self) -> float:
        """`pti_l2_weight`."""
        return self.pti_l2_weight

    @property
    def distance_side(self) -> int:
        """`pti_loss_side`; WHOLE_SIDE for the side of the generator."""
        return self.pti_loss_side or WHOLE_SIDE

    @property
    def loop_steps(self) -> int:
        """`pti_steps`."""
        return self.pti_steps

    @property
    def pivot(self) -> ProjectorSettings | None:
        """sg2-w with the settings that both have."""
        if self.pti_pivot == "encoder":
            return None
        shared = {field.name: getattr(self, field.name) for field in fields(ProjectionSettings)}
        return ProjectorSettings(
            **shared
            | {
                "method": "sg2-w",
                "protocol": "equal-cost",  # all that `published` fixes is set here, except the steps
                "l2_weight": 0.0 if self.protocol == "published" else self.l2_weight,
                "steps": self.pti_pivot_steps,
                "projection_lr": self.pti_pivot_lr,
                "init": self.start,
                "stop_at": 0.0,
            }
        )


@dataclass(frozen=True)
class TrainedSettings(InversionSettings):
    """encoder, e4e, restyle, hyperstyle: a trained network predicts the code, and nothing is optimised."""

    method: Literal["encoder", "e4e", "restyle", "hyperstyle"] = "encoder"

    @property
    def _usual_start(self) -> Start:
        return "mean" if self.method in ("e4e", "restyle") else "encoder"


SETTINGS: dict[str, type[InversionSettings]] = {
    method: kind
    for kind in (WranganSettings, WeightTuningSettings, ProjectorSettings, PtiSettings, TrainedSettings)
    for method in kind.methods()
}
METHODS = tuple(SETTINGS)


def inversion_settings(method: str = "wrangan", **values: Any) -> InversionSettings:
    """The settings of a method, with these values and the defaults for all others.

    values: the options of `wrangan invert`, with `_` for `-`, such as `steps=100` or `std_power=2.0`. The
    result is frozen, with these names as attributes; None is unset: the model or the method chooses.
    Raises UsageError for an unknown method or name and for an invalid value; for a setting that only other
    methods have, the error names these.
    """
    kind = _kind(method)
    for name in sorted(values):
        if name in _names(kind):
            continue
        having = methods_having(name)
        if not having:
            known = expected_one_of(name, all_settings())
            raise UsageError(f"setting {name!r} of an inversion: {known}")
        verb = "has" if len(having) == 1 else "have"
        raise UsageError(f"method {method} has no setting {name}: only {', '.join(having)} {verb} it")
    hints = get_type_hints(kind)
    try:
        return kind(
            method=method, **{name: _plain(name, value, hints[name]) for name, value in values.items()}
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def _plain(name: str, value: Any, hint: Any) -> Any:
    """The value of a setting as codes record it, with NumPy's numbers as Python's; ValueError for a wrong
    type."""
    types = get_args(hint) or (hint,)
    if value is None and type(None) in types:
        return None
    number = isinstance(value, Real) and not isinstance(value, bool)
    fits = {
        bool: (isinstance(value, bool), "True or False"),
        str: (isinstance(value, str), "a name"),
        int: (number and isinstance(value, Integral), "a whole number"),
        float: (number, "a number"),
    }
    for kind, (fit, expected) in fits.items():
        if kind in types and not fit:
            raise ValueError(f"{name} {value!r}: expected {expected}")
    if not number or isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def applicable(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are settings of the method; UsageError for an unknown method."""
    names = _names(_kind(method))
    return {name: value for name, value in values.items() if name in names}


def methods_having(name: str) -> tuple[str, ...]:
    """The methods that have a setting, in the order of METHODS."""
    return tuple(method for method, kind in SETTINGS.items() if name in _names(kind))


def all_settings() -> tuple[str, ...]:
    """The names of all settings that any method has."""
    return tuple(dict.fromkeys(name for kind in SETTINGS.values() for name in _names(kind)))


def check_named(named: object) -> None:
    """ValueError unless `named`, from a model's config.json, holds settings that it may name, with valid
    values."""
    known = WranganSettings.NAMED_BY_MODEL
    if not isinstance(named, dict) or not set(named) <= set(known):
        raise ValueError(f"expected settings among {', '.join(known)}")
    for name, value in named.items():
        if not isinstance(value, str if name == "optimizer" else int | float) or isinstance(value, bool):
            raise ValueError(f"{name} {value!r}")
    try:
        WranganSettings(**named)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _kind(method: str) -> type[InversionSettings]:
    if method not in METHODS:
        raise UsageError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    return SETTINGS[method]


def _names(kind: type[InversionSettings]) -> list[str]:
    return [field.name for field in fields(kind)]
