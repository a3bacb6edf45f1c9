"""Learn several directions from the same images: from scores of the attribute net, and from measurements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.brightness import BrightnessScorer
from wrangan_cli.engine.editing.directions import SENSIBLE_RANGE, Direction, check_name
from wrangan_cli.engine.editing.pose import SENSIBLE_TURN, YawScorer
from wrangan_cli.engine.editing.regression import learn_measured
from wrangan_cli.engine.editing.scoring import AttributeScorer, Scorer, scored
from wrangan_cli.engine.editing.settings import BRIGHTNESS, KNOWN_ATTRIBUTES, POSE, LearnSettings
from wrangan_cli.engine.editing.svm import learn_direction, require_sklearn
from wrangan_cli.engine.models.attributes import AttributeNet
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.pairs import Pairs


@dataclass(frozen=True)
class Measurement:
    """A quantity that is measured in images, in place of an attribute."""

    scorer: Callable[[], Scorer]
    what: str
    sensible: tuple[float, float]
    """Sensible range of its direction."""


MEASUREMENTS = {
    POSE: Measurement(YawScorer, "yaw of five landmarks", SENSIBLE_TURN),
    BRIGHTNESS: Measurement(BrightnessScorer, "luminance of the face's middle", SENSIBLE_RANGE),
}
"""By the name of the direction."""


@dataclass(frozen=True)
class Wanted:
    """A direction to learn."""

    name: str
    attribute: str | None
    """An attribute of the net; None: use MEASUREMENTS[name]."""
    sign: float = 1.0
    """-1: the direction lowers the attribute."""


def wanted_directions(names: Sequence[str], attribute: str | None = None) -> list[Wanted]:
    """The directions to learn, by name. attribute: that of a single name; a leading `-` lowers it.

    Raises UsageError for an attribute with several names, and for unknown names without an attribute.
    """
    if attribute is not None and len(names) > 1:
        raise UsageError("--attribute takes exactly one name")
    wanted = []
    for name in dict.fromkeys(names):
        check_name(name)
        if attribute is not None:
            wanted.append(
                Wanted(name, attribute.removeprefix("-"), -1.0 if attribute.startswith("-") else 1.0)
            )
        elif name in MEASUREMENTS:
            wanted.append(Wanted(name, None))
        elif name in KNOWN_ATTRIBUTES:
            wanted.append(Wanted(name, *KNOWN_ATTRIBUTES[name]))
        else:
            known = ", ".join([*KNOWN_ATTRIBUTES, *MEASUREMENTS])
            raise UsageError(f"direction {name!r}: give its --attribute ({known} need none)")
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
    """Learn `wanted`, in this order, from images that are rendered, or read from pairs, only once.

    net: needed unless everything is measured. orthogonal_to: names in `held` or `wanted`. Raises as
    `learn_direction` and `learn_measured` do.
    """
    require_sklearn()  # report it now, not after rendering
    scorers: dict[
        str, Scorer
    ] = {}  # by the measured direction; "" for the net, since no direction has that name
    columns: dict[str, int] = {}
    for item in wanted:
        if item.attribute is None:
            scorers[item.name] = MEASUREMENTS[item.name].scorer()
        else:
            assert net is not None
            scorers[""] = AttributeScorer(net)
            columns[item.name] = net.index(item.attribute)
    w, found = scored(model, list(scorers.values()), settings, on_images, pairs)
    scores = dict(zip(scorers, found, strict=True))
    # Directions that others are made orthogonal to come first, so that the new versions are used.
    names = [item.name for item in wanted]
    available = {name: item for name, item in (held or {}).items() if name not in names}
    learnt: dict[str, Direction] = {}
    for item in sorted(wanted, key=lambda item: item.name not in orthogonal_to):
        others = [available[n] for n in orthogonal_to if n != item.name and n in available]
        if item.attribute is None:
            about, measured = MEASUREMENTS[item.name], scores[item.name][:, 0]
            made = learn_measured(
                item.name, w, measured, settings, about.what, others, layers, about.sensible
            )
        else:
            logits = scores[""][:, columns[item.name]] * item.sign
            described = item.attribute if item.sign > 0 else f"-{item.attribute}"
            made = learn_direction(item.name, w, logits, settings, described, others, layers)
        learnt[item.name] = available[item.name] = made
    return [learnt[name] for name in names]
