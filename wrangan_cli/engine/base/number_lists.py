"""Lists of whole numbers on the command line: `0-3,7`."""

from wrangan_cli.engine.base.errors import UsageError


def parse_numbers(text: str, name: str, least: int, most: int, limit: int, example: str) -> list[int]:
    """`0-3,7` → [0, 1, 2, 3, 7], in the given order; limits are checked before ranges are expanded.

    name, example: for the message. UsageError for anything else, for numbers outside
    least…most, and for more than `limit` numbers.
    """
    ranges: list[range] = []
    try:
        for part in text.split(","):
            first, _, last = part.strip().partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
            if ranges[-1].start >= ranges[-1].stop:
                raise ValueError(part)
    except ValueError:
        raise UsageError(f"{name} {text[:60]!r}: expected {example}") from None
    if any(some.start < least or some.stop - 1 > most for some in ranges):
        raise UsageError(f"{name} {text[:60]!r}: expected {example}")
    # Not len(), which fails for ranges beyond 64 bits.
    if (count := sum(some.stop - some.start for some in ranges)) > limit:
        raise UsageError(f"{name} {text[:60]!r}: {count} numbers, at most {limit} at a time")
    return [number for some in ranges for number in some]
