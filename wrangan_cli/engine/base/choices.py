"""Choices of options: the sets that several modules share, and the validation of settings.

Imports nothing slow, since the command line is built from it.
"""

import dataclasses
import types
import typing
from typing import Any, Literal

Perceptual = Literal["lpips-vgg", "lpips-alex", "st-lpips-vgg", "st-lpips-alex"]
"""Perceptual distances (models/perceptual.py)."""
ResizeFilter = Literal["box", "bilinear", "bicubic", "lanczos"]
"""Filters for reducing images."""
EncoderKind = Literal["w", "e4e", "restyle", "hyperstyle"]
Backbone = Literal["ir-se", "resnet", "efficientnet-lite0"]
"""Backbones of encoders."""
WBackbone = Literal["ir-se", "efficientnet-lite0"]
"""Backbones of encoders into W."""
Heads = Literal["pyramid", "single", "pooled"]
"""Arrangements of the heads of encoders into W+ (models/encoders/styles.py)."""
SeparateHead = Literal["separable", "linear"]
"""Forms of a hypernetwork's separate heads (models/encoders/hypernet.py)."""
StdForm = Literal["raw", "softplus", "log"]
"""Parametrizations of σ in training (models/randomized.py)."""
Precision = Literal["float32", "bf16", "fp16"]
LatentSpace = Literal["w", "z"]
LatentFormat = Literal["npz", "npy", "pt"]


def choices_in(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal, and None for `Literal[…] | None`; () for any other annotation."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return ()
    literals = [part for part in typing.get_args(annotation) if part is not types.NoneType]
    found = choices_in(literals[0]) if len(literals) == 1 else ()
    return (*found, None) if found else ()


def check_choices(settings: Any) -> None:
    """ValueError if a field declared as a Literal has a value that is not among its choices."""
    for field in dataclasses.fields(settings):
        allowed, value = choices_in(field.type), getattr(settings, field.name)
        if allowed and value not in allowed:
            names = ", ".join(choice for choice in allowed if choice)
            raise ValueError(f"{field.name} {value!r}: expected one of {names}")
