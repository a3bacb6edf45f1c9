"""Settings of learning directions, from which the options of the command are made."""

import math
from dataclasses import dataclass

KNOWN_ATTRIBUTES = {
    "smile": ("Smiling", 1.0),
    "eyeglasses": ("Eyeglasses", 1.0),
    "gender": ("Male", 1.0),
    "age": ("Young", -1.0),
    "mouth-open": ("Mouth_Slightly_Open", 1.0),
}
"""Attribute and sign of directions by name: positive `gender` is more male, positive `age` is older."""

POSE = "pose"
"""Name of the direction that is learnt from landmarks; positive turns the face to the viewer's right."""
BRIGHTNESS = "brightness"
"""Name of the direction of the luminance of the middle of the face; positive is brighter. Its main use is to
make other directions orthogonal to it."""


@dataclass(frozen=True)
class LearnSettings:
    """How directions are learnt from scored samples."""

    samples: int = 20_000
    """Number of random w to render and score; with --pairs, the maximum number of pairs."""
    batch: int = 64
    """Number of images rendered together."""
    share: float = 0.1
    """Fraction of the samples, with the highest and with the lowest scores, that the SVM separates."""
    epsilon: float = 0.0
    """Scale of random ε, sampled once per batch; 0: the mean weights."""
    svm_c: float = 0.01
    """C of the SVM; smaller values prefer a wide margin to few errors."""
    ridge: float = 3.0
    """Penalty per sample of the ridge regression for pose and brightness, with W scaled to variance 1."""
    seed: int = 1
    """Seed of z, ε and the 70/30 split."""

    def __post_init__(self) -> None:
        if self.samples < 20 or self.batch < 1:
            raise ValueError("samples must be at least 20, batch at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: expected 0 or more")
        if not 0 < self.share <= 0.5:
            raise ValueError(f"share {self.share}: expected a number above 0 and up to 0.5")
        if not (math.isfinite(self.svm_c) and self.svm_c > 0):
            raise ValueError(f"svm_c {self.svm_c}: expected a number above 0")
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge {self.ridge}: expected a number above 0")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon {self.epsilon}: expected a finite number, 0 or more")
