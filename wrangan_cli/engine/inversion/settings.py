"""Settings of an inversion; the options of `wrangan invert` are made from them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

TUNING = ("wrangan", "weight-tuning")
PROJECTORS = ("sg2-w", "sg2-w-plus")
PREDICTED = ("encoder", "e4e", "restyle", "hyperstyle")
"""Methods that optimise nothing."""
METHODS = (*TUNING, *PROJECTORS, "pti", *PREDICTED)
PROTOCOLS = ("equal-cost", "published")
PUBLISHED_STEPS = 1000
"""Of StyleGAN2's projector, in the code of NVIDIA and of rosinality."""
WHOLE_SIDE = 1 << 16
"""Above the side of any image: it is not reduced."""
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
"""What stands for a setting that is not set where the model does not name it either: the paper's values, and
of α the one that a sweep chose (docs/inversion.md)."""
NAMED_BY_MODEL = (*UNSET, "epsilon_lr")
_OF_ADAM = ("decay", "epsilon_warmup")
"""Settings of wrangan that a model's config.json may name, under `inversion`: those that were measured to
suit its σ. Steps count for weight-tuning, too, so that the two are compared at equal cost."""
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
"""Settings that only some methods use; those called pti_… are pti's, all others belong to every method."""


def methods_using(name: str) -> tuple[str, ...]:
    """The methods that use a setting, in their order."""
    if name.startswith("pti_"):
        return ("pti",)
    some = _USED_BY.get(name, METHODS)
    return tuple(method for method in METHODS if method in some)


def check_given(method: str, names: Iterable[str]) -> None:
    """ValueError for a setting that was given, by name, and that the method does not have."""
    for name in names:
        some = methods_using(name)
        if method in METHODS and method not in some:
            verb = "has" if len(some) == 1 else "have"
            raise ValueError(f"method {method} has no setting {name}, which only {', '.join(some)} {verb}")


@dataclass(frozen=True)
class InversionSettings:
    """Defaults are the paper's (section 4, technical details) unless a field says otherwise. `resolved`
    (inverter.py) fills in what is unset, from the model's config.json or `UNSET`."""

    method: str = "wrangan"
    """wrangan: w and ε (Algorithm 1). weight-tuning: w and the same layers' weights under a
    plain L2 penalty. sg2-w, sg2-w-plus: StyleGAN2's projector, w (or a w for each layer) and the
    noise maps. pti: the whole generator, at a fixed w. encoder, e4e, restyle, hyperstyle: what the
    model's network of that name predicts, without optimisation."""
    steps: int | None = None
    """Steps (pti has pti_pivot_steps and pti_steps). Unset: in wrangan and weight-tuning what the model's
    config.json names, otherwise 500 (protocol published: 1000)."""
    protocol: str = "equal-cost"
    """Of sg2-w, sg2-w-plus and pti's pivot. equal-cost: the data term of all methods, and 500 steps.
    published: the perceptual distance alone, and 1000 steps (the pivot's are pti_pivot_steps in both)."""
    seconds: float | None = None
    """Seconds that a photograph may take: as many steps as there is time for, by a trial, in place of steps
    (and pti's). Unset: the steps say."""
    optimizer: str | None = None
    """adam (Algorithm 1), or lbfgs, which needs about a quarter of the steps (wrangan, weight-tuning).
    Unset: what the model names, otherwise adam."""
    history: int = 20
    """Pairs of steps and gradients that lbfgs remembers; each takes twice the memory of the weights."""
    probes: int = 8
    """Backward passes through the generator by which lbfgs measures, at the start, how much each
    direction changes the image; 0: the proportions of lr and epsilon_lr instead."""
    lr: float | None = None
    """Adam's learning rate for w and, unless epsilon_lr says otherwise, for ε (or the weights). Unset: what
    the model names, otherwise 0.001."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε (or the weights). Unset: for ε what the model names (0.01 suits σ by
    sensitivity), otherwise lr."""
    beta2: float = 0.999
    """Adam's decay of squared gradients (wrangan, weight-tuning); 0.95 forgets the steep first steps
    sooner, which a short run needs."""
    warmup: float = 0.0
    """Fraction of the steps over which the learning rates rise from 0 (wrangan, weight-tuning)."""
    decay: float | None = None
    """Fraction of the steps, the last ones, over which they fall to 0 by a cosine (wrangan, weight-tuning).
    Unset: what the model names, otherwise 0."""
    epsilon_warmup: float | None = None
    """Fraction of the steps over which the learning rate of ε (or the weights) alone rises from 0: w goes
    first. Unset: what the model names, otherwise 0."""
    unseen: bool = False
    """Also move weights that make what only larger images than the photograph show (wrangan, weight-tuning):
    it says nothing of them, and detail that nobody asked for is what they make."""
    stop_at: float | None = None
    """An image is done when its perceptual distance in the loss is no more than this. Unset: 0.06 in
    pti where it tunes with LPIPS (and not its shift-tolerant kin), otherwise never; 0: never."""
    plateau: float = 0.0
    """An image is done when its loss over 20 steps is less than this fraction below that of the 20 steps
    before (once what warms up has done so); 0: never."""
    coarse: float = 0.0
    """Fraction of the steps, the first ones, in which images that are larger than loss_side are compared at
    that side: cheaper steps."""
    projection_lr: float = 0.1
    """Learning rate in sg2-w and sg2-w-plus, ramped up over the first 5 % and down over the last 25 %."""
    w_noise: float = 0.05
    """Noise on w in sg2-w and sg2-w-plus at the start, in units of the size of W; fades out by 75 %."""
    noise_weight: float = 1e5
    """Weight of the penalty that keeps the noise maps of sg2-w and sg2-w-plus noise; 0: they are the
    model's, and not fitted."""
    l2_weight: float = 2.0
    """Weight of the mean squared error on [-1, 1]."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0 leaves it out. Unset: in wrangan what the model names,
    otherwise 1."""
    size: int = 0
    """Side in px at which image and photograph are compared; 0: the photograph's own, at most the
    model's. The image is reduced to it by area, a smaller photograph enlarged."""
    perceptual: str = ""
    """Perceptual distance of the loss; empty: the model's own (config.json)."""
    loss_side: int = 256
    """The perceptual distance sees images reduced to this side, if they are larger (in pti's tuning:
    pti_loss_side)."""
    alpha: float | None = None
    """Weight α of the penalty on ‖ε‖² (wrangan) or ‖θ − θ₀‖² (weight-tuning). Unset: in wrangan what the
    model names, otherwise 0.1, by a sweep (docs/inversion.md); the paper has 1e-4, and does not say how it
    reduces the norm."""
    penalty: str = "mean"
    """How ‖·‖² is reduced over the weights of an image: sum or mean (docs/inversion.md)."""
    epsilon_init: float = 1e-4
    """Standard deviation of ε (or of the weights' offset) at the start."""
    init: str | None = None
    """Where w starts: the model's encoder, the first row of what its e4e or restyle predicts, or mean
    (the mean of W). Unset: mean in sg2-w, sg2-w-plus, pti, otherwise encoder."""
    seed: int = 0
    """Seed of the starting ε and of the noise on w; the same samples for every image."""
    pti_pivot: str = "sg2-w"
    """The fixed w of pti: sg2-w (projected, starting at init), or the encoder's."""
    pti_pivot_steps: int = 450
    """Steps of that projection."""
    pti_pivot_lr: float = 0.01
    """Learning rate of that projection."""
    pti_steps: int = 350
    """Steps of pti's tuning."""
    pti_lr: float = 3e-4
    """Learning rate of pti's tuning."""
    pti_l2_weight: float = 1.0
    """Weight of the mean squared error in pti's tuning."""
    pti_perceptual: str = ""
    """Perceptual distance of pti's tuning; empty: AlexNet's of the family of the model's own."""
    pti_loss_side: int = 0
    """Like loss_side, in pti's tuning, whose threshold depends on it; 0: the generator's own side, as the
    authors have it."""
    pti_locality: float = 0.0
    """Weight of pti's locality regulariser (the authors' where they use it: 0.1); 0 leaves it out."""
    pti_locality_distance: float = 30.0
    """How far from the pivot it looks, in W+."""

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
            raise ValueError("seconds 0: expected more")
        if self.optimizer == "lbfgs" and (
            self.warmup or self.decay or self.epsilon_warmup or self.history < 1 or self.probes < 0
        ):
            raise ValueError(
                "optimizer lbfgs: warmup, epsilon_warmup and decay are Adam's, "
                "history is 1 or more, probes 0 or more"
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
            raise ValueError("stop_at is a perceptual distance, which perceptual_weight 0 leaves out")

    def with_defaults(self, named: Mapping[str, Any]) -> "InversionSettings":
        """All that is unset and may not stay so, by `named` (a model's, of NAMED_BY_MODEL), or by UNSET."""
        names = {"wrangan": NAMED_BY_MODEL, "weight-tuning": ("steps",)}.get(self.method, ())
        if self.optimizer not in (None, named.get("optimizer", UNSET["optimizer"])):
            # A schedule that was measured for one optimiser says nothing of the other.
            names = tuple(name for name in names if name not in _OF_ADAM)
        values = {**UNSET, **{name: value for name, value in named.items() if name in names}}
        values["steps"] = self._published_steps or values["steps"]
        chosen = {name: value for name, value in values.items() if getattr(self, name) is None}
        if self.protocol == "published":
            chosen["l2_weight"] = 0.0
        return replace(self, **chosen)

    def value(self, name: str) -> Any:
        """A setting of UNSET, or what stands for it where it is not set."""
        value = getattr(self, name)
        if value is None and name == "steps":
            value = self._published_steps
        return UNSET[name] if value is None else value

    @property
    def _published_steps(self) -> int | None:
        return PUBLISHED_STEPS if self.protocol == "published" and self.method in PROJECTORS else None

    def _check_published(self) -> None:
        """What the protocol's name fixes may not be given otherwise."""
        if self.method not in (*PROJECTORS, "pti"):
            raise ValueError("protocol published is that of sg2-w, sg2-w-plus and pti's pivot")
        if self.l2_weight not in (0.0, type(self).l2_weight):
            raise ValueError(
                f"l2_weight {self.l2_weight}: protocol published has the perceptual distance alone"
            )
        if self.steps not in (None, PUBLISHED_STEPS) and self.method != "pti":
            raise ValueError(f"steps {self.steps}: protocol published has {PUBLISHED_STEPS}")
        if self.seconds is not None:
            raise ValueError("seconds: protocol published says how many steps there are")
        if self.perceptual_weight == 0:
            raise ValueError("perceptual_weight 0: protocol published has the perceptual distance alone")

    def _check_pti(self) -> None:
        if self.pti_l2_weight == self.perceptual_weight == 0:
            raise ValueError("pti_l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.pti_pivot == "encoder" and self.init == "mean":
            raise ValueError("pti_pivot encoder and init mean: the pivot cannot be both")

    @property
    def start(self) -> str:
        """`init`, or what stands for it where it is not set."""
        if self.init is not None:
            return self.init
        from_mean = self.method in _FROM_MEAN and (self.method, self.pti_pivot) != ("pti", "encoder")
        return "mean" if from_mean else "encoder"

    @property
    def relevant(self) -> list[str]:
        """Names of the settings on which the method's codes depend."""
        names = [field.name for field in fields(self)]
        names = [name for name in names if self.method == "pti" or not name.startswith("pti_")]
        if self.seconds is not None:  # then that says how many
            names = [name for name in names if name not in STEP_COUNTS]
        return [name for name in names if self.method in _USED_BY.get(name, METHODS)]

    @property
    def data_l2_weight(self) -> float:
        """Weight of the mean squared error in the method's own loop."""
        return self.pti_l2_weight if self.method == "pti" else self.l2_weight

    @property
    def distance_side(self) -> int:
        """Side to which the perceptual distance of the method's own loop reduces larger images."""
        return (self.pti_loss_side or WHOLE_SIDE) if self.method == "pti" else self.loss_side

    @property
    def optimizer_used(self) -> str:
        """`optimizer`, in the methods that use it; the others keep Adam."""
        return self.value("optimizer") if self.method in TUNING else "adam"

    @property
    def loop_steps(self) -> int:
        """Steps of the method's own loop, at most."""
        return self.pti_steps if self.method == "pti" else self.value("steps")

    @property
    def pivot(self) -> "InversionSettings | None":
        """The projection that comes before the loop, if there is one."""
        if self.method != "pti" or self.pti_pivot == "encoder":
            return None
        return replace(
            self,
            method="sg2-w",
            protocol="equal-cost",  # what the other one fixes is set already, but for the steps
            l2_weight=0.0 if self.protocol == "published" else self.l2_weight,
            steps=self.pti_pivot_steps,
            projection_lr=self.pti_pivot_lr,
            init=self.start,
            stop_at=0.0,
        )

    @property
    def total_steps(self) -> int:
        """Steps of an image, at most, with those of the pivot."""
        return self.loop_steps + (0 if self.pivot is None else self.pivot.value("steps"))


def check_named(named: object) -> None:
    """ValueError unless `named`, of a model's config.json, are settings of NAMED_BY_MODEL that can be."""
    if not isinstance(named, dict) or not set(named) <= set(NAMED_BY_MODEL):
        raise ValueError(f"expected settings among {', '.join(NAMED_BY_MODEL)}")
    for name, value in named.items():
        if not isinstance(value, str if name == "optimizer" else int | float) or isinstance(value, bool):
            raise ValueError(f"{name} {value!r}")
    try:
        InversionSettings(**named)
    except TypeError as error:
        raise ValueError(str(error)) from error
