"""Settings of an inversion; the options of `wrangan invert` are made from them."""

from dataclasses import dataclass

METHODS = ("wrangan", "weight-tuning", "sg2-w", "encoder")
PENALTIES = ("sum", "mean")
STARTS = ("encoder", "mean")


@dataclass(frozen=True)
class InversionSettings:
    """Defaults are the paper's (section 4, technical details) unless a field says otherwise."""

    method: str = "wrangan"
    """wrangan: w and ε (Algorithm 1). weight-tuning: w and the same layers' weights under a
    plain L2 penalty. sg2-w: w alone. encoder: no optimisation."""
    steps: int = 500
    """Adam steps."""
    lr: float = 1e-3
    """Adam's learning rate for w and, unless epsilon_lr says otherwise, for ε (or the weights)."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε (or the weights). Unset: for ε what the model's config.json names
    (the bundled model: 0.01, measured to suit its σ), otherwise lr."""
    projection_lr: float = 0.05
    """Learning rate of w in sg2-w, ramped up over the first 5 % and down over the last 25 %."""
    l2_weight: float = 2.0
    """Weight of the mean squared error on [-1, 1]."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance; 0 leaves it out."""
    perceptual: str = ""
    """Perceptual distance of the loss; empty: the model's own (config.json)."""
    loss_side: int = 256
    """The perceptual distance sees images reduced to this side, if they are larger."""
    alpha: float = 1e-4
    """Weight α of the penalty on ‖ε‖² (wrangan) or ‖θ − θ₀‖² (weight-tuning)."""
    penalty: str = "mean"
    """How ‖·‖² is reduced over the weights of an image: sum or mean (docs/inversion.md)."""
    epsilon_init: float = 1e-4
    """Standard deviation of ε (or of the weights' offset) at the start."""
    init: str = "encoder"
    """Where w starts: the model's encoder, or mean (the mean of W)."""
    seed: int = 0
    """Seed of the starting ε; the same draw for every image."""

    def __post_init__(self) -> None:
        for name, choices in (("method", METHODS), ("penalty", PENALTIES), ("init", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("l2_weight", "perceptual_weight", "alpha", "epsilon_init", "lr", "projection_lr"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)}: expected a number that is not negative")
        if self.epsilon_lr is not None and not 0 <= self.epsilon_lr < float("inf"):
            raise ValueError(f"epsilon_lr {self.epsilon_lr}: expected a number that is not negative")
        if self.steps < 0 or self.loss_side < 1:
            raise ValueError("steps must be 0 or more and loss_side positive")
        if self.l2_weight == self.perceptual_weight == 0:
            raise ValueError("l2_weight and perceptual_weight are both 0: there is nothing to fit")
