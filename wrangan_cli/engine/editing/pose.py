"""How far a head is turned: yaw from five landmarks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.faces.detection import FaceDetector

SENSIBLE_TURN = (-2.0, 2.0)
"""Beyond this, a face that is already turned becomes a profile, of which generators have seen few."""
LANDMARK_SIDE = 256
"""Side in px at which landmarks are measured: the detector gains nothing from more."""


def yaw(landmarks: NDArray[np.float64]) -> float:
    """How far a face is turned to the viewer's right: 0 is straight ahead.

    landmarks: (5, 2), as in `Face`. The distance of the nose from the line between the midpoints of eyes
    and mouth, along the line of the eyes, as a fraction of the distance between the eyes. It grows with the
    tangent of the angle, and does not depend on size, position and tilt of the head.
    """
    left, right, nose, mouth_left, mouth_right = landmarks
    across, eyes = right - left, (left + right) / 2
    down = (mouth_left + mouth_right) / 2 - eyes
    distance = np.linalg.norm(across)
    height = (nose - eyes) @ down / max(down @ down, 1e-9)
    return float((nose - eyes - height * down) @ across / max(distance * distance, 1e-9))


class YawScorer:
    """`yaw` of the largest face of each image; NaN where none is found.

    Raises WranganError if the detector's package is missing.
    """

    side = LANDMARK_SIDE

    def __init__(self) -> None:
        self._detector = FaceDetector()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, 1) float32."""
        found = [self._detector.detect(to_pillow(image)) for image in images]
        return torch.tensor([[yaw(faces[0].landmarks) if faces else np.nan] for faces in found]).float()
