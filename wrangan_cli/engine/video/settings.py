"""Settings of the inversion of a clip; the options of `wrangan video invert` are made from them."""

import math
from dataclasses import dataclass

from wrangan_cli.engine.inversion.method_settings import WranganSettings


@dataclass(frozen=True)
class ClipSettings:
    """Defaults of the frames are a choice that has hardly been measured (docs/video.md)."""

    every: int = 1
    """Invert each frame (1), every second one (2) …; `paste` interpolates those between."""
    face: int = 1
    """Follow the largest face (1), or the next in size (2 …), of the first frame that shows so many."""
    smoothing: float = 0.5
    """Seconds over which the face's landmarks are smoothed (full width at half of the height); 0: not."""
    key_frames: int = 5
    """Frames, evenly spread, on which the clip's ε is optimised together with their w."""
    steps: int | None = None
    """Steps of the key frames. Unset: what the model names, otherwise 500."""
    lr: float | None = None
    """Adam's learning rate for the key frames' w. Unset: what the model names, otherwise 0.001."""
    epsilon_lr: float | None = None
    """Adam's learning rate for ε. Unset: what the model names, otherwise lr."""
    alpha: float | None = None
    """Weight α of the penalty on the mean square of the clip's ε. Unset: what the model names, or 0.1."""
    frame_steps: int = 20
    """Steps of each frame, from its neighbour's w and ε."""
    frame_lr: float = 0.01
    """Adam's learning rate for each frame's w; it falls to 0 by a cosine over the steps."""
    frame_epsilon: int = 1
    """Rank of what each frame's ε adds to the clip's, weight by weight; 0: nothing."""
    frame_alpha: float = 1.0
    """Weight of the penalty on the mean square of what it adds."""
    size: int = 0
    """Side in px of the aligned frames; 0: that of the face, at least 256; never above the model's."""
    perceptual: str = ""
    """Perceptual distance of the loss; empty: the model's own (config.json)."""
    perceptual_weight: float | None = None
    """Weight of the perceptual distance; 0 leaves it out. Unset: what the model names, otherwise 1."""
    init: str | None = None
    """Where the key frames' w start: encoder, e4e, restyle, or mean. Unset: encoder."""
    seed: int = 0
    """Seed of the starting ε."""

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
        """Those of the key frames, as `wrangan invert` would have them."""
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
