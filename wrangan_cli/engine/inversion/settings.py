"""Settings of an inversion that several methods share; those of each method are in method_settings.py.

The options of `wrangan invert` are made from the fields of all these classes, and their help from the
docstrings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from wrangan_cli.engine.base.choices import Perceptual, check_choices, choices_in

SMALLEST_SIZE = 16
STEP_COUNTS = ("steps", "pti_steps", "pti_pivot_steps")
Start = Literal["encoder", "mean", "e4e", "restyle"]
"""Initial values of w."""


@dataclass(frozen=True)
class InversionSettings:
    """The settings of every method; subclasses add those of their methods.

    A setting that is None is unset: its value comes from the model's config.json, otherwise from FALLBACK
    (`with_defaults`), or the method chooses it (`resolved` in inverter.py).
    """

    FALLBACK: ClassVar[Mapping[str, Any]] = {"perceptual_weight": 1.0}
    """Values of unset settings that the model does not name either."""
    NAMED_BY_MODEL: ClassVar[tuple[str, ...]] = ()
    """Settings that a model's config.json may name, under `inversion`: those measured to suit the model."""

    method: str
    """wrangan: optimise w and ε (Algorithm 1). weight-tuning: w and the weights of the same layers, under a
    plain L2 penalty. sg2-w, sg2-w-plus: StyleGAN2's projector, w (or one w per layer) and the
    noise maps. pti: the whole generator, at a fixed w. encoder, e4e, restyle, hyperstyle: the prediction
    of the model's network of that name, without optimisation."""
    size: int = 0
    """Side in px at which image and photograph are compared; 0: that of the photograph, at most the
    model's. The image is reduced to it by area averaging; a smaller photograph is enlarged."""
    perceptual: Literal[Perceptual, ""] = ""
    """Perceptual distance of the loss; empty: the one in the model's config.json. Methods without
    optimisation only report it."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0: leave it out. Unset: for wrangan the model's choice,
    otherwise 1 (paper, section 3.2)."""
    loss_side: int = 256
    """Side in px to which larger images are reduced for the perceptual distance (in pti's tuning:
    pti_loss_side)."""
    init: Start | None = None
    """Start of w: the model's encoder, the first row predicted by its e4e or restyle network, or mean
    (the mean of W). Unset: mean for sg2-w, sg2-w-plus, pti, e4e and restyle, otherwise encoder."""
    seed: int = 0
    """Seed of the initial ε and of the noise on w; every image gets the same samples."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.method not in self.methods():  # of a class that several methods share
            raise ValueError(f"method {self.method!r}: no method has {type(self).__name__} alone")
        check_not_negative(self, "perceptual_weight")
        if self.loss_side < 1:
            raise ValueError(f"loss_side {self.loss_side}: expected 1 px or more")
        if self.size and self.size < SMALLEST_SIZE:
            raise ValueError(f"size {self.size}: expected {SMALLEST_SIZE} px or more, or 0")

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        """The methods that have these settings; () for a base class of several."""
        return choices_in(cls.__dataclass_fields__["method"].type)

    def with_defaults(self, named: Mapping[str, Any]) -> Self:
        """The settings with unset fields filled in from `named`, the model's choices, or FALLBACK."""
        values = {name: self.value(name) for name in self.FALLBACK}
        values |= {name: value for name, value in named.items() if name in self.NAMED_BY_MODEL}
        return replace(self, **{name: v for name, v in values.items() if getattr(self, name) is None})

    def value(self, name: str) -> Any:
        """The value of a setting in FALLBACK, or its default if it is unset."""
        value = getattr(self, name)
        return self.FALLBACK[name] if value is None else value

    @property
    def start(self) -> Start:
        """`init`, or the method's default if it is unset."""
        return self._usual_start if self.init is None else self.init

    @property
    def _usual_start(self) -> Start:
        return "encoder"

    @property
    def relevant(self) -> list[str]:
        """Names of the settings on which the method's codes depend."""
        return [field.name for field in fields(self)]

    @property
    def distance_side(self) -> int:
        """Side in px to which the perceptual distance of the method's loop reduces larger images."""
        return self.loss_side

    @property
    def loop_steps(self) -> int:
        """Maximum number of steps of the method's loop."""
        return 0

    @property
    def pivot(self) -> "InversionSettings | None":
        """Settings of the projection before the loop, if there is one."""
        return None

    @property
    def total_steps(self) -> int:
        """Maximum number of steps per image, including those of the pivot."""
        return self.loop_steps + (0 if self.pivot is None else self.pivot.loop_steps)


@dataclass(frozen=True)
class OptimisingSettings(InversionSettings):
    """The settings of every method with optimisation."""

    seconds: float | None = None
    """Time per photograph in seconds. A short trial finds how many steps fit; replaces steps,
    pti_pivot_steps and pti_steps. Unset: no time limit."""
    l2_weight: float = 2.0
    """Weight of the mean squared error on [-1, 1] (paper, section 3.2); for pti, that of the projection to
    the pivot."""
    stop_at: float | None = None
    """Stop an image when its perceptual distance in the loss falls to this value. Unset: 0.06 for pti if it
    tunes with LPIPS (as in the authors' code; not with shift-tolerant LPIPS), otherwise never; 0: never."""
    plateau: float = 0.0
    """Stop an image when its mean loss over 20 steps is less than this fraction below that of the previous 20
    steps (counted from the end of any warm-up); 0: never."""
    coarse: float = 0.0
    """Fraction of the steps, at the start, in which images larger than loss_side are compared at that side,
    which is faster."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "l2_weight", "stop_at", "plateau", "coarse")
        check_fractions(self, "plateau", "coarse")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds {self.seconds:g}: expected a positive number")
        if self.l2_weight == self.perceptual_weight == 0:
            raise ValueError("l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.stop_at and self.perceptual_weight == 0:
            raise ValueError("stop_at needs a perceptual distance, but perceptual_weight is 0")

    @property
    def relevant(self) -> list[str]:
        """Without the numbers of steps if `seconds` determines them."""
        return [name for name in super().relevant if self.seconds is None or name not in STEP_COUNTS]

    @property
    def loop_steps(self) -> int:
        """`steps` or its default, for all methods except pti."""
        return int(self.value("steps"))

    @property
    def data_l2_weight(self) -> float:
        """Weight of the mean squared error in the method's loop."""
        return self.l2_weight


@dataclass(frozen=True)
class TuningSettings(OptimisingSettings):
    """The settings of wrangan and weight-tuning, which move w and some weights together. Defaults are the
    paper's (section 4, technical details) unless a field says otherwise."""

    FALLBACK: ClassVar[Mapping[str, Any]] = {
        **OptimisingSettings.FALLBACK,
        "steps": 500,
        "optimizer": "adam",
        "lr": 1e-3,
        "alpha": 0.1,
        "decay": 0.0,
        "epsilon_warmup": 0.0,
    }

    steps: int | None = None
    """Number of steps. Unset: the number in the model's config.json, otherwise 500."""
    alpha: float | None = None
    """Weight α of the penalty on ‖ε‖² (wrangan) or ‖θ − θ₀‖² (weight-tuning). Unset: for wrangan the model's
    choice, otherwise 0.1, found by a sweep (docs/inversion.md). The paper has 1e-4, without saying how the
    norm is reduced."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε (or the weights). Unset: for ε the model's choice (0.01 suits σ by
    sensitivity), otherwise lr."""
    lr: float | None = None
    """Adam's learning rate for w and, unless epsilon_lr is set, for ε (or the weights). Unset: for
    wrangan the model's choice, otherwise 0.001."""
    optimizer: Literal["adam", "lbfgs"] | None = None
    """adam (Algorithm 1), or lbfgs, which needs about a quarter of the steps. Unset: for wrangan the
    model's choice, otherwise adam."""
    history: int = 20
    """Number of (step, gradient) pairs that lbfgs stores; each takes twice the memory of the weights."""
    probes: int = 8
    """Number of backward passes through the generator with which lbfgs measures, at the start, how much each
    direction changes the image; 0: scale by lr and epsilon_lr instead."""
    beta2: float = 0.999
    """Adam's decay rate of squared gradients. Short runs may benefit from 0.95, which forgets the large
    gradients of the first steps sooner."""
    warmup: float = 0.0
    """Fraction of the steps over which the learning rates rise from 0."""
    decay: float | None = None
    """Fraction of the steps, at the end, over which the learning rates fall to 0 along a cosine. Unset: for
    wrangan the model's choice, otherwise 0."""
    epsilon_warmup: float | None = None
    """Fraction of the steps over which only the learning rate of ε (or the weights) rises from 0, so that w
    moves first. Unset: for wrangan the model's choice, otherwise 0."""
    unseen: bool = False
    """Also move weights that affect only detail finer than the photograph shows. The photograph does not
    constrain them, so they may add spurious detail."""
    detail_weight: float = 5.0
    """Weight of a penalty on detail finer than the photograph shows, where it exceeds what the photograph's
    own finest detail suggests; 0: none. Photographs of the model's side are not affected."""
    penalty: Literal["sum", "mean"] = "mean"
    """Reduction of ‖·‖² over the weights of an image (docs/inversion.md)."""
    epsilon_init: float = 1e-4
    """Standard deviation of the initial ε, or offset of the weights (Algorithm 1, line 2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self, "steps")
        check_not_negative(self, "alpha", "epsilon_init", "lr", "epsilon_lr", "detail_weight")
        check_fractions(self, "warmup", "decay", "epsilon_warmup")
        if self.optimizer == "lbfgs" and (
            self.warmup or self.decay or self.epsilon_warmup or self.history < 1 or self.probes < 0
        ):
            raise ValueError(
                "optimizer lbfgs: leave out warmup, epsilon_warmup and decay, which are Adam's; "
                "history must be 1 or more, probes 0 or more"
            )
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 {self.beta2}: expected a number from 0 to below 1")


def check_steps(settings: InversionSettings, *names: str) -> None:
    for name in names:
        if (getattr(settings, name) or 0) < 0:
            raise ValueError(f"{name} {getattr(settings, name)}: expected 0 steps or more")


def check_not_negative(settings: InversionSettings, *names: str) -> None:
    for name in names:
        given = getattr(settings, name)
        if given is not None and not 0 <= given < float("inf"):
            raise ValueError(f"{name} {given}: expected a number that is not negative")


def check_fractions(settings: InversionSettings, *names: str) -> None:
    for name in names:
        if not 0 <= (getattr(settings, name) or 0) <= 1:
            raise ValueError(f"{name} {getattr(settings, name)}: expected a fraction, 0 to 1")
