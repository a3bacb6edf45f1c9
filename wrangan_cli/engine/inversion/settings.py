"""Settings of an inversion that several methods share; those of each method are in method_settings.py.

The options of `wrangan invert` are made from the fields of all these classes, their help from the docstrings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

SMALLEST_SIZE = 16
STEP_COUNTS = ("steps", "pti_steps", "pti_pivot_steps")
STARTS = ("encoder", "mean", "e4e", "restyle")


@dataclass(frozen=True)
class InversionSettings:
    """What every method has. The classes below add what their methods have.

    A setting that is None is unset: the model's config.json may name it, otherwise FALLBACK does
    (`with_defaults`), or the method chooses it (`resolved` in inverter.py).
    """

    METHODS: ClassVar[tuple[str, ...]] = ()
    """Whose settings these are."""
    FALLBACK: ClassVar[Mapping[str, Any]] = {"perceptual_weight": 1.0}
    """What stands for a setting that is unset where the model does not name it either."""
    NAMED_BY_MODEL: ClassVar[tuple[str, ...]] = ()
    """Settings that a model's config.json may name, under `inversion`: those measured to suit the model."""

    method: str
    """wrangan: w and ε (Algorithm 1). weight-tuning: w and the same layers' weights under a
    plain L2 penalty. sg2-w, sg2-w-plus: StyleGAN2's projector, w (or a w for each layer) and the
    noise maps. pti: the whole generator, at a fixed w. encoder, e4e, restyle, hyperstyle: what the
    model's network of that name predicts, without optimisation."""
    size: int = 0
    """Side in px at which image and photograph are compared; 0: the photograph's own, at most the
    model's. The image is reduced to it by area, a smaller photograph enlarged."""
    perceptual: str = ""
    """Perceptual distance of the loss; empty: the model's own (config.json). A method that does not optimise
    only reports it."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0 leaves it out. Unset: in wrangan what the model names,
    otherwise 1 (paper, section 3.2)."""
    loss_side: int = 256
    """Side in px to which larger images are reduced for the perceptual distance (in pti's tuning:
    pti_loss_side)."""
    init: str | None = None
    """Where w starts: the model's encoder, the first row of what its e4e or restyle predicts, or mean
    (the mean of W). Unset: mean in sg2-w, sg2-w-plus, pti, e4e and restyle, otherwise encoder."""
    seed: int = 0
    """Seed of the starting ε and of the noise on w; the samples are the same for every image."""

    def __post_init__(self) -> None:
        check_choice(self, "method", self.METHODS)
        check_choice(self, "init", (None, *STARTS))
        check_not_negative(self, "perceptual_weight")
        if self.loss_side < 1:
            raise ValueError(f"loss_side {self.loss_side}: expected 1 px or more")
        if self.size and self.size < SMALLEST_SIZE:
            raise ValueError(f"size {self.size}: expected {SMALLEST_SIZE} px or more, or 0")

    def with_defaults(self, named: Mapping[str, Any]) -> Self:
        """With all that is unset from `named`, what the model names, or from FALLBACK."""
        values = {name: self.value(name) for name in self.FALLBACK}
        values |= {name: value for name, value in named.items() if name in self.NAMED_BY_MODEL}
        return replace(self, **{name: v for name, v in values.items() if getattr(self, name) is None})

    def value(self, name: str) -> Any:
        """A setting that FALLBACK has, or what stands for it where it is unset."""
        value = getattr(self, name)
        return self.FALLBACK[name] if value is None else value

    @property
    def start(self) -> str:
        """`init`, or what the method starts from where it is unset."""
        return self._usual_start if self.init is None else self.init

    @property
    def _usual_start(self) -> str:
        return "encoder"

    @property
    def relevant(self) -> list[str]:
        """Names of the settings on which the method's codes depend."""
        return [field.name for field in fields(self)]

    @property
    def distance_side(self) -> int:
        """Side in px to which the perceptual distance of the method's own loop reduces larger images."""
        return self.loss_side

    @property
    def loop_steps(self) -> int:
        """Steps of the method's own loop, at most."""
        return 0

    @property
    def pivot(self) -> "InversionSettings | None":
        """Settings of the projection that comes before the loop, if there is one."""
        return None

    @property
    def total_steps(self) -> int:
        """Steps of an image, at most, with those of the pivot."""
        return self.loop_steps + (0 if self.pivot is None else self.pivot.loop_steps)


@dataclass(frozen=True)
class OptimisingSettings(InversionSettings):
    """What every method has that optimises."""

    seconds: float | None = None
    """Seconds that a photograph may take: as many steps as there is time for, by a trial, in place of steps
    (and pti's). Unset: the numbers of steps decide."""
    l2_weight: float = 2.0
    """Weight of the mean squared error on [-1, 1] (paper, section 3.2); in pti in the projection to
    the pivot."""
    stop_at: float | None = None
    """An image is done when its perceptual distance in the loss is no more than this. Unset: 0.06 in
    pti where it tunes with LPIPS (the authors' code; not with its shift-tolerant variant), otherwise never;
    0: never."""
    plateau: float = 0.0
    """An image is done when its loss over 20 steps is less than this fraction below that of the 20 steps
    before (counted from the end of every warm-up); 0: never."""
    coarse: float = 0.0
    """Fraction of the steps, the first ones, in which images that are larger than loss_side are compared at
    that side: cheaper steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "seconds", "l2_weight", "stop_at", "plateau", "coarse")
        check_fractions(self, "plateau", "coarse")
        if self.seconds == 0:
            raise ValueError("seconds 0: expected more")
        if self.l2_weight == self.perceptual_weight == 0:
            raise ValueError("l2_weight and perceptual_weight are both 0: there is nothing to fit")
        if self.stop_at and self.perceptual_weight == 0:
            raise ValueError("stop_at is a perceptual distance, which perceptual_weight 0 leaves out")

    @property
    def relevant(self) -> list[str]:
        """Without the numbers of steps where `seconds` decide on them."""
        return [name for name in super().relevant if self.seconds is None or name not in STEP_COUNTS]

    @property
    def loop_steps(self) -> int:
        """`steps`, or what stands for it, in all but pti."""
        return int(self.value("steps"))

    @property
    def data_l2_weight(self) -> float:
        """Weight of the mean squared error in the method's own loop."""
        return self.l2_weight


@dataclass(frozen=True)
class TuningSettings(OptimisingSettings):
    """What wrangan and weight-tuning have, which move w and some weights together. Defaults are the paper's
    (section 4, technical details) unless a field says otherwise."""

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
    """Steps; unset: what the model's config.json names, otherwise 500."""
    alpha: float | None = None
    """Weight α of the penalty on ‖ε‖² (wrangan) or ‖θ − θ₀‖² (weight-tuning). Unset: in wrangan what the
    model names, otherwise 0.1, by a sweep (docs/inversion.md); the paper has 1e-4, and does not say how it
    reduces the norm."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε (or the weights). Unset: for ε what the model names (0.01 suits σ by
    sensitivity), otherwise lr."""
    lr: float | None = None
    """Adam's learning rate for w and, unless epsilon_lr says otherwise, for ε (or the weights). Unset: in
    wrangan what the model names, otherwise 0.001."""
    optimizer: str | None = None
    """adam (Algorithm 1), or lbfgs, which needs about a quarter of the steps. Unset: in wrangan what the
    model names, otherwise adam."""
    history: int = 20
    """Number of pairs of step and gradient that lbfgs stores; each takes twice the memory of the weights."""
    probes: int = 8
    """Backward passes through the generator by which lbfgs measures, at the start, how much each
    direction changes the image; 0: the proportions of lr and epsilon_lr instead."""
    beta2: float = 0.999
    """Adam's decay of squared gradients (default: Adam's own); 0.95 forgets the steep first steps sooner,
    which a short run needs."""
    warmup: float = 0.0
    """Fraction of the steps over which the learning rates rise from 0."""
    decay: float | None = None
    """Fraction of the steps, the last ones, over which the learning rates fall to 0 by a cosine. Unset: in
    wrangan what the model names, otherwise 0."""
    epsilon_warmup: float | None = None
    """Fraction of the steps over which the learning rate of ε (or the weights) alone rises from 0: w goes
    first. Unset: in wrangan what the model names, otherwise 0."""
    unseen: bool = False
    """Also move the weights that only make what a larger image than the photograph would show. The photograph
    does not constrain them, so they add detail that is in no photograph."""
    penalty: str = "mean"
    """Reduction of ‖·‖² over the weights of an image: sum or mean (docs/inversion.md)."""
    epsilon_init: float = 1e-4
    """Standard deviation of ε (or of the weights' offset) at the start (Algorithm 1, line 2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self, "steps")
        check_choice(self, "optimizer", (None, "adam", "lbfgs"))
        check_choice(self, "penalty", ("sum", "mean"))
        check_not_negative(self, "alpha", "epsilon_init", "lr", "epsilon_lr")
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


def check_choice(settings: InversionSettings, name: str, choices: Sequence[str | None]) -> None:
    given = getattr(settings, name)
    if given not in choices:
        names = ", ".join(choice for choice in choices if choice is not None)
        raise ValueError(f"{name} {given!r}: expected one of {names}")


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
