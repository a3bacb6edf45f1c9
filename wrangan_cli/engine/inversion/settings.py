"""Settings of an inversion, from which the options of `wrangan invert` are made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

TUNING = ("wrangan", "weight-tuning")
PROJECTORS = ("sg2-w", "sg2-w-plus")
PREDICTED = ("encoder", "e4e", "restyle", "hyperstyle")
"""Methods without optimisation."""
METHODS = (*TUNING, *PROJECTORS, "pti", *PREDICTED)
PROTOCOLS = ("equal-cost", "published")
PUBLISHED_STEPS = 1000
"""Steps of StyleGAN2's projector in the code of NVIDIA and of rosinality."""
WHOLE_SIDE = 1 << 16
"""Larger than any image, so that none is reduced."""
PENALTIES = ("sum", "mean")
PTI_PIVOTS = ("sg2-w", "encoder")
PTI_STOP = 0.06
OPTIMIZER_NAMES = ("adam", "lbfgs")
SMALLEST_SIZE = 16
UNSET = {
    "steps": 500,
    "optimizer": "adam",
    "lr": 1e-3,
    "alpha": 0.1,
    "decay": 0.0,
    "epsilon_warmup": 0.0,
    "perceptual_weight": 1.0,
}
"""Values of unset settings that the model does not name either: the paper's, except for α, which was chosen
by a sweep (docs/inversion.md)."""
NAMED_BY_MODEL = (*UNSET, "epsilon_lr")
_OF_ADAM = ("decay", "epsilon_warmup")
"""Settings of wrangan that a model's config.json may name under `inversion`: those measured to suit its σ.
The steps also apply to weight-tuning, so that the two are compared at equal cost."""
_NOT_NEGATIVE = (
    "l2_weight",
    "perceptual_weight",
    "alpha",
    "epsilon_init",
    "lr",
    "epsilon_lr",
    "projection_lr",
    "w_noise",
    "noise_weight",
    "stop_at",
    "plateau",
    "seconds",
    "pti_lr",
    "pti_pivot_lr",
    "pti_l2_weight",
    "pti_locality",
    "pti_locality_distance",
)
STEP_COUNTS = ("steps", "pti_steps", "pti_pivot_steps")
_FROM_MEAN = (*PROJECTORS, "pti", "e4e", "restyle")
STARTS = ("encoder", "mean", "e4e", "restyle")
_USED_BY = {
    **dict.fromkeys(
        ("lr", "epsilon_lr", "beta2", "warmup", "decay", "epsilon_warmup", "optimizer", "history", "probes"),
        TUNING,
    ),
    **dict.fromkeys(("alpha", "penalty", "epsilon_init", "unseen"), TUNING),
    "steps": (*TUNING, *PROJECTORS),
    **dict.fromkeys(("seconds", "plateau", "coarse"), (*TUNING, *PROJECTORS, "pti")),
    "projection_lr": PROJECTORS,
    "w_noise": (*PROJECTORS, "pti"),
    "noise_weight": (*PROJECTORS, "pti"),
    "protocol": (*PROJECTORS, "pti"),
}
"""Settings that only some methods use. Those named pti_… belong to pti; all others to every method."""


def methods_using(name: str) -> tuple[str, ...]:
    """The methods that use a setting, in the order of METHODS."""
    if name.startswith("pti_"):
        return ("pti",)
    some = _USED_BY.get(name, METHODS)
    return tuple(method for method in METHODS if method in some)


def check_given(method: str, names: Iterable[str]) -> None:
    """ValueError if any of the given `names` is a setting that the method does not have."""
    for name in names:
        some = methods_using(name)
        if method in METHODS and method not in some:
            verb = "has" if len(some) == 1 else "have"
            raise ValueError(f"method {method} has no setting {name}, which only {', '.join(some)} {verb}")


@dataclass(frozen=True)
class InversionSettings:
    """Defaults are the paper's (section 4, technical details) unless a field says otherwise. `resolved`
    (inverter.py) fills in unset fields from the model's config.json or `UNSET`."""

    method: str = "wrangan"
    """wrangan: optimise w and ε (Algorithm 1). weight-tuning: w and the weights of the same layers, under a
    plain L2 penalty. sg2-w, sg2-w-plus: StyleGAN2's projector, w (or one w per layer) and the
    noise maps. pti: the whole generator, at a fixed w. encoder, e4e, restyle, hyperstyle: the prediction
    of the model's network of that name, without optimisation."""
    steps: int | None = None
    """Number of steps (pti: see pti_pivot_steps and pti_steps). Unset: for wrangan and weight-tuning the
    number in the model's config.json, otherwise 500 (protocol published: 1000)."""
    protocol: str = "equal-cost"
    """Protocol of sg2-w, sg2-w-plus and pti's pivot. equal-cost: the same data term as all methods, and 500
    steps. published: the perceptual distance alone, and 1000 steps (the pivot takes pti_pivot_steps in
    both)."""
    seconds: float | None = None
    """Time per photograph in seconds. A short trial finds how many steps fit; replaces steps,
    pti_pivot_steps and pti_steps. Unset: no time limit."""
    optimizer: str | None = None
    """adam (Algorithm 1), or lbfgs, which needs about a quarter of the steps (wrangan, weight-tuning).
    Unset: the model's choice, otherwise adam."""
    history: int = 20
    """Number of pairs of step and gradient that lbfgs stores; each takes twice the memory of the weights."""
    probes: int = 8
    """Number of backward passes through the generator with which lbfgs measures, at the start, how much each
    direction changes the image; 0: scale by lr and epsilon_lr instead."""
    lr: float | None = None
    """Adam's learning rate for w and, unless epsilon_lr is set, for ε (or the weights). Unset: the model's
    choice, otherwise 0.001."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε (or the weights). Unset: for ε the model's choice (0.01 suits σ by
    sensitivity), otherwise lr."""
    beta2: float = 0.999
    """Adam's decay rate of squared gradients (wrangan, weight-tuning). A short run may gain from 0.95, which
    forgets the steep first steps sooner."""
    warmup: float = 0.0
    """Fraction of the steps over which the learning rates rise from 0 (wrangan, weight-tuning)."""
    decay: float | None = None
    """Fraction of the steps, at the end, over which the learning rates fall to 0 along a cosine (wrangan,
    weight-tuning). Unset: the model's choice, otherwise 0."""
    epsilon_warmup: float | None = None
    """Fraction of the steps over which only the learning rate of ε (or the weights) rises from 0, so that w
    moves first. Unset: the model's choice, otherwise 0."""
    unseen: bool = False
    """Also move weights that affect only detail finer than the photograph shows (wrangan, weight-tuning). The
    photograph does not constrain them, so they may add spurious detail."""
    stop_at: float | None = None
    """Stop an image when its perceptual distance in the loss falls to this value. Unset: 0.06 for pti if it
    tunes with LPIPS (not with shift-tolerant LPIPS), otherwise never; 0: never."""
    plateau: float = 0.0
    """Stop an image when its mean loss over 20 steps is less than this fraction below that of the previous 20
    steps (after any warm-up); 0: never."""
    coarse: float = 0.0
    """Fraction of the steps, at the start, in which images larger than loss_side are compared at that side,
    which is faster."""
    projection_lr: float = 0.1
    """Learning rate of sg2-w and sg2-w-plus, ramped up over the first 5 % and down over the last 25 % of the
    steps."""
    w_noise: float = 0.05
    """Initial noise on w in sg2-w and sg2-w-plus, in units of the size of W; fades out over 75 % of the
    steps."""
    noise_weight: float = 1e5
    """Weight of the penalty that keeps the noise maps of sg2-w and sg2-w-plus like noise; 0: use the
    model's noise maps, without fitting them."""
    l2_weight: float = 2.0
    """Weight of the mean squared error on [-1, 1]."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0: leave it out. Unset: for wrangan the model's choice,
    otherwise 1."""
    size: int = 0
    """Side in px at which image and photograph are compared; 0: that of the photograph, at most the
    model's. The image is reduced to it by area averaging; a smaller photograph is enlarged."""
    perceptual: str = ""
    """Perceptual distance of the loss; empty: the one in the model's config.json."""
    loss_side: int = 256
    """Side in px to which larger images are reduced for the perceptual distance (in pti's tuning:
    pti_loss_side)."""
    alpha: float | None = None
    """Weight α of the penalty on ‖ε‖² (wrangan) or ‖θ − θ₀‖² (weight-tuning). Unset: for wrangan the model's
    choice, otherwise 0.1, found by a sweep (docs/inversion.md). The paper has 1e-4, without saying how the
    norm is reduced."""
    penalty: str = "mean"
    """Reduction of ‖·‖² over the weights of an image: sum or mean (docs/inversion.md)."""
    epsilon_init: float = 1e-4
    """Standard deviation of the initial ε (or offset of the weights)."""
    init: str | None = None
    """Start of w: the model's encoder, the first row predicted by its e4e or restyle network, or mean
    (the mean of W). Unset: mean for sg2-w, sg2-w-plus and pti, otherwise encoder."""
    seed: int = 0
    """Seed of the initial ε and of the noise on w; every image gets the same samples."""
    pti_pivot: str = "sg2-w"
    """The fixed w of pti: sg2-w (found by the projector, starting at init), or the encoder's."""
    pti_pivot_steps: int = 450
    """Number of steps of the projector that finds pti's pivot."""
    pti_pivot_lr: float = 0.01
    """Learning rate of the projector that finds pti's pivot."""
    pti_steps: int = 350
    """Number of steps of pti's tuning."""
    pti_lr: float = 3e-4
    """Learning rate of pti's tuning."""
    pti_l2_weight: float = 1.0
    """Weight of the mean squared error in pti's tuning."""
    pti_perceptual: str = ""
    """Perceptual distance of pti's tuning; empty: the AlexNet variant of the model's distance."""
    pti_loss_side: int = 0
    """Like loss_side, for pti's tuning, whose threshold depends on it; 0: the generator's side, as in the
    authors' code."""
    pti_locality: float = 0.0
    """Weight of pti's locality regulariser (the authors use 0.1); 0: leave it out."""
    pti_locality_distance: float = 30.0
    """Distance from the pivot at which the locality regulariser samples, in W+."""

    def __post_init__(self) -> None:
        choices_of = {"method": METHODS, "penalty": PENALTIES, "pti_pivot": PTI_PIVOTS, "init": STARTS}
        choices_of |= {"optimizer": OPTIMIZER_NAMES, "protocol": PROTOCOLS}
        for name, choices in choices_of.items():
            given = getattr(self, name)
            if given not in choices and not (name in ("init", "optimizer") and given is None):
                raise ValueError(f"{name} {given!r}: expected one of {', '.join(choices)}")
        for name in _NOT_NEGATIVE:
            given = getattr(self, name)
            if given is not None and not 0 <= given < float("inf"):
                raise ValueError(f"{name} {given}: expected a number that is not negative")
        for name in ("warmup", "decay", "epsilon_warmup", "plateau", "coarse"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected a fraction, 0 to 1")
        if self.seconds == 0:
            raise ValueError("seconds 0: expected a positive number")
        if self.optimizer == "lbfgs" and (
            self.warmup or self.decay or self.epsilon_warmup or self.history < 1 or self.probes < 0
        ):
            raise ValueError(
                "optimizer lbfgs: leave out warmup, epsilon_warmup and decay, which are Adam's; "
                "history must be 1 or more, probes 0 or more"
            )
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 {self.beta2}: expected a number from 0 to below 1")
        if self.protocol == "published":
            self._check_published()
        if self.pti_loss_side < 0:
            raise ValueError(f"pti_loss_side {self.pti_loss_side}: expected 0 or more")
        if min(self.steps or 0, self.pti_steps, self.pti_pivot_steps) < 0 or self.loss_side < 1:
            raise ValueError("steps must be 0 or more and loss_side positive")
        if self.size and self.size < SMALLEST_SIZE:
            raise ValueError(f"size {self.size}: expected {SMALLEST_SIZE} px or more, or 0")
        if self.l2_weight == self.perceptual_weight == 0:
            raise ValueError("l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.method == "pti":
            self._check_pti()
        if self.stop_at and self.perceptual_weight == 0:
            raise ValueError("stop_at needs a perceptual distance, but perceptual_weight is 0")

    def with_defaults(self, named: Mapping[str, Any]) -> "InversionSettings":
        """The settings with unset fields filled in from `named` (a model's, of NAMED_BY_MODEL), or UNSET."""
        names = {"wrangan": NAMED_BY_MODEL, "weight-tuning": ("steps",)}.get(self.method, ())
        if self.optimizer not in (None, named.get("optimizer", UNSET["optimizer"])):
            # A schedule that was measured for one optimiser does not apply to the other.
            names = tuple(name for name in names if name not in _OF_ADAM)
        values = {**UNSET, **{name: value for name, value in named.items() if name in names}}
        values["steps"] = self._published_steps or values["steps"]
        chosen = {name: value for name, value in values.items() if getattr(self, name) is None}
        if self.protocol == "published":
            chosen["l2_weight"] = 0.0
        return replace(self, **chosen)

    def value(self, name: str) -> Any:
        """A setting of UNSET: its value, or the default if it is not set."""
        value = getattr(self, name)
        if value is None and name == "steps":
            value = self._published_steps
        return UNSET[name] if value is None else value

    @property
    def _published_steps(self) -> int | None:
        return PUBLISHED_STEPS if self.protocol == "published" and self.method in PROJECTORS else None

    def _check_published(self) -> None:
        """ValueError for settings that contradict the protocol."""
        if self.method not in (*PROJECTORS, "pti"):
            raise ValueError("protocol published applies to sg2-w, sg2-w-plus and pti's pivot")
        if self.l2_weight not in (0.0, type(self).l2_weight):
            raise ValueError(
                f"l2_weight {self.l2_weight}: protocol published uses the perceptual distance alone"
            )
        if self.steps not in (None, PUBLISHED_STEPS) and self.method != "pti":
            raise ValueError(f"steps {self.steps}: protocol published takes {PUBLISHED_STEPS}")
        if self.seconds is not None:
            raise ValueError("seconds: protocol published fixes the number of steps")
        if self.perceptual_weight == 0:
            raise ValueError("perceptual_weight 0: protocol published uses the perceptual distance alone")

    def _check_pti(self) -> None:
        if self.pti_l2_weight == self.perceptual_weight == 0:
            raise ValueError("pti_l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.pti_pivot == "encoder" and self.init == "mean":
            raise ValueError("pti_pivot encoder and init mean: the pivot cannot be both")

    @property
    def start(self) -> str:
        """`init`, or the method's default if it is not set."""
        if self.init is not None:
            return self.init
        from_mean = self.method in _FROM_MEAN and (self.method, self.pti_pivot) != ("pti", "encoder")
        return "mean" if from_mean else "encoder"

    @property
    def relevant(self) -> list[str]:
        """Names of the settings on which the method's codes depend."""
        names = [field.name for field in fields(self)]
        names = [name for name in names if self.method == "pti" or not name.startswith("pti_")]
        if self.seconds is not None:  # seconds determine the steps
            names = [name for name in names if name not in STEP_COUNTS]
        return [name for name in names if self.method in _USED_BY.get(name, METHODS)]

    @property
    def data_l2_weight(self) -> float:
        """Weight of the mean squared error in the method's loop."""
        return self.pti_l2_weight if self.method == "pti" else self.l2_weight

    @property
    def distance_side(self) -> int:
        """Side in px to which the perceptual distance of the method's loop reduces larger images."""
        return (self.pti_loss_side or WHOLE_SIDE) if self.method == "pti" else self.loss_side

    @property
    def optimizer_used(self) -> str:
        """`optimizer` for the methods that use it; Adam for the others."""
        return self.value("optimizer") if self.method in TUNING else "adam"

    @property
    def loop_steps(self) -> int:
        """Maximum number of steps of the method's loop."""
        return self.pti_steps if self.method == "pti" else self.value("steps")

    @property
    def pivot(self) -> "InversionSettings | None":
        """Settings of the projection before the loop, if there is one."""
        if self.method != "pti" or self.pti_pivot == "encoder":
            return None
        return replace(
            self,
            method="sg2-w",
            protocol="equal-cost",  # all that `published` fixes is set already, except the steps
            l2_weight=0.0 if self.protocol == "published" else self.l2_weight,
            steps=self.pti_pivot_steps,
            projection_lr=self.pti_pivot_lr,
            init=self.start,
            stop_at=0.0,
        )

    @property
    def total_steps(self) -> int:
        """Maximum number of steps per image, including those of the pivot."""
        return self.loop_steps + (0 if self.pivot is None else self.pivot.value("steps"))


def check_named(named: object) -> None:
    """ValueError unless `named`, from a model's config.json, holds valid settings of NAMED_BY_MODEL."""
    if not isinstance(named, dict) or not set(named) <= set(NAMED_BY_MODEL):
        raise ValueError(f"expected settings among {', '.join(NAMED_BY_MODEL)}")
    for name, value in named.items():
        if not isinstance(value, str if name == "optimizer" else int | float) or isinstance(value, bool):
            raise ValueError(f"{name} {value!r}")
    try:
        InversionSettings(**named)
    except TypeError as error:
        raise ValueError(str(error)) from error
