"""The direction that turns the head: yaw from five landmarks, regressed on w."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wrangan_cli.engine.editing.directions import Direction, std_along, unit
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.editing.svm import made_orthogonal, require_sklearn
from wrangan_cli.engine.errors import WranganError
from wrangan_cli.engine.face_detection import FaceDetector
from wrangan_cli.engine.images import to_pillow

MIN_FACES = 100
"""Fewer images with a face say nothing about W."""
SENSIBLE_TURN = (-2.0, 2.0)
"""Beyond, a face that is turned already becomes a profile, of which generators have seen few."""
LANDMARK_SIDE = 256
"""Side in px at which landmarks are measured: the detector does not profit from more."""


def yaw(landmarks: NDArray[np.float64]) -> float:
    """How far a face is turned to the viewer's right (its own left): 0 straight ahead.

    landmarks: (5, 2) as of `Face`. The nose's distance from the line between the middles of eyes
    and mouth, along the line of the eyes, as a share of the distance of the eyes. It grows as the
    angle's tangent; size, place and a tilt of the head change nothing.
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


def learn_pose(
    name: str,
    w: Tensor,
    scores: Tensor,
    settings: LearnSettings,
    orthogonal_to: Sequence[Direction] = (),
    layers: tuple[int, ...] | None = None,
) -> Direction:
    """The direction of W along which the yaw grows: + turns the face to the viewer's right.

    w: (N, style_dim). scores: (N,) of `yaw`, NaN where there is no face; these are left out. A ridge
    regression of the score on w over 70 % of the faces, with a penalty of `settings.ridge` for each
    sample, where w's components have a variance of 1 in the mean. Its source has
    `correlation_test`, of position and score over the other 30 %, `correlation` over all, and how
    many images were left out. Raises WranganError without scikit-learn, and where too few faces remain.
    """
    require_sklearn()
    from sklearn.linear_model import Ridge

    found = scores.isfinite().cpu()
    faces = int(found.sum())
    if faces < MIN_FACES:
        raise WranganError(
            f"direction {name}: {faces} of {len(w)} images show a face, {MIN_FACES} are needed"
        )
    points, values = w.cpu()[found].double().numpy(), scores.cpu()[found].double().numpy()
    if values.std() < 1e-9:
        raise WranganError(f"direction {name}: the scores of the samples do not differ")
    centre, scale = points.mean(axis=0), np.sqrt(points.var(axis=0).mean())
    order = np.random.default_rng(settings.seed).permutation(faces)
    train, test = np.split(order, [round(0.7 * faces)])
    fitted = Ridge(alpha=settings.ridge * len(train)).fit((points[train] - centre) / scale, values[train])
    vector = made_orthogonal(unit(torch.from_numpy(fitted.coef_)), orthogonal_to, name)
    position = points @ vector.double().numpy()

    def correlation(chosen: NDArray[np.int64]) -> float:
        return round(float(np.corrcoef(position[chosen], values[chosen])[0, 1]), 4)

    return Direction(
        name=name,
        vector=vector,
        std=std_along(w, vector),
        layers=layers,
        range=SENSIBLE_TURN,
        source={
            "method": "ridge regression",
            "attribute": "yaw of five landmarks",
            "samples": faces,
            "without_face": len(w) - faces,
            "epsilon": settings.epsilon,
            "seed": settings.seed,
            "ridge": settings.ridge,
            "orthogonal_to": [other.name for other in orthogonal_to],
            "correlation_test": correlation(test),
            "correlation": correlation(order),
        },
    )
