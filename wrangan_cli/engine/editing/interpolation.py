"""The way from one code to another in a straight line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.codes import PREFIXES, Code, as_w_plus, render
from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.model_folder import Model

# Each image has its own weights: what is drawn at once is limited by memory.
_BATCH = 8


def interpolate_codes(first: Code, second: Code, steps: int, num_latents: int) -> list[Code]:
    """`steps` codes at equal distances from `first` to `second`, both ends included.

    w and all offsets (of weights, noise maps, parameters) are interpolated linearly; an offset
    that one side lacks counts as zero there. w stays in W when both are in W, otherwise all
    are in W+ (num_latents rows).
    Raises UsageError when steps is below 2.
    """
    check_steps(steps)
    w_a, w_b = first.w, second.w
    if w_a.ndim != w_b.ndim:
        w_a, w_b = as_w_plus(w_a, num_latents), as_w_plus(w_b, num_latents)
    info: dict[str, Any] = {key: first.info[key] for key in ("model", "model_sha256") if key in first.info}
    codes = []
    for t in torch.linspace(0, 1, steps, dtype=torch.float64).tolist():
        codes.append(
            Code(
                w=torch.lerp(w_a, w_b, t),
                **{g: _between(getattr(first, g), getattr(second, g), t) for g in PREFIXES.values()},
                info={**info, "interpolation": t},
            )
        )
    return codes


def check_steps(steps: int) -> None:
    """UsageError when there are not even the two ends."""
    if steps < 2:
        raise UsageError(f"steps {steps}: expected 2 or more (both ends count)")


def draw_way(model: Model, first: Code, second: Code, steps: int) -> Tensor:
    """The images of `interpolate_codes`: (steps, 3, R, R) float32 on the CPU, not clipped."""
    codes = interpolate_codes(first, second, steps, model.generator.config.num_latents)
    parts = [codes[start : start + _BATCH] for start in range(0, steps, _BATCH)]
    return torch.cat([render(model, part).cpu() for part in parts])


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> dict[str, Tensor]:
    result = {}
    for name in [*a, *(name for name in b if name not in a)]:
        some = (a[name] if name in a else b[name]).float()
        start = a[name].float() if name in a else torch.zeros_like(some)
        end = b[name].float() if name in b else torch.zeros_like(some)
        result[name] = torch.lerp(start, end, t)
    return result
