"""Separability: how well hyperplanes in W separate images by attribute (the paper's Table 5).

Protocol, for each attribute of the model's attribute net: the images of `samples` random w are
scored by the net. 70 % of the tenth with the highest scores and of the tenth with the lowest are used to fit
a linear SVM (editing/svm.py), 30 % are held out. Results in 0…1:

- `test`: accuracy on the 30 %, as in the paper;
- `rest`: accuracy on the eight tenths in between, whose scores are less clear (label: probability at
  least halfway between those of the extreme scores);
- `moved`: every held-out w is moved by 3 standard deviations along the normal towards the other side,
  rendered and scored again: the fraction whose label is now that of the other side. It tells whether the
  hyperplane is useful for editing, beyond describing the samples.

  The attribute net is the judge: its mistakes affect all three numbers. Higher is better.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.editing.directions import std_along
from wrangan_cli.engine.editing.scoring import score_samples
from wrangan_cli.engine.editing.settings import KNOWN_ATTRIBUTES, LearnSettings
from wrangan_cli.engine.editing.svm import Separation, require_sklearn, separate
from wrangan_cli.engine.metrics.base import LayerMetric
from wrangan_cli.engine.models.attributes import AttributeNet, attribute_logits, load_attributes
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon

STRENGTH = 3.0
"""Standard deviations by which held-out samples are moved."""


@dataclass(frozen=True)
class Separability:
    """Accuracies of one attribute, 0…1."""

    test: float
    rest: float | None
    """None if every sample is among the highest or the lowest."""
    moved: float
    held_out: int
    """Number of samples behind `test` and `moved`."""


def separability(
    model: Model,
    net: AttributeNet,
    settings: LearnSettings,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Separability | WranganError]:
    """Name of the direction (or else of the attribute) → accuracies, or the error.

    settings.epsilon: scale of the ε with which all images are rendered; 0: the mean weights.
    Raises WranganError without scikit-learn, or when scores are not finite.
    """
    require_sklearn()  # report it now, not after rendering
    w, logits = score_samples(model, net, settings, on_images)
    found: dict[str, Separability | WranganError] = {}
    for name, (column, sign) in judged(net).items():
        try:
            parted = separate(name, w, sign * logits[:, column], settings)
            moved = _moved_accuracy(model, net, w, parted, column, sign, settings)
        except WranganError as error:
            found[name] = error
            continue
        held_out = len(parted.test_low) + len(parted.test_high)
        found[name] = Separability(parted.accuracy_test, parted.accuracy_rest, moved, held_out)
    return found


def judged(net: AttributeNet) -> dict[str, tuple[int, float]]:
    """Direction (or attribute) name → column of the net's logits, and sign."""
    columns = {}
    for attribute in net.config.names:
        known = ((name, sign) for name, (of, sign) in KNOWN_ATTRIBUTES.items() if of == attribute)
        name, sign = next(known, (attribute, 1.0))
        columns[name] = (net.index(attribute), sign)
    return columns


def _moved_accuracy(
    model: Model,
    net: AttributeNet,
    w: Tensor,
    parted: Separation,
    column: int,
    sign: float,
    settings: LearnSettings,
) -> float:
    step = STRENGTH * std_along(w, parted.normal) * parted.normal
    right = 0
    for numbers, way in ((parted.test_low, 1.0), (parted.test_high, -1.0)):
        scores = sign * _scores(model, net, w[numbers] + way * step, settings)[:, column]
        has = torch.sigmoid(scores) >= parted.halfway
        right += int((has if way > 0 else ~has).sum())
    return right / (len(parted.test_low) + len(parted.test_high))


@torch.no_grad()
def _scores(model: Model, net: AttributeNet, w: Tensor, settings: LearnSettings) -> Tensor:
    rng = random_generator(settings.seed + 1)
    logits = []
    for part in w.to(model.device).split(settings.batch):
        epsilon = draw_epsilon(model.generator, scale=settings.epsilon, rng=rng) if settings.epsilon else None
        logits.append(attribute_logits(net, model.generator.synthesis(part, epsilon=epsilon)).cpu())
    return torch.cat(logits)


def _metric(model: Model, samples: int, seed: int, batch: int) -> dict[str, float]:
    try:
        settings = dataclasses.replace(LearnSettings(), samples=samples, seed=seed, batch=batch)
    except ValueError as error:
        raise WranganError(f"separability: {error}") from error
    values: dict[str, float] = {}
    for name, found in separability(model, load_attributes(model), settings).items():
        if isinstance(found, WranganError):
            raise found
        values[f"{name} test"], values[f"{name} moved"] = found.test, found.moved
        if found.rest is not None:
            values[f"{name} rest"] = found.rest
    return values


METRIC = LayerMetric(
    "separability",
    "accuracy of a linear SVM in W on samples scored by the attribute net, 0…1: on 30 % held out, "
    "on these moved by 3 std to the other side, on the samples in between",
    True,
    _metric,
    of="attribute",
)
