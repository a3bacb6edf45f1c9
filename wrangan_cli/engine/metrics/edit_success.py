"""Edit success: is it the same person, edited? One number for what a user wants from an inversion.

Protocol. Each code is moved along a direction away from what its photograph shows. For a direction
that was learned from an attribute, the attribute net's decision must become the opposite of that for
the photograph; for pose, the yaw of the landmarks must change by YAW away from the side to which the
photograph is turned. The code is moved in STEPS equal steps towards the end of the direction's sensible range
until the attribute has changed, or by one given strength. At that step the edit is a success if

- the attribute has changed,
- the detector finds a face,
- the identity distance between the *photograph* and the edit is below SAME_PERSON.

Images and photographs are judged at 256 px (reduced by area averaging, or enlarged bilinearly). A close fit
that cannot be edited fails the first or the second test, an encoder's code of a different person the third.
The success rate is the mean over photographs of the fraction of directions that succeed, so that its
bootstrap interval is over photographs. The judges are the attribute net, the detector and dlib's recogniser,
whose mistakes affect it. Higher is better.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
"""Change of yaw that counts, as a fraction of the distance between the eyes (editing/pose.py)."""
SAME_PERSON = 0.6
"""Identity distance below which dlib considers two pictures the same person."""
POSE = "pose"
PROTOCOL = (
    "fraction of edits after which the attribute is the opposite of the photograph's (pose: yaw changed by "
    f"{YAW:g}), a face is found, and the identity distance to the photograph is below {SAME_PERSON:g}; "
)
BY_STEPS = f"moved in {STEPS} steps to the end of the direction's range, until the attribute has changed"
BY_STRENGTH = "moved by {strength:g} standard deviations"


@dataclass(frozen=True)
class Point:
    """One edit of a code."""

    strength: float
    """Standard deviations along the direction, signed; 0: not edited."""
    change: float
    """Change of the score, in the requested sense, from that of the photograph; NaN if undecided."""
    reached: bool
    """Whether the attribute has changed as requested."""
    face: bool
    """Whether the detector finds a face."""
    identity: float
    """Distance to the photograph."""

    @property
    def success(self) -> bool:
        """Whether all three conditions hold."""
        return self.reached and self.face and self.identity < SAME_PERSON


@dataclass(frozen=True)
class Trial:
    """A photograph's code moved along a direction."""

    direction: str
    points: list[Point] = field(default_factory=list)
    """Unedited first, then by growing strength."""

    def outcome(self) -> Point:
        """The first edit that has changed the attribute as requested; the last one if none has."""
        edits = self.points[1:]
        return next((point for point in edits if point.reached), edits[-1])


@dataclass(frozen=True)
class Judge:
    """The networks that score the edits; made once for many codes."""

    directions: Mapping[str, Direction]
    """By name, in the requested order."""
    columns: Mapping[str, tuple[int, float]]
    """For each direction except pose: column of the logits, and the sign with which it changes them."""
    logits: Callable[[Tensor], Tensor]
    """Images (B, 3, S, S) → logits of the attributes (B, A)."""
    yaw: Callable[[Tensor], Tensor]
    """Images → yaw (B,); NaN if no face is found."""
    describe: Callable[[Tensor], Tensor]
    """Images → identity descriptors (B, D)."""


class ImageScores:
    """The judge's scores of one image (1, 3, S, S), each computed once, on first use."""

    def __init__(self, judge: Judge, image: Tensor) -> None:
        self._judge, self._image = judge, image

    def score(self, direction: str) -> float:
        """The score that the direction raises; NaN if undecided."""
        if direction == POSE:
            return self.yaw
        column, sign = self._judge.columns[direction]
        return sign * float(self.logits[column])

    @cached_property
    def yaw(self) -> float:
        """Yaw; NaN if no face is found."""
        return float(self._judge.yaw(self._image)[0])

    @property
    def face(self) -> bool:
        """Whether the detector finds a face."""
        return not math.isnan(self.yaw)

    @cached_property
    def logits(self) -> Tensor:
        """The logits of the attributes: (A,)."""
        return self._judge.logits(self._image)[0].cpu()

    @cached_property
    def identity(self) -> Tensor:
        """The descriptor (D,)."""
        return self._judge.describe(self._image)[0]


def load_judge(model: Model, directions: Iterable[Direction], only_scored: bool = False) -> Judge:
    """The judge of `directions`. only_scored: leave out directions without a score.

    Raises UsageError for a direction without a score (with `only_scored`: if no direction is left), and if
    the model has no attribute net; WranganError naming the extra if the detector or the recogniser is
    missing.
    """
    net, yaw = load_attributes(model), YawScorer()
    columns = judged(net)
    known = [*columns, POSE]
    requested = {direction.name: direction for direction in directions}
    chosen = {name: direction for name, direction in requested.items() if name in known}
    if only_scored and not chosen:
        raise UsageError(f"{NAME}: {model.name} has none of the directions {', '.join(sorted(known))}")
    for name in [] if only_scored else requested.keys() - chosen.keys():
        raise UsageError(f"direction {name} has no score; there are scores for {', '.join(known)}")
    return Judge(
        chosen,
        columns,
        lambda images: attribute_logits(net, images),
        lambda images: yaw(images)[:, 0],
        load_descriptors(),
    )


@torch.no_grad()
def trials(
    model: Model, judge: Judge, photo: Tensor, code: Code, strength: float | None = None
) -> Iterator[Trial]:
    """The trials of one code, one per direction.

    photo: (3, S, S) in [-1, 1]. strength: the size of a single edit; None: STEPS edits up to the end of the
    direction's range. A photograph without a measurable yaw has no trial for pose.
    """
    target = ImageScores(judge, at_judged_side(photo[None]))
    start = ImageScores(judge, _rendered(model, code))
    for name, direction in judge.directions.items():
        before = target.score(name)
        if math.isnan(before):
            continue
        sign = -1.0 if before > 0 else 1.0
        points = [_point(name, 0.0, sign, target, start)]
        for size in sizes(direction, sign, strength):
            moved = edit_code(code, [Move(direction, sign * size)], model.generator.config.num_latents)
            points.append(
                _point(name, sign * size, sign, target, ImageScores(judge, _rendered(model, moved)))
            )
        yield Trial(name, points)


def _point(direction: str, strength: float, sign: float, target: ImageScores, edited: ImageScores) -> Point:
    after = sign * edited.score(direction)
    change = after - sign * target.score(direction)
    reached = change >= YAW if direction == POSE else after > 0
    distance = float((edited.identity - target.identity).norm())
    return Point(strength, change, reached, edited.face, distance)


def sizes(direction: Direction, sign: float, strength: float | None) -> list[float]:
    """The absolute strengths to try."""
    if strength is not None:
        return [abs(strength)]
    low, high = direction.range
    end = high if sign > 0 else -low
    return [end * step / STEPS for step in range(1, STEPS + 1)]


def at_judged_side(images: Tensor) -> Tensor:
    """Images (B, 3, S, S), resized to the side at which all images are judged."""
    side = images.shape[-1]
    if side == LANDMARK_SIDE:
        return images
    mode = "area" if side > LANDMARK_SIDE else "bilinear"
    return F.interpolate(images, size=(LANDMARK_SIDE, LANDMARK_SIDE), mode=mode)


def _rendered(model: Model, code: Code) -> Tensor:
    """(1, 3, 256, 256) in [-1, 1], on the CPU."""
    image = render(model, [code], min(LANDMARK_SIDE, model.resolution))
    return at_judged_side(image.clamp(-1, 1).float().cpu())


def fraction(values: Sequence[bool]) -> float:
    """The fraction of true values, 0…1; NaN for no values."""
    return sum(values) / len(values) if values else math.nan


def by_photograph(found: Mapping[str, Sequence[Trial]]) -> dict[str, float]:
    """The fraction of successes of each photograph that has a trial."""
    return {
        photo: fraction([trial.outcome().success for trial in some]) for photo, some in found.items() if some
    }


def parts(some: Sequence[Trial]) -> dict[str, float]:
    """Over many trials: the fraction that changed the attribute; among these, the fractions with a face and
    with the same person; and, among all, the fraction whose unedited image shows the same person."""
    ends = [trial.outcome() for trial in some]
    there = [end for end in ends if end.reached]
    return {
        "reached": fraction([end.reached for end in ends]),
        "face": fraction([end.face for end in there]),
        "same person": fraction([end.identity < SAME_PERSON for end in there]),
        "unedited same person": fraction([trial.points[0].identity < SAME_PERSON for trial in some]),
    }
