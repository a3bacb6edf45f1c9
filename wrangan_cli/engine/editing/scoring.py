"""Scores of images of random w, from which directions are learnt."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.editing.settings import LearnSettings
from wrangan_cli.engine.models.attributes import AttributeNet, attribute_logits
from wrangan_cli.engine.models.folder import Model, sample_w
from wrangan_cli.engine.models.pairs import Pairs
from wrangan_cli.engine.models.randomized import draw_epsilon


class Scorer(Protocol):
    """Scores images by how much they show of something."""

    @property
    def side(self) -> int:
        """Side in px at which it sees images; larger ones are reduced to it by area averaging."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], not clipped → (B, K) float32 on the CPU; NaN where undecided."""


class AttributeScorer:
    """The logits of an attribute net; WranganError if one is not finite."""

    def __init__(self, net: AttributeNet) -> None:
        self._net = net

    @property
    def side(self) -> int:
        """The side of the net's input."""
        return self._net.config.resolution

    def __call__(self, images: Tensor) -> Tensor:
        scores = attribute_logits(self._net, images).cpu()
        if not scores.isfinite().all():
            raise WranganError("images of random latents have scores that are not finite")
        return scores


def score_samples(
    model: Model,
    net: AttributeNet,
    settings: LearnSettings,
    on_images: Callable[[int], None] | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, Tensor]:
    """Random w and the net's scores of their images: `scored` with only an attribute net."""
    w, (logits,) = scored(model, [AttributeScorer(net)], settings, on_images, pairs)
    return w, logits


@torch.no_grad()
def scored(
    model: Model,
    scorers: Sequence[Scorer],
    settings: LearnSettings,
    on_images: Callable[[int], None] | None = None,
    pairs: Pairs | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Random w and the scores of their images by each scorer.

    pairs: use the first `settings.samples` of these, or all if there are fewer, in place of rendering.
    Returns w, float32 (N, style_dim), and for each scorer (N, K), on the CPU. on_images gets
    the number of images done so far.
    """
    if pairs is not None and settings.epsilon:
        raise UsageError("pairs are rendered with the mean weights: leave --epsilon out")
    w = sample_w(model.generator, settings.samples, seed=settings.seed) if pairs is None else pairs.w
    w = w[: settings.samples]
    batches = (
        _rendered(model, w, scorers, settings) if pairs is None else _stored(pairs, len(w), settings.batch)
    )
    scores: list[list[Tensor]] = [[] for _ in scorers]
    done = 0
    for images in batches:
        for some, scorer in zip(scores, scorers, strict=True):
            some.append(scorer(images))
        done += len(images)
        if on_images:
            on_images(done)
    return w.cpu(), [torch.cat(some) for some in scores]


def rendering_side(resolution: int, sides: Sequence[int]) -> int | None:
    """The side at which to render for scorers that see `sides`; None: that of the model.

    Reducing by area averaging in two steps equals a single step only if each divides the previous side
    by a whole number. (The only difference is that values beyond [-1, 1] are clipped after the
    first step.)
    """
    largest = max(sides)
    steps = [(resolution, largest), *((largest, side) for side in sides)]
    return largest if largest < resolution and all(a % b == 0 for a, b in steps) else None


def _rendered(
    model: Model, w: Tensor, scorers: Sequence[Scorer], settings: LearnSettings
) -> Iterator[Tensor]:
    side = rendering_side(model.resolution, [scorer.side for scorer in scorers])
    rng = random_generator(settings.seed)
    for part in w.split(settings.batch):
        epsilon = draw_epsilon(model.generator, scale=settings.epsilon, rng=rng) if settings.epsilon else None
        yield model.generator.synthesis(part, epsilon=epsilon, side=side)


def _stored(pairs: Pairs, count: int, batch: int) -> Iterator[Tensor]:
    for first in range(0, count, batch):
        yield pairs.images(np.arange(first, min(first + batch, count)))
