"""Interpolation through codes: straight from one to the next, or along a spline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.codes import PREFIXES, Code, as_w_plus, render_each
from wrangan_cli.engine.models.folder import Model


def interpolate_codes(
    codes: Sequence[Code], steps: int, num_latents: int, smooth: bool = False, loop: bool = False
) -> Iterator[Code]:
    """The codes interpolated through `codes`: `steps` from each to the next, both ends included.

    w and all offsets (of weights, noise maps, parameters) are interpolated alike; an offset
    that a code lacks counts as zero. The results are in W if all codes are, otherwise
    in W+ (num_latents rows). A code between two stretches is yielded once, so there
    are `count_images` in all. They are made one at a time.

    smooth: follow a uniform Catmull-Rom spline (Catmull and Rom, 1974) through all codes,
    without corners, extended straight beyond its ends; through two codes it is
    the straight line. loop: continue from the last code to the first, which is not repeated.
    Raises UsageError for fewer than 2 codes, or fewer than 2 steps.
    """
    check_steps(steps)
    check_codes(len(codes))
    return _along(_Way(codes, num_latents), steps, smooth, loop)


def code_between(codes: Sequence[Code], position: float, num_latents: int) -> Code:
    """One code on the straight path through `codes`, at `position`, from 0 (the first code) to
    len(codes) - 1 (the last). UsageError for fewer than 2 codes, or a position outside of that."""
    check_codes(len(codes))
    if not 0 <= position <= len(codes) - 1:
        raise UsageError(f"position {position}: expected 0 to {len(codes) - 1}")
    stretch = int(position)
    way = _Way(codes, num_latents)
    return way.code(position, weights_at(stretch, position - stretch, len(codes), smooth=False, loop=False))


def count_images(codes: int, steps: int, loop: bool = False) -> int:
    """The number of codes that `interpolate_codes` yields."""
    return codes * (steps - 1) if loop else (codes - 1) * (steps - 1) + 1


def check_steps(steps: int) -> None:
    """UsageError for fewer steps than the two ends."""
    if steps < 2:
        raise UsageError(f"steps {steps}: expected 2 or more (both ends count)")


def check_codes(count: int) -> None:
    """UsageError for fewer than two codes."""
    if count < 2:
        raise UsageError(f"{count} code{'s' if count != 1 else ''}: expected 2 or more to interpolate")


def render_way(
    model: Model,
    codes: Sequence[Code],
    steps: int,
    smooth: bool = False,
    loop: bool = False,
    side: int | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """The images of `interpolate_codes`, rendered by `render_each`: (3, R, R), a few in memory at a time."""
    way = interpolate_codes(codes, steps, model.generator.config.num_latents, smooth, loop)
    return render_each(model, way, side, on_image)


class _Way:
    """The codes of which interpolated codes are mixed."""

    def __init__(self, codes: Sequence[Code], num_latents: int) -> None:
        self.points = [code.w for code in codes]
        if len({w.ndim for w in self.points}) > 1:
            self.points = [as_w_plus(w, num_latents) for w in self.points]
        self._groups = {field: [getattr(code, field) for code in codes] for field in PREFIXES.values()}
        first = codes[0].info
        self._info: dict[str, Any] = {k: first[k] for k in ("model", "model_sha256") if k in first}

    def code(self, position: float, weights: Mapping[int, float]) -> Code:
        offsets = {field: _mixed(maps, weights) for field, maps in self._groups.items()}
        w = _sum([(weight, self.points[key]) for key, weight in weights.items()])
        return Code(w=w, **offsets, info={**self._info, "interpolation": position})


def _along(way: _Way, steps: int, smooth: bool, loop: bool) -> Iterator[Code]:
    count = len(way.points)
    for index in range(count_images(count, steps, loop)):
        stretch, step = divmod(index, steps - 1)
        t = step / (steps - 1)
        yield way.code(stretch + t, weights_at(stretch, t, count, smooth, loop))


def weights_at(stretch: int, t: float, count: int, smooth: bool, loop: bool) -> dict[int, float]:
    """The weights of `count` codes at the point t in [0, 1) of a stretch: index of the code → weight.

    The weights add up to 1; zeros are left out. stretch: from 0; the end of an open path counts as one
    more stretch, at t = 0.
    """
    if not smooth:
        parts = {0: 1 - t, 1: t}
    else:
        parts = {
            -1: (-(t**3) + 2 * t**2 - t) / 2,
            0: (3 * t**3 - 5 * t**2 + 2) / 2,
            1: (-3 * t**3 + 4 * t**2 + t) / 2,
            2: (t**3 - t**2) / 2,
        }
    weights: dict[int, float] = {}

    def add(key: int, weight: float) -> None:
        if weight:
            weights[key] = weights.get(key, 0.0) + weight

    for offset, part in parts.items():
        key = stretch + offset
        if loop:
            add(key % count, part)
        elif 0 <= key < count:
            add(key, part)
        else:  # extended straight beyond an end: p₋₁ = 2·p₀ - p₁
            end, inner = (0, 1) if key < 0 else (count - 1, count - 2)
            add(end, 2 * part)
            add(inner, -part)
    return weights


def _mixed(maps: Sequence[Mapping[str, Tensor]], weights: Mapping[int, float]) -> dict[str, Tensor]:
    result = {}
    for name in dict.fromkeys(name for offsets in maps for name in offsets):
        terms = [(weight, maps[key][name]) for key, weight in weights.items() if name in maps[key]]
        some = next(offsets[name] for offsets in maps if name in offsets)
        result[name] = _sum(terms) if terms else torch.zeros_like(some, dtype=torch.float32)
    return result


def _sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    (weight, value), *others = terms
    total = value.float() * weight
    for weight, value in others:
        total += value.float() * weight
    return total
