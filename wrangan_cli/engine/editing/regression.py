"""Directions of quantities measured in images, by regression on w."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.editing.directions import SENSIBLE_RANGE, Direction, std_along, unit
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.editing.svm import made_orthogonal, require_sklearn

MIN_IMAGES = 100
"""Minimum number of images with a score."""


def learn_measured(
    name: str,
    w: Tensor,
    scores: Tensor,
    settings: LearnSettings,
    attribute: str = "",
    orthogonal_to: Sequence[Direction] = (),
    layers: tuple[int, ...] | None = None,
    sensible: tuple[float, float] = SENSIBLE_RANGE,
) -> Direction:
    """The direction of W along which a measured score grows.

    w: (N, style_dim). scores: (N,), NaN without a face to measure; these are left out. A ridge
    regression of the score on w over 70 % of the others, with a penalty of `settings.ridge` per
    sample, for w scaled to components of mean variance 1. The result is made orthogonal to
    `orthogonal_to`. Its source has `correlation_test`, of position and score over the other 30 %,
    `correlation` over all, and the number of images left out. sensible: the direction's range.

    Raises WranganError without scikit-learn, if too few images remain, or if their scores do not differ.
    """
    require_sklearn()
    from sklearn.linear_model import Ridge

    found = scores.isfinite().cpu()
    faces = int(found.sum())
    if faces < MIN_IMAGES:
        raise WranganError(
            f"direction {name}: {faces} of {len(w)} images show a face, at least {MIN_IMAGES} are needed"
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
        range=sensible,
        source={
            "method": "ridge regression",
            "attribute": attribute,
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
