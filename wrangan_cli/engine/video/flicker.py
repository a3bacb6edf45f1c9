"""Flicker: how much more neighbouring frames of the output differ than those of the input.

flicker = mean over t of MSE(y(t+1), y(t)) - mean over t of MSE(x(t+1), x(t)), with x the aligned frames
of the clip and y those rendered from the codes, both clipped to [-1, 1], at the side of the codes, and t
over the frames that are inverted. In squared units of [-1, 1] (four times those of [0, 1]), per frame, not
per second. Above 0 the output changes more than the clip; below 0 it changes less, since it does not follow
some detail (grain, hair). 0 is best.
"""

from collections.abc import Sequence

from torch import Tensor

NAME = "flicker"


def change(before: Tensor, after: Tensor) -> float:
    """Mean squared difference of two images (3, S, S) in [-1, 1]."""
    return (before.clamp(-1, 1) - after.clamp(-1, 1)).square().mean().item()


def flicker(inputs: Sequence[float], outputs: Sequence[float]) -> dict[str, float]:
    """`input` and `output`, the mean changes, and `flicker`, their difference; 0 for fewer than two
    frames."""
    mean = [sum(values) / len(values) if values else 0.0 for values in (inputs, outputs)]
    return {"input": mean[0], "output": mean[1], NAME: mean[1] - mean[0]}
