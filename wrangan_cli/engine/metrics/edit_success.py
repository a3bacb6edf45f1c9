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
success rate is a mean over photographs of each one's fraction of directions that succeed, so that its
bootstrap interval is over photographs. Judges are the attribute net, the detector and dlib's recogniser:
their mistakes are in it. Higher is better.
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
"""Change of yaw that counts, as a fraction of the distance of the eyes (editing/pose.py)."""
SAME_PERSON = 0.6
"""Identity distance below which dlib calls two pictures one person."""
POSE = "pose"
PROTOCOL = (
    "share of edits after which the attribute is the opposite of the photograph's (pose: yaw changed by "
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

    directions: Mapping[str, Direction]
    """By name, in the order asked for."""
    columns: Mapping[str, tuple[int, float]]
    """Of each direction but pose: column of the logits, and the sign with which it raises them."""
    logits: Callable[[Tensor], Tensor]
    """Images (B, 3, S, S) → logits of the attributes (B, A)."""
    yaw: Callable[[Tensor], Tensor]
    """Images → yaw (B,); NaN where no face is found."""
    describe: Callable[[Tensor], Tensor]
    """Images → identity descriptors (B, D)."""


class Look:
    """What a judge says of one image (1, 3, S, S): each thing computed once, when it is asked for."""

    def __init__(self, judge: Judge, image: Tensor) -> None:
        self._judge, self._image = judge, image

    def score(self, direction: str) -> float:
        """What the direction raises; NaN where it cannot be told."""
        if direction == POSE:
            return self.yaw
        column, sign = self._judge.columns[direction]
        return sign * float(self.logits[column])

    @cached_property
    def yaw(self) -> float:
        """NaN where no face is found."""
        return float(self._judge.yaw(self._image)[0])

    @property
    def face(self) -> bool:
        """Whether the detector finds one."""
        return not math.isnan(self.yaw)

    @cached_property
    def logits(self) -> Tensor:
        """Of the attributes: (A,)."""
        return self._judge.logits(self._image)[0].cpu()

    @cached_property
    def identity(self) -> Tensor:
        """The descriptor (D,)."""
        return self._judge.describe(self._image)[0]


def load_judge(model: Model, directions: Iterable[Direction], only_scored: bool = False) -> Judge:
    """The judge of `directions`. only_scored: those that no score belongs to are left out.

    Raises UsageError for a direction that no score belongs to (with `only_scored`: where none is left), and
    where the model has no attribute net; WranganError naming the extra where the detector or the
    recogniser is missing.
    """
    net, yaw = load_attributes(model), YawScorer()
    columns = judged(net)
    known = [*columns, POSE]
    asked = {direction.name: direction for direction in directions}
    chosen = {name: direction for name, direction in asked.items() if name in known}
    if only_scored and not chosen:
        raise UsageError(f"{NAME}: {model.name} has none of the directions {', '.join(sorted(known))}")
    for name in [] if only_scored else asked.keys() - chosen.keys():
        raise UsageError(f"direction {name}: no score belongs to it; there are {', '.join(known)}")
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
    """The trials of one code, a direction each.

    photo: (3, S, S) in [-1, 1]. strength: the size of the one edit; None: STEPS up to the end of the
    direction's range. A photograph whose yaw cannot be told has no trial of pose.
    """
    target = Look(judge, seen(photo[None]))
    start = Look(judge, _rendered(model, code))
    for name, direction in judge.directions.items():
        before = target.score(name)
        if math.isnan(before):
            continue
        sign = -1.0 if before > 0 else 1.0
        points = [_point(name, 0.0, sign, target, start)]
        for size in sizes(direction, sign, strength):
            moved = edit_code(code, [Move(direction, sign * size)], model.generator.config.num_latents)
            points.append(_point(name, sign * size, sign, target, Look(judge, _rendered(model, moved))))
        yield Trial(name, points)


def _point(direction: str, strength: float, sign: float, target: Look, edited: Look) -> Point:
    after = sign * edited.score(direction)
    change = after - sign * target.score(direction)
    reached = change >= YAW if direction == POSE else after > 0
    distance = float((edited.identity - target.identity).norm())
    return Point(strength, change, reached, edited.face, distance)


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


def _rendered(model: Model, code: Code) -> Tensor:
    """(1, 3, 256, 256) in [-1, 1], on the CPU."""
    return seen(render(model, [code], min(LANDMARK_SIDE, model.resolution)).clamp(-1, 1).float().cpu())


def fraction(values: Sequence[bool]) -> float:
    """Of the values that are true, 0…1; NaN of none."""
    return sum(values) / len(values) if values else math.nan


def by_photograph(found: Mapping[str, Sequence[Trial]]) -> list[float]:
    """The fraction of successes of each photograph that has a trial."""
    return [fraction([trial.outcome().success for trial in some]) for some in found.values() if some]


def parts(some: Sequence[Trial]) -> dict[str, float]:
    """Of many trials: the fraction that reached the attribute, of these the fraction with a face and that of
    the same person; and, of all, the fraction whose unedited image is of the same person."""
    ends = [trial.outcome() for trial in some]
    there = [end for end in ends if end.reached]
    return {
        "reached": fraction([end.reached for end in ends]),
        "face": fraction([end.face for end in there]),
        "same person": fraction([end.identity < SAME_PERSON for end in there]),
        "unedited same person": fraction([trial.points[0].identity < SAME_PERSON for trial in some]),
    }
