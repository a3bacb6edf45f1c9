"""Latent editing consistency: invert, edit, invert again, undo (Tov et al. 2021, e4e, section 5).

Protocol: a code is moved along a direction by ± `strength` standard deviations and rendered; this
image is clipped and inverted with the settings in the code's record; the new code
is moved back. If inversion stays in the editable part of the latent space, this returns to
the original code:

- `lec`: the distance between the two codes in w: ‖·‖ for each row of W+ (in W: of the single row), root
  mean square over the rows, in units of the size of W (root of the summed variance of w);
- `lec-image`: mean squared error on [-1, 1] between the images of the two codes, each rendered with its
  offsets of the weights (for methods that tune weights, w alone is not enough).

Both are means over the two signs. The published code measures ‖·‖ over all of W+ without units, for one
sign, and drops codes that are not finite and values outside the 1st…99th percentile. Here nothing is
dropped: failures are reported, and everything else counts. Lower is better.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from wrangan_cli.engine.base.errors import UsageError, WranganError, cause_of
from wrangan_cli.engine.editing.directions import Direction, Move, edit_code
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import SETTINGS, applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.codes import Code, as_w_plus, render
from wrangan_cli.engine.models.folder import Model

STRENGTH = 3.0
PROTOCOL = "a code edited by ± {strength:g} std along {direction}, inverted again as it was, and moved back"
NAMES = {
    "lec": "distance in w, root mean square over its rows, in units of the size of W",
    "lec-image": "MSE on [-1, 1] of the images of the two codes",
}
"""The two numbers and their descriptions."""


@dataclass(frozen=True)
class Consistency:
    """The distance of a code from where it started, by the names in NAMES."""

    values: dict[str, float]


def editing_consistency(
    inverter: Inverter, codes: Sequence[Code], direction: Direction, strength: float = STRENGTH
) -> list[Consistency | WranganError]:
    """Measure codes made by `inverter`. All are inverted together, so pass as many as fit into memory.

    A code whose second inversion diverges gives a WranganError.
    """
    ends = [_there_and_back(inverter, codes, Move(direction, sign * strength)) for sign in (1, -1)]
    result: list[Consistency | WranganError] = []
    for both in zip(*ends, strict=True):
        failed = next((end for end in both if isinstance(end, WranganError)), None)
        values = [end for end in both if not isinstance(end, WranganError)]
        result.append(
            failed or Consistency({n: sum(value[n] for value in values) / len(values) for n in NAMES})
        )
    return result


def codes_consistency(
    model: Model,
    codes: Sequence[Code],
    direction: Direction,
    strength: float = STRENGTH,
    batch: int = 8,
    load: Callable[[Model, InversionSettings], Inverter] = Inverter.load,
) -> Iterator[Consistency | WranganError]:
    """`editing_consistency` of codes in order, each inverted with the settings in its record."""
    inverters: dict[InversionSettings, Inverter] = {}
    waiting: list[Code | WranganError] = []
    group: list[Code] = []
    held: InversionSettings | None = None

    def finish() -> Iterator[Consistency | WranganError]:
        found: Iterator[Consistency | WranganError] = iter(())
        if group and held is not None:
            if held not in inverters:
                inverters[held] = load(model, held)
            found = iter(editing_consistency(inverters[held], group, direction, strength))
        yield from (entry if isinstance(entry, WranganError) else next(found) for entry in waiting)
        waiting.clear()
        group.clear()

    for code in codes:
        settings = stored_settings(code)
        if not isinstance(settings, WranganError):
            if group and (settings != held or len(group) >= batch):
                yield from finish()
            held = settings
            group.append(code)
        waiting.append(settings if isinstance(settings, WranganError) else code)
    yield from finish()


def stored_settings(code: Code) -> InversionSettings | WranganError:
    """The settings with which a code was made, including its side; an error if its record lacks some."""
    there = code.info.get("settings", {})
    if not there or code.info.get("edits"):
        return WranganError("not made by `wrangan invert`: cannot be inverted again in the same way")
    side = {"size": code.info["side"]} if "side" in code.info else {}
    try:
        method = there.get("method", "wrangan")
        values = applicable(method, {**there, **side})  # earlier versions recorded those of all methods
        return inversion_settings(**{**SETTINGS[method].FALLBACK, "method": method, **values})
    except UsageError as error:
        return WranganError(f"its record has bad settings ({cause_of(error)})")


def _there_and_back(
    inverter: Inverter, codes: Sequence[Code], move: Move
) -> list[dict[str, float] | WranganError]:
    model = inverter.model
    rows = model.generator.config.num_latents
    back = dataclasses.replace(move, strength=-move.strength)
    side = inverter.settings.size or None
    edited = render(model, [edit_code(code, [move], rows) for code in codes], side).clamp(-1, 1)
    again = inverter.invert(edited)
    ends: list[dict[str, float] | WranganError] = []
    for code, other in zip(codes, again, strict=True):
        if isinstance(other, WranganError):
            ends.append(other)
            continue
        undone = edit_code(other, [back], rows)
        gap = (as_w_plus(code.w, rows) - as_w_plus(undone.w, rows)).double()
        images = torch.cat([render(model, [one], side) for one in (code, undone)]).clamp(-1, 1).double()
        ends.append(
            {
                "lec": (gap.square().sum(dim=1).mean().sqrt() / model.w_std).item(),
                "lec-image": (images[0] - images[1]).square().mean().item(),
            }
        )
    return ends
