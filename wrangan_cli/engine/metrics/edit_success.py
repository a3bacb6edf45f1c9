"""Edit success: is it the same person, edited? One number for what a user of an inversion wants.

Protocol. Each code is moved along a direction towards what its photograph does not show: for a direction
that was learned from an attribute, so that the attribute net calls the image the opposite of what it calls
the photograph; for pose, so that the yaw of the landmarks changes by YAW away from the side to which the
photograph is turned. It is moved in STEPS equal steps to the end of the direction's sensible range, until
the attribute has changed as asked, or by one strength that is given. At that step the edit is a success if

- the attribute has changed as asked,
- the detector finds a face,
- the identity distance between the *photograph* and the edit is below SAME_PERSON.

Images and photographs are seen at 256 px (reduced by area, or enlarged bilinearly). A fit that is close and
cannot be edited fails by the first or the second, an encoder's code of somebody else by the third. The
share of successes is a mean over photographs of each one's share over the directions, so that its bootstrap
interval is over photographs. Judges are the attribute net, the detector and dlib's recogniser: their
mistakes are in it. Higher is better.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.directions import Direction, Move, edit_code
from wrangan_cli.engine.editing.pose import LANDMARK_SIDE, YawScorer
from wrangan_cli.engine.metrics.identity import load_descriptors
from wrangan_cli.engine.metrics.separability import judged
from wrangan_cli.engine.models.attributes import attribute_logits, load_attributes
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model

NAME = "edit-success"
STEPS = 5
YAW = 0.25
"""Change of yaw that counts, as a share of the distance of the eyes (editing/pose.py)."""
SAME_PERSON = 0.6
"""Identity distance below which dlib calls two pictures one person."""
POSE = "pose"
PROTOCOL = (
    "share of edits after which the attribute is the opposite of the photograph's (pose: yaw changed by "
    f"{YAW:g}), a face is found, and the identity distance to the photograph is below {SAME_PERSON:g}; "
)
BY_STEPS = f"moved in {STEPS} steps to the end of the direction's range, until the attribute has changed"
BY_STRENGTH = "moved by {strength:g} standard deviations"

Scorer = Callable[[Tensor], Tensor]
"""Images (B, 3, S, S) → (B,), what the direction raises; NaN where it cannot be told."""


@dataclass(frozen=True)
class Point:
    """One edit of a code."""

    strength: float
    """Standard deviations along the direction, signed; 0: not edited."""
    change: float
    """Of the score in the asked direction, against the photograph's; NaN where it cannot be told."""
    reached: bool
    """Whether the attribute has changed as asked."""
    face: bool
    """Whether the detector finds one."""
    identity: float
    """Distance to the photograph."""

    @property
    def success(self) -> bool:
        """All three."""
        return self.reached and self.face and self.identity < SAME_PERSON


@dataclass(frozen=True)
class Trial:
    """A photograph's code moved along a direction."""

    direction: str
    points: list[Point] = field(default_factory=list)
    """Unedited first, then by growing strength."""

    def outcome(self) -> Point:
        """The first edit that has changed the attribute as asked; the last one where none has."""
        edits = self.points[1:]
        return next((point for point in edits if point.reached), edits[-1])


@dataclass(frozen=True)
class Judge:
    """What the edits are scored by; made once for many codes."""

    directions: Mapping[str, tuple[Direction, Scorer]]
    """By name, in the order asked for."""
    face: Callable[[Tensor], list[bool]]
    describe: Callable[[Tensor], Tensor]
    """Images → identity descriptors (B, D)."""


def load_judge(model: Model, directions: Sequence[Direction]) -> Judge:
    """The judge of `directions`.

    Raises UsageError for a direction that no score belongs to, and where the model has no attribute net;
    WranganError naming the extra where the detector or the recogniser is missing.
    """
    yaw = YawScorer()
    net = load_attributes(model)
    columns = judged(net)

    def scorer(direction: Direction) -> Scorer:
        if direction.name == POSE:
            return lambda images: yaw(images)[:, 0]
        if direction.name not in columns:
            known = ", ".join([*columns, POSE])
            raise UsageError(f"direction {direction.name}: no score belongs to it; there are {known}")
        column, sign = columns[direction.name]
        return lambda images: sign * attribute_logits(net, images)[:, column].cpu()

    return Judge(
        {direction.name: (direction, scorer(direction)) for direction in directions},
        lambda images: (~yaw(images)[:, 0].isnan()).tolist(),
        load_descriptors(),
    )


@torch.no_grad()
def trials(
    model: Model, judge: Judge, photo: Tensor, code: Code, strength: float | None = None
) -> Iterator[Trial]:
    """The trials of one code, a direction each.

    photo: (3, S, S) in [-1, 1]. strength: the size of the one edit; None: STEPS up to the end of the
    direction's range. A photograph whose yaw cannot be told has no trial of pose.
    """
    target = seen(photo[None])
    start = _drawn(model, code)
    described = judge.describe(target)

    def distance(image: Tensor) -> float:
        return float((judge.describe(image) - described).norm())

    unedited = distance(start), judge.face(start)[0]
    for name, (direction, score) in judge.directions.items():
        before = float(score(target)[0])
        if math.isnan(before):
            continue
        sign = -1.0 if before > 0 else 1.0

        def point(size: float, image: Tensor, identity: float, face: bool) -> Point:
            after = sign * float(score(image)[0])  # noqa: B023 (called before the next round)
            change = after - sign * before  # noqa: B023
            reached = change >= YAW if name == POSE else after > 0  # noqa: B023
            return Point(sign * size, change, reached, face, identity)  # noqa: B023

        points = [point(0.0, start, *unedited)]
        for size in sizes(direction, sign, strength):
            moved = edit_code(code, [Move(direction, sign * size)], model.generator.config.num_latents)
            image = _drawn(model, moved)
            points.append(point(size, image, distance(image), judge.face(image)[0]))
        yield Trial(name, points)


def sizes(direction: Direction, sign: float, strength: float | None) -> list[float]:
    """The strengths to be tried, without their sign."""
    if strength is not None:
        return [abs(strength)]
    low, high = direction.range
    end = high if sign > 0 else -low
    return [end * step / STEPS for step in range(1, STEPS + 1)]


def seen(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) at the side at which all are judged."""
    side = images.shape[-1]
    if side == LANDMARK_SIDE:
        return images
    mode = "area" if side > LANDMARK_SIDE else "bilinear"
    return F.interpolate(images, size=(LANDMARK_SIDE, LANDMARK_SIDE), mode=mode)


def _drawn(model: Model, code: Code) -> Tensor:
    """(1, 3, 256, 256) in [-1, 1], on the CPU."""
    return seen(render(model, [code], min(LANDMARK_SIDE, model.resolution)).clamp(-1, 1).float().cpu())


def share(values: Sequence[bool]) -> float:
    """Of what is true; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def by_photograph(found: Mapping[str, Sequence[Trial]]) -> list[float]:
    """The share of successes of each photograph that has a trial."""
    return [share([trial.outcome().success for trial in some]) for some in found.values() if some]


def parts(some: Sequence[Trial]) -> dict[str, float]:
    """Of many trials: the share that reached the attribute, of these the share with a face and that of the
    same person; and, of all, the share whose unedited image is of the same person."""
    ends = [trial.outcome() for trial in some]
    there = [end for end in ends if end.reached]
    return {
        "reached": share([end.reached for end in ends]),
        "face": share([end.face for end in there]),
        "same person": share([end.identity < SAME_PERSON for end in there]),
        "unedited same person": share([trial.points[0].identity < SAME_PERSON for trial in some]),
    }


def scored(model: Model, directions: Iterable[Direction]) -> list[Direction]:
    """Those of `directions` that a score belongs to; UsageError where there are none."""
    names = {*judged(load_attributes(model)), POSE}
    found = [direction for direction in directions if direction.name in names]
    if not found:
        raise UsageError(f"{NAME}: {model.name} has none of the directions {', '.join(sorted(names))}")
    return found
