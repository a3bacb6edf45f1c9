"""Codes, the results of inverting one image each, and rendering images from them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.data.image_kinds import HEAD, kind_of
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.rendering import synthesize
from wrangan_cli.engine.models.seeds import epsilon_of_seed, w_of_seed
from wrangan_cli.engine.models.shared_offsets import with_shared

SUFFIX = ".st"
IMPORTED = "import"
"""The method in the record of a code that was imported from another tool's latent."""
PREFIXES = {"epsilon": "epsilon", "delta": "delta", "noise": "noise", "parameter": "parameters"}
"""Prefix of a tensor's name in the file → the field of Code that holds it."""

# Each image has separate weights, so memory limits how many are rendered together.
_BATCH = 8


@dataclass(eq=False)
class Code:
    """One inverted image. Frozen: `dataclasses.replace(code, w=…)` makes another one.

    w: float32 (style_dim,) in W or (num_latents, style_dim) in W+. All other tensors are float16 or
    float32 offsets to the model; missing ones are zero. epsilon, delta: by the
    weight's name, (O, I, k, k), in units of σ and absolute, respectively. noise: offsets to noise maps, by
    number of the noise input ("0", "1", …), (side, side). parameters: offsets to any parameter of the
    synthesis network, by name in the state dict, in the parameter's shape. info: JSON
    values (model, model_sha256, method, settings, seed, steps, distortion, source …).

    NumPy arrays and floating-point tensors of other types are converted; tensors of these types are not
    copied. Raises UsageError for anything else, and for a w with another number of axes.
    """

    w: Tensor
    epsilon: dict[str, Tensor] = field(default_factory=dict)
    delta: dict[str, Tensor] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = vars(self)
        values["w"] = _real("w", self.w).float()
        if self.w.ndim not in (1, 2) or (self.w.ndim == 2 and len(self.w) == 1):
            expected = "(style_dim,) in W or (rows, style_dim) in W+"
            first = "; pass w[0]" if self.w.ndim > 1 and len(self.w) == 1 else ""
            raise UsageError(f"w has shape {tuple(self.w.shape)}: expected {expected}{first}")
        for group in PREFIXES.values():
            if not isinstance(values[group], Mapping):
                raise UsageError(
                    f"{group}: {type(values[group]).__name__}: expected a dict of tensors by name"
                )
            values[group] = {k: _offset(f"{group}.{k}", v) for k, v in values[group].items()}

    def __setattr__(self, name: str, value: Any) -> None:
        """Each field can be set once. `code.w += 1` works in place in torch, then sets the same tensor."""
        if name not in self.__dataclass_fields__ or vars(self).get(name, value) is not value:
            raise FrozenInstanceError(
                f"a code cannot be changed: make a new one with dataclasses.replace(code, {name}=…)"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """A short form, without whole tensors."""
        made = f"{self.info.get('model', 'unknown')}, {self.info.get('method', 'unknown')}"
        offsets = sum(len(getattr(self, group)) for group in PREFIXES.values())
        return f"Code({made}, w {tuple(self.w.shape)}, {offsets} offsets)"


def save_code(path: Path, code: Code) -> None:
    """Write a `.st` file atomically: w in float32, all offsets in float16."""
    tensors = {name: t if name == "w" else t.half() for name, t in _tensors(code).items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WranganError(f"{path}: not written, {name} has values that are not finite")
    write_tensors(path, tensors, {"kind": "code", **code.info})


def load_code(path: Path, model: Model | None = None) -> Code:
    """Read a code; with `model`, check that it was made for that model and fits it.

    For a frame of a clip, the shared offsets (shared_offsets.py) are added, as if it were an ordinary code.
    Raises FileError: unreadable, not a code, not finite, or made for another model.
    """
    tensors, info = _read(path)
    if info.get("kind") != "code" or "w" not in tensors:
        raise FileError(path, "not a code (made by `wrangan invert`)")
    for name, kind in (("settings", dict), ("edits", list)):
        if not isinstance(info.get(name, kind()), kind):
            raise FileError(path, f"its record is broken: {name} is no {kind.__name__}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(path, f"{name} has values that are not finite")
    tensors, info = with_shared(path, tensors, info)
    groups = {group: _group(tensors, f"{prefix}.") for prefix, group in PREFIXES.items()}
    try:
        code = Code(w=tensors["w"], info=info, **groups)
    except UsageError as error:
        raise FileError(path, str(error)) from error
    if model is not None:
        check_fit(path, code, model)
    return code


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read_tensors`, with an error that says so if the file is an image."""
    try:
        return read_tensors(path)
    except FileError as error:
        kind = None
        if path.is_file():
            with open(path, "rb") as stream:
                kind = kind_of(stream.read(HEAD))
        if kind is None:
            raise
        raise FileError(path, f"an image ({kind}), not a code ({SUFFIX})") from error


def check_finite(path: Path, code: Code) -> None:
    """FileError about `path` for a tensor of the code with values that are not finite."""
    for name, tensor in _tensors(code).items():
        if not tensor.isfinite().all():
            raise FileError(path, f"{name} has values that are not finite")


def holds_code(path: Path, code: Code) -> bool:
    """Whether the file is a code with the same w and the same record."""
    try:
        there = load_code(path)
    except FileError:
        return False
    return there.info == {"kind": "code", **code.info} and torch.equal(there.w, code.w)


def random_code(model: Model, seed: int, truncation: float = 1.0, epsilon: float = 0.0) -> Code:
    """The code of `image_of_seed`, the image that `wrangan generate` renders for a seed."""
    about = {"method": "random", "seed": seed, "truncation": truncation}
    info = {"model": model.name, "model_sha256": model.sha256, **about}
    offsets = {name: value.cpu() for name, value in epsilon_of_seed(model, seed, epsilon).items()}
    return Code(w_of_seed(model, seed, truncation).cpu(), offsets, info=info)


def find_codes(path: Path) -> list[Path]:
    """The codes in a folder, sorted by name, or the single file; FileError if there are none."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix == SUFFIX and not p.name.startswith("."))
    if not found:
        raise FileError(path, f"no codes ({SUFFIX}) in it")
    return found


def read_info(path: Path) -> dict[str, Any]:
    """Only the metadata of a code."""
    return load_code(path).info


def render(model: Model, codes: Sequence[Code], side: int | None = None) -> Tensor:
    """The images of `codes`: (B, 3, R, R) float32 on the model's device, not clipped. side: larger images are
    reduced to it by area averaging. Gradients flow to tensors of the codes that require them.

    An offset that only some of the codes have counts as zero in the others. Codes with offsets of
    `parameters` are rendered one by one, the others together.
    """
    images: dict[int, Tensor] = {}
    together = [index for index, code in enumerate(codes) if not code.parameters]
    alone = [[index] for index, code in enumerate(codes) if code.parameters]
    for part in filter(None, [together, *alone]):
        images |= zip(part, _drawn(model, [codes[index] for index in part], side), strict=True)
    return torch.stack([images[index] for index in range(len(codes))])


def render_each(
    model: Model,
    codes: Iterable[Code],
    side: int | None = None,
    on_image: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """`render` of any number of codes, one image after another: (3, R, R) float32 on the CPU, not clipped.

    Only a few codes and images are in memory at a time. on_image gets the number of images rendered
    so far, starting with 0.
    """
    waiting, done = iter(codes), 0
    if on_image:
        on_image(0)
    while part := list(itertools.islice(waiting, _BATCH)):
        images = render(model, part, side).cpu()
        done += len(part)
        if on_image:
            on_image(done)
        yield from images


def _drawn(model: Model, codes: Sequence[Code], side: int | None) -> Tensor:
    rows, device = model.generator.config.num_latents, model.device
    wanted = any(tensor.requires_grad for code in codes for tensor in _tensors(code).values())
    with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
        w = torch.stack([as_w_plus(code.w.to(device), rows) for code in codes])
        offsets: dict[str, Any] = {
            group: _stack([getattr(code, group) for code in codes], device) for group in PREFIXES.values()
        }
        return synthesize(model.generator, w, **offsets, side=side)


def as_w_plus(w: Tensor, num_latents: int) -> Tensor:
    """(style_dim,) or (num_latents, style_dim) → (num_latents, style_dim)."""
    return w[None].expand(num_latents, -1) if w.ndim == 1 else w


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _tensors(code: Code) -> dict[str, Tensor]:
    """All tensors by their names in the file."""
    groups = [(prefix, getattr(code, group)) for prefix, group in PREFIXES.items()]
    return {"w": code.w, **{f"{prefix}.{k}": v for prefix, group in groups for k, v in group.items()}}


def _real(name: str, values: Any) -> Tensor:
    """A floating-point tensor or array as a tensor; UsageError for anything else."""
    tensor = (
        torch.from_numpy(values) if isinstance(values, np.ndarray) and values.dtype.kind == "f" else values
    )
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        return tensor
    of = f" of {values.dtype}".replace("torch.", "") if isinstance(values, Tensor | np.ndarray) else ""
    raise UsageError(f"{name}: {type(values).__name__}{of}: expected a tensor or an array of floating point")


def _offset(name: str, values: Any) -> Tensor:
    tensor = _real(name, values)
    return tensor if tensor.dtype in (torch.float16, torch.float32) else tensor.float()


def _stack(offsets: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    shapes = {name: value.shape for group in offsets for name, value in group.items()}
    return {
        name: torch.stack(
            [g[name].to(device).float() if name in g else torch.zeros(shape, device=device) for g in offsets]
        )
        for name, shape in shapes.items()
    }


def check_fit(path: Path, code: Code, model: Model) -> None:
    """FileError about `path` unless the code fits the model and was made for it, or names no model."""
    made_for, config = code.info.get("model_sha256"), model.generator.config
    if made_for not in (None, model.sha256):
        name = code.info.get("model", "unknown")
        raise FileError(
            path,
            f"made for another model ({name}, sha256 {str(made_for)[:12]}…), "
            f"not for {model.name} ({model.sha256[:12]}…)",
        )
    shapes = ((config.style_dim,), (config.num_latents, config.style_dim))
    if code.w.shape not in shapes:
        expected = f"expected {shapes[0]} or {shapes[1]}"
        raise FileError(
            path, f"w has shape {tuple(code.w.shape)}, which {model.name} cannot render: {expected}"
        )
    for kind, offsets, weights in (
        ("epsilon", code.epsilon, model.generator.random_weights()),
        ("delta", code.delta, model.generator.weights()),
    ):
        for name, value in offsets.items():
            if name not in weights or value.shape != weights[name].shape:
                raise FileError(path, f"{kind}.{name} does not fit {model.name}")
    inputs = model.generator.noise_inputs()
    for name, value in code.noise.items():
        if name not in inputs or value.shape != inputs[name].map.shape[2:]:
            raise FileError(path, f"noise.{name} does not fit {model.name}")
    own = model.generator.synthesis_parameters() if code.parameters else {}
    for name, value in code.parameters.items():
        if name not in own or value.shape != own[name].shape:
            raise FileError(path, f"parameter.{name} does not fit {model.name}")
