"""Ranges of strengths, given as `LOW:HIGH`, and the codes along them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    check_requests,
    check_strength,
    edit_code,
    find_direction,
)
from wrangan_cli.engine.editing.interpolation import check_steps
from wrangan_cli.engine.models.codes import Code


@dataclass(frozen=True)
class Span:
    """A requested range of strengths, from `first` to `last`, which may be the lower one."""

    first: float
    last: float


@dataclass(frozen=True)
class Sweep:
    """A direction over a range of strengths."""

    direction: Direction
    span: Span

    def __post_init__(self) -> None:
        check_strength(self.span.first, self.direction.name)
        check_strength(self.span.last, self.direction.name)

    @property
    def label(self) -> str:
        """Such as `smile-3..+3`: part of file names."""
        return f"{self.direction.name}{self.span.first:+g}..{self.span.last:+g}"

    @property
    def outside_range(self) -> bool:
        """Whether an end of the range is outside the direction's sensible range."""
        return any(Move(self.direction, end).outside_range for end in (self.span.first, self.span.last))

    def strengths(self, steps: int) -> list[float]:
        """`steps` strengths at equal distances, both ends included; UsageError when steps is below 2."""
        return strengths_of(self.span, steps)


def strengths_of(span: Span, steps: int) -> list[float]:
    """`steps` strengths at equal distances, both ends included; UsageError when steps is below 2."""
    check_steps(steps)
    inner = (span.first + (span.last - span.first) * step / (steps - 1) for step in range(steps - 1))
    return [*inner, span.last]


def parse_strength(text: str) -> float | Span:
    """`3` or `-2.5` → the number; `-3:3` → the Span.

    UsageError for anything else and for a range with equal ends; `check_edits`, which knows the
    direction, checks that numbers are finite.
    """
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return float(first)
        span = Span(float(first), float(last))
    except ValueError:
        raise UsageError(
            f"strength {text[:60]!r}: expected a number such as 3, or a range such as -3:3"
        ) from None
    if span.first == span.last:
        raise UsageError(f"strength {text[:60]!r}: expected a range with different ends")
    return span


def check_edits(names: Sequence[str], values: Sequence[float | Span]) -> None:
    """UsageError as by `check_requests`, for ranges, too."""
    check_requests(names, [value.first if isinstance(value, Span) else value for value in values])
    check_requests(names, [value.last if isinstance(value, Span) else value for value in values])


def make_edits(
    directions: Mapping[str, Direction],
    names: Sequence[str],
    values: Sequence[float | Span],
    where: Path | str,
) -> list[Move | Sweep]:
    """Pair names with strengths and ranges, in order.

    Raises UsageError as `check_edits` does, and for a name that is not in
    `directions` (the error lists those that are; `where` is the file or the model they came from).
    """
    check_edits(names, values)
    found = [find_direction(directions, name, where) for name in names]
    return [
        Sweep(direction, value) if isinstance(value, Span) else Move(direction, value)
        for direction, value in zip(found, values, strict=True)
    ]


def sweeps_of(edits: Sequence[Move | Sweep]) -> list[Sweep]:
    """The edits over a range, each of which is a separate row."""
    return [edit for edit in edits if isinstance(edit, Sweep)]


def swept(
    code: Code, edits: Sequence[Move | Sweep], sweep: Sweep, steps: int, num_latents: int
) -> Iterator[Code]:
    """The code along `sweep`, one of `edits`; single strengths apply throughout, other ranges not at all.

    Raises UsageError as `edit_code` does.
    """
    held = [edit for edit in edits if isinstance(edit, Move)]
    for strength in sweep.strengths(steps):
        yield edit_code(code, [*held, Move(sweep.direction, strength)], num_latents)
