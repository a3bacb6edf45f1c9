"""Codes in files, and the images rendered from them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, overload

import torch
from PIL import Image
from torch import Tensor

from wrangan_cli.api.models import ModelLike, model_of
from wrangan_cli.api.pictures import Progress
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.data.images import check_side, to_pillow
from wrangan_cli.engine.editing.directions import (
    Direction,
    Move,
    check_fit,
    edit_code,
    find_direction,
    load_directions,
)
from wrangan_cli.engine.editing.interpolation import count_images, interpolate_codes, render_way
from wrangan_cli.engine.models import codes as engine
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model

CodeLike = Code | str | Path
"""A code, or its `.st` file."""
C = TypeVar("C", bound=CodeLike)
ImageOutput = Literal["image", "tensor"]
Output = Literal[ImageOutput, "code"]

_log = logging.getLogger("wrangan")


def load_code(path: str | Path, model: ModelLike | None = None) -> Code:
    """Read a `.st` file; with `model`, check that the code was made for it.

    Its main fields: `code.w`, float32 (512,) in W or (rows, 512) in W+, `code.epsilon`, the offsets of the
    weights in units of σ, by the weight's name, and `code.info`, how it was made. Nothing in the file is
    executed. Raises WranganError: not readable, not a code, not finite, made for another model.
    """
    return engine.load_code(Path(path), None if model is None else model_of(model))


def save_code(code: Code, path: str | Path) -> None:
    """Write a code as a `.st` file (safetensors), atomically: w in float32, all offsets in float16.

    Creates missing folders and replaces an existing file. Raises WranganError for values that are not finite,
    and if the file cannot be written.
    """
    engine.save_code(Path(path), code)


@overload
def render(
    codes: CodeLike,
    model: ModelLike | None = None,
    *,
    side: int | None = None,
    output: Literal["image"] = "image",
    progress: Progress | None = None,
) -> Image.Image: ...
@overload
def render(
    codes: list[C] | tuple[C, ...],
    model: ModelLike | None = None,
    *,
    side: int | None = None,
    output: Literal["image"] = "image",
    progress: Progress | None = None,
) -> list[Image.Image]: ...
@overload
def render(
    codes: CodeLike | list[C] | tuple[C, ...],
    model: ModelLike | None = None,
    *,
    side: int | None = None,
    output: Literal["tensor"],
    clip: bool = True,
    progress: Progress | None = None,
) -> Tensor: ...
def render(
    codes: Any,
    model: ModelLike | None = None,
    *,
    side: int | None = None,
    output: ImageOutput = "image",
    clip: bool = True,
    progress: Progress | None = None,
) -> Image.Image | list[Image.Image] | Tensor:
    """Render the image of a code, or the images of a list of codes (or of `.st` files).

    model: None: the one with which the codes were made. side: reduce images by area averaging to this side
    in px; None: the model's. output: `"image"`, 8-bit RGB Pillow images; `"tensor"`, float32 on the CPU in
    [-1, 1], (3, R, R) for one code and (B, 3, R, R) for a list. Gradients flow from the tensor to w and to
    the offsets of the codes if these require gradients; otherwise it has no graph. clip: False: do not clip
    the tensor to [-1, 1], since clipped values have no gradient. progress: called with the number of images
    rendered, and the total.

    Raises WranganError for codes that cannot be read, were made for another model or are not finite.
    """
    _check_output(output, ImageOutput)
    if not clip and output != "tensor":
        raise UsageError('clip=False: images are always clipped; give output="tensor"')
    loaded, several = loaded_codes(codes)
    return _in_form(_rendered(model_of(model, loaded), loaded, side, progress), several, output, clip)


@overload
def edit(
    codes: CodeLike,
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["image"] = "image",
) -> Image.Image: ...
@overload
def edit(
    codes: list[C] | tuple[C, ...],
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["image"] = "image",
) -> list[Image.Image]: ...
@overload
def edit(
    codes: CodeLike | list[C] | tuple[C, ...],
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["tensor"],
) -> Tensor: ...
@overload
def edit(
    codes: CodeLike,
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["code"],
) -> Code: ...
@overload
def edit(
    codes: list[C] | tuple[C, ...],
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["code"],
) -> list[Code]: ...
def edit(
    codes: Any,
    direction: str | Direction | Mapping[str, float],
    strength: float | None = None,
    *,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Output = "image",
) -> Image.Image | list[Image.Image] | Tensor | Code | list[Code]:
    """Render the image of a code (or of each code of a list) moved along directions.

    `edit(code, "smile", 3)`, or several at once: `edit(code, {"smile": 3, "age": -2})`. Strengths are in
    standard deviations of w along the direction, so that 3 means the same on every model; beyond the
    direction's range the log `wrangan` warns. direction: a name of `directions(model)`, a `Direction`, or a
    dict of strengths by either.

    model, side, and output as for `render`; also `"code"`: the moved codes, to save, edit further or
    interpolate. The offsets of the weights are kept. Raises WranganError for names that the model does
    not have, strengths that are not finite, and as `render` does.
    """
    _check_output(output, Output)
    loaded, several = loaded_codes(codes)
    resolved = model_of(model, loaded)
    moves = _moves(resolved, direction, strength)
    moved = [edit_code(code, moves, resolved.generator.config.num_latents) for code in loaded]
    if output == "code":
        return moved if several else moved[0]
    return _in_form(_rendered(resolved, moved, side, None), several, output)


@overload
def interpolate(
    codes: Sequence[CodeLike],
    steps: int = 8,
    *,
    smooth: bool = False,
    loop: bool = False,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["image"] = "image",
    progress: Progress | None = None,
) -> list[Image.Image]: ...
@overload
def interpolate(
    codes: Sequence[CodeLike],
    steps: int = 8,
    *,
    smooth: bool = False,
    loop: bool = False,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["tensor"],
    progress: Progress | None = None,
) -> Tensor: ...
@overload
def interpolate(
    codes: Sequence[CodeLike],
    steps: int = 8,
    *,
    smooth: bool = False,
    loop: bool = False,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Literal["code"],
    progress: Progress | None = None,
) -> list[Code]: ...
def interpolate(
    codes: Sequence[CodeLike],
    steps: int = 8,
    *,
    smooth: bool = False,
    loop: bool = False,
    model: ModelLike | None = None,
    side: int | None = None,
    output: Output = "image",
    progress: Progress | None = None,
) -> list[Image.Image] | Tensor | list[Code]:
    """Render the images from one code to the next: w and the offsets of the weights change in equal steps.

    codes: two or more. steps: number of images from one code to the next, both included; inner codes are
    rendered only once. smooth: follow a spline through all codes instead of straight lines.
    loop: continue from the last code to the first, which is not rendered again.
    model, side, output and progress as for `edit` and `render`; a tensor is (N, 3, R, R).

    Raises WranganError for fewer than two codes or steps, and as `render` does.
    """
    _check_output(output, Output)
    loaded, _ = loaded_codes(codes if isinstance(codes, Code | str | Path) else list(codes))
    resolved = model_of(model, loaded)
    if output == "code":
        return list(interpolate_codes(loaded, steps, resolved.generator.config.num_latents, smooth, loop))
    check_side(side)
    count = count_images(len(loaded), steps, loop)
    images = render_way(resolved, loaded, steps, smooth, loop, side, _on_image(progress, count))
    return _stacked(images) if output == "tensor" else _pictures(images)


def loaded_codes(codes: CodeLike | Sequence[CodeLike]) -> tuple[list[Code], bool]:
    """The codes as a list, and whether a list was given."""
    several = not isinstance(codes, Code | str | Path)
    given: list[Any] = list(codes) if isinstance(codes, list | tuple) else [codes]
    if not given:
        raise UsageError("no codes given")
    for code in given:
        if not isinstance(code, Code | str | Path):
            raise UsageError(f"{type(code).__name__}: expected a code or its path")
    return [code if isinstance(code, Code) else load_code(code) for code in given], several


def _moves(
    model: Model, direction: str | Direction | Mapping[str, float], strength: float | None
) -> list[Move]:
    """The requested moves, with a warning for strengths outside a direction's range."""
    if isinstance(direction, Mapping):
        if not direction:
            raise UsageError(
                "no direction: the dict of strengths is empty; expected one such as {'smile': 3}"
            )
        if strength is not None:
            raise UsageError("several directions: give a dict of strengths by name, and no separate strength")
        requested: list[tuple[str | Direction, float]] = list(direction.items())
    elif strength is None and isinstance(direction, str | Direction):
        raise UsageError("no strength: give one in standard deviations, such as edit(code, 'smile', 3)")
    else:
        requested = [(direction, strength)]  # type: ignore[list-item]  # Move checks the strength
    known = load_directions(model)
    moves = []
    for which, size in requested:
        if isinstance(which, Direction):
            check_fit(Path("direction"), which, model)
            move = Move(which, size)
        elif isinstance(which, str):
            move = Move(find_direction(known, which, model.name), size)
        else:
            raise UsageError(
                f"direction {which!r}: expected a name or a Direction; for several, a dict such as "
                "{'smile': 2, 'age': -1}"
            )
        if move.outside_range:
            low, high = move.direction.range
            _log.warning("%s is outside the sensible range %g…%g", move.label, low, high)
        moves.append(move)
    return moves


def _check_output(output: str, choices: Any) -> None:
    """UsageError unless `output` is a value of the Literal `choices`."""
    if output not in get_args(choices):
        raise UsageError(f"output {output!r}: expected one of {', '.join(get_args(choices))}")


def _rendered(
    model: Model, codes: Sequence[Code], side: int | None, progress: Progress | None
) -> Iterator[Tensor]:
    check_side(side)
    return engine.render_each(model, codes, side, _on_image(progress, len(codes)))


def _on_image(progress: Progress | None, count: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(done, count)


def _in_form(
    images: Iterator[Tensor], several: bool, output: str, clip: bool = True
) -> Image.Image | list[Image.Image] | Tensor:
    """Images (3, R, R) in the requested form."""
    if output == "tensor":
        return _stacked(images, clip) if several else _stacked(images, clip)[0]
    pictures = _pictures(images)
    return pictures if several else pictures[0]


def _stacked(images: Iterator[Tensor], clip: bool = True) -> Tensor:
    return torch.stack([image.clamp(-1, 1) if clip else image for image in images])


@torch.no_grad()
def _pictures(images: Iterator[Tensor]) -> list[Image.Image]:
    return [to_pillow(image) for image in images]
