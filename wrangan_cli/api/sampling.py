"""Codes of random images."""

import operator
from collections.abc import Iterable

from wrangan_cli.api.models import ModelLike, model_of
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.codes import Code, random_code
from wrangan_cli.engine.models.seeds import check_sampling


def random_codes(
    model: ModelLike = DEFAULT_MODEL,
    seeds: Iterable[int] = (0,),
    *,
    truncation: float = 1.0,
    epsilon: float = 0.0,
) -> list[Code]:
    """The codes of random images, one per seed: `render` gives the images of `wrangan generate`.

    seeds: 64-bit numbers, 0 or more, such as `range(16)`; the code of a seed is the same in every call.
    truncation: w = mean + truncation · (w − mean): 1 leaves w unchanged, 0 gives the mean image. epsilon:
    scale of ε ~ N(0, 1), sampled from the same seed; 0: the mean weights.

    Each w is float32 (style_dim,), in W. Raises WranganError for values that are out of range, and for ε with
    a model without random weights.
    """
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise UsageError(f"seeds {seeds!r}: expected a list of numbers, such as [0] or range(16)")
    check_sampling(truncation, epsilon)
    numbers = [_number(seed) for seed in seeds]
    resolved = model_of(model)
    return [random_code(resolved, seed, truncation, epsilon) for seed in numbers]


def _number(seed: int) -> int:
    """The seed as a Python integer, which a code can record."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise UsageError(f"seed {seed!r}: expected a whole number from 0 to 2^64 - 1")
    return number
