"""InterFaceGAN (Shen et al. 2020): a direction as the normal of a linear SVM in W."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.editing.directions import Direction, std_along, unit
from wrangan_cli.engine.editing.settings import LearnSettings


def require_sklearn() -> None:
    """WranganError naming the extra if scikit-learn is missing."""
    if importlib.util.find_spec("sklearn") is None:
        raise WranganError(
            f"scikit-learn is missing, which fits hyperplanes in W: {install_line('directions')}"
        )


@dataclass(frozen=True)
class Separation:
    """A hyperplane between the samples of highest and of lowest score, and how well it separates them."""

    normal: Tensor
    """Unit vector towards higher scores: float32 (style_dim,)."""
    test_low: Tensor
    """Indices of held-out samples of lowest score."""
    test_high: Tensor
    """Indices of held-out samples of highest score."""
    halfway: float
    """Probability above which a sample counts as having the attribute: halfway between the extremes."""
    accuracy_test: float
    """Accuracy on `test_low` and `test_high`, 0…1."""
    accuracy_rest: float | None
    """Accuracy on all samples in between, by `halfway`; None if there are none."""


def learn_direction(
    name: str,
    w: Tensor,
    scores: Tensor,
    settings: LearnSettings,
    attribute: str = "",
    orthogonal_to: Sequence[Direction] = (),
    layers: tuple[int, ...] | None = None,
) -> Direction:
    """The normal of the hyperplane between the samples of highest and of lowest score.

    w: (N, style_dim). scores: (N,) logits, higher means more of the attribute; the
    direction points to higher scores. Of the top and bottom `share`, 70 % train
    scikit-learn's LinearSVC (squared hinge, L2, primal; the published code solves the
    SVC with hinge loss exactly, which is slow at this size), 30 % test it. The result
    is made orthogonal to `orthogonal_to`. std is measured over all of w.

    Its source has, in 0…1, `accuracy_test` on the 30 %, `accuracy_rest` on the samples
    between top and bottom (label: probability at least halfway between those of the
    extreme scores, None without such samples), and `correlation` of position and score.

    Raises WranganError without scikit-learn, or when the scores do not differ.
    """
    parted = separate(name, w, scores, settings)
    vector = made_orthogonal(parted.normal, orthogonal_to, name)
    position = w.double().cpu() @ vector.double()
    return Direction(
        name=name,
        vector=vector,
        std=std_along(w, vector),
        layers=layers,
        source={
            "method": "InterFaceGAN",
            "attribute": attribute,
            "samples": len(w),
            "share": settings.share,
            "epsilon": settings.epsilon,
            "seed": settings.seed,
            "svm_c": settings.svm_c,
            "orthogonal_to": [other.name for other in orthogonal_to],
            "accuracy_test": round(parted.accuracy_test, 4),
            "accuracy_rest": None if parted.accuracy_rest is None else round(parted.accuracy_rest, 4),
            "correlation": round(
                float(np.corrcoef(position.numpy(), scores.double().cpu().numpy())[0, 1]), 4
            ),
        },
    )


def separate(name: str, w: Tensor, scores: Tensor, settings: LearnSettings) -> Separation:
    """The hyperplane described at `learn_direction`: w (N, style_dim), scores (N,) logits.

    Raises WranganError without scikit-learn, or when the scores do not differ.
    """
    require_sklearn()
    from sklearn.svm import LinearSVC

    points, values = w.double().cpu().numpy(), scores.double().cpu().numpy()
    order = np.argsort(values, kind="stable")
    count = max(4, round(settings.share * len(order)))
    if 2 * count > len(order):
        raise WranganError(f"direction {name}: {len(order)} samples are too few")
    low, high, rest = order[:count], order[-count:], order[count:-count]
    if values[high[0]] <= values[low[-1]]:
        raise WranganError(f"direction {name}: the scores of the samples do not differ")
    # One scale for all components: it preserves the geometry of W, and C means the same on every model.
    centre = points.mean(axis=0)
    scale = np.sqrt(points.var(axis=0).mean())
    rng = np.random.default_rng(settings.seed)
    train, test = zip(_split(low, rng), _split(high, rng), strict=True)
    machine = LinearSVC(C=settings.svm_c, dual=False, max_iter=10_000, random_state=0)
    machine.fit(
        (points[np.concatenate(train)] - centre) / scale, np.repeat([0, 1], [len(part) for part in train])
    )

    def accuracy(chosen: np.ndarray, truth: np.ndarray) -> float:
        return float((machine.predict((points[chosen] - centre) / scale) == truth).mean())

    halfway = float(_sigmoid(values[order[[0, -1]]]).mean())
    return Separation(
        normal=unit(torch.from_numpy(machine.coef_[0])),
        test_low=torch.from_numpy(test[0].copy()),
        test_high=torch.from_numpy(test[1].copy()),
        halfway=halfway,
        accuracy_test=accuracy(np.concatenate(test), np.repeat([0, 1], [len(part) for part in test])),
        accuracy_rest=accuracy(rest, _sigmoid(values[rest]) >= halfway) if len(rest) else None,
    )


def _split(indices: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """70 % and 30 %, at random."""
    shuffled = rng.permutation(indices)
    border = min(len(shuffled) - 1, max(1, round(0.7 * len(shuffled))))
    return shuffled[:border], shuffled[border:]


def made_orthogonal(vector: Tensor, others: Sequence[Direction], name: str) -> Tensor:
    """The component of a unit vector orthogonal to all others, scaled to length 1."""
    if not others:
        return vector
    for other in others:
        if other.per_row:
            raise UsageError(f"direction {name}: {other.name} has a vector for each row, not one in W")
    basis = torch.stack([other.vector.double() for other in others], dim=1)
    # The pseudo-inverse also works if the others are linearly dependent.
    left = vector.double() - basis @ (torch.linalg.pinv(basis) @ vector.double())
    if left.norm() < 1e-3:
        raise WranganError(
            f"direction {name}: nothing is left of it orthogonal to {[o.name for o in others]}"
        )
    return unit(left)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(torch.sigmoid(torch.from_numpy(values)))
