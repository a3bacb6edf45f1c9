"""Settings of the inversion of a clip, from which the options of `wrangan video invert` are made."""

import math
from dataclasses import dataclass
from typing import Literal

from wrangan_cli.engine.base.choices import Perceptual
from wrangan_cli.engine.inversion.method_settings import WranganSettings
from wrangan_cli.engine.inversion.settings import Start


@dataclass(frozen=True)
class ClipSettings:
    """The defaults for the frames are based on few measurements (docs/video.md)."""

    every: int = 1
    """Invert every frame (1), every second one (2) …; `paste` interpolates the others."""
    face: int = 1
    """Follow the largest face (1), the second largest (2) …, of the first frame that shows that many."""
    smoothing: float = 0.5
    """Time in seconds over which landmarks are smoothed (full width at half maximum); 0: not at all."""
    key_frames: int = 5
    """Number of evenly spaced frames on which the clip's ε is optimised together with their w."""
    steps: int | None = None
    """Number of steps for the key frames. Unset: the model's choice, otherwise 500."""
    lr: float | None = None
    """Adam's learning rate for w of the key frames. Unset: the model's choice, otherwise 0.001."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε. Unset: the model's choice, otherwise lr."""
    alpha: float | None = None
    """Weight α of the penalty on the mean square of the clip's ε. Unset: the model's choice, otherwise
    0.1."""
    frame_steps: int = 20
    """Number of steps for each frame, starting at its neighbour's w and ε."""
    frame_lr: float = 0.01
    """Adam's learning rate for w of each frame; it falls to 0 along a cosine over the steps."""
    frame_epsilon: int = 1
    """Rank, per weight, of what each frame adds to the clip's ε; 0: nothing."""
    frame_alpha: float = 1.0
    """Weight of the penalty on the mean square of what each frame adds to ε."""
    size: int = 0
    """Side in px of the aligned frames; 0: that of the face, at least 256. At most the model's."""
    perceptual: Literal[Perceptual, ""] = ""
    """Perceptual distance of the loss; empty: the one in the model's config.json."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0: leave it out. Unset: the model's choice, otherwise 1."""
    init: Start | None = None
    """Start of w for the key frames, as in `wrangan invert`. Unset: encoder."""
    seed: int = 0
    """Seed of the initial ε."""

    def __post_init__(self) -> None:
        for name, least in (
            ("every", 1),
            ("face", 1),
            ("key_frames", 1),
            ("frame_steps", 0),
            ("frame_epsilon", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: expected {least} or more")
        for name in ("smoothing", "frame_lr", "frame_alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} {getattr(self, name)}: expected a number that is not negative")
        self.inversion  # noqa: B018 - its own checks

    @property
    def inversion(self) -> WranganSettings:
        """The settings for the key frames, as for `wrangan invert`."""
        return WranganSettings(
            steps=self.steps,
            optimizer="adam",
            lr=self.lr,
            epsilon_lr=self.epsilon_lr,
            alpha=self.alpha,
            size=self.size,
            perceptual=self.perceptual,
            perceptual_weight=self.perceptual_weight,
            init=self.init,
            seed=self.seed,
        )
