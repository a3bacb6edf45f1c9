"""Several directions learnt from the same images: of the attribute net's scores, and of the pose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wrangan_cli.engine.editing.directions import Direction, check_name
from wrangan_cli.engine.editing.pose import YawScorer, learn_pose
from wrangan_cli.engine.editing.scoring import AttributeScorer, Scorer, scored
from wrangan_cli.engine.editing.settings import KNOWN_ATTRIBUTES, POSE, LearnSettings
from wrangan_cli.engine.editing.svm import learn_direction, require_sklearn
from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.attributes import AttributeNet
from wrangan_cli.engine.training.pairs import Pairs


@dataclass(frozen=True)
class Wanted:
    """A direction to learn."""

    name: str
    attribute: str | None
    """Of the attribute net; None: the pose."""
    sign: float = 1.0
    """-1: the direction lowers the attribute."""


def wanted_directions(names: Sequence[str], attribute: str | None = None) -> list[Wanted]:
    """What is to be learnt by names; attribute: that of the one name, lowered with a leading `-`.

    Raises UsageError for an attribute of several names, and a name of unknown meaning.
    """
    if attribute is not None and len(names) > 1:
        raise UsageError("--attribute goes with one name")
    wanted = []
    for name in dict.fromkeys(names):
        check_name(name)
        if attribute is not None:
            wanted.append(
                Wanted(name, attribute.removeprefix("-"), -1.0 if attribute.startswith("-") else 1.0)
            )
        elif name == POSE:
            wanted.append(Wanted(name, None))
        elif name in KNOWN_ATTRIBUTES:
            wanted.append(Wanted(name, *KNOWN_ATTRIBUTES[name]))
        else:
            known = ", ".join([*KNOWN_ATTRIBUTES, POSE])
            raise UsageError(f"direction {name!r}: say which --attribute ({known} need none)")
    return wanted


def learn_directions(
    model: Model,
    wanted: Sequence[Wanted],
    net: AttributeNet | None,
    settings: LearnSettings,
    orthogonal_to: Sequence[str] = (),
    held: Mapping[str, Direction] | None = None,
    layers: tuple[int, ...] | None = None,
    pairs: Pairs | None = None,
    on_images: Callable[[int], None] | None = None,
) -> list[Direction]:
    """Learn `wanted`, in this order, from images that are drawn, or read from pairs, once.

    net: needed for all but the pose. orthogonal_to: names of `held` or of `wanted`. Raises what
    `learn_direction` and `learn_pose` raise.
    """
    require_sklearn()  # said now, and not after the samples
    scorers: dict[str, Scorer] = {}
    columns: dict[str, int] = {}
    for item in wanted:
        if item.attribute is None:
            scorers["pose"] = YawScorer()
            columns[item.name] = 0
        else:
            assert net is not None
            scorers["net"] = AttributeScorer(net)
            columns[item.name] = net.index(item.attribute)
    w, found = scored(model, list(scorers.values()), settings, on_images, pairs)
    scores = dict(zip(scorers, found, strict=True))
    # What others are made orthogonal to comes first, and never in the form that it replaces.
    names = [item.name for item in wanted]
    available = {name: item for name, item in (held or {}).items() if name not in names}
    learnt: dict[str, Direction] = {}
    for item in sorted(wanted, key=lambda item: item.name not in orthogonal_to):
        others = [available[n] for n in orthogonal_to if n != item.name and n in available]
        if item.attribute is None:
            made = learn_pose(item.name, w, scores["pose"][:, 0], settings, others, layers)
        else:
            own = scores["net"][:, columns[item.name]] * item.sign
            described = item.attribute if item.sign > 0 else f"-{item.attribute}"
            made = learn_direction(item.name, w, own, settings, described, others, layers)
        learnt[item.name] = available[item.name] = made
    return [learnt[name] for name in names]
