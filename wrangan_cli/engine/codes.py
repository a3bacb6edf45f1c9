"""Codes: what inversion yields for one image, and how images are drawn from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.errors import FileError, WranganError
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.randomized import randomized_layers
from wrangan_cli.engine.tensorfile import read_tensors, write_tensors

SUFFIX = ".st"


@dataclass(frozen=True)
class Code:
    """One inverted image.

    w: float32 (style_dim,) in W or (num_latents, style_dim) in W+. epsilon, delta: by
    layer name, (O, I, 3, 3) float16 or float32, offsets of the weights in units of σ
    and in plain units. info: JSON values (model, model_sha256, method, settings, seed,
    steps, distortion, source …).
    """

    w: Tensor
    epsilon: dict[str, Tensor] = field(default_factory=dict)
    delta: dict[str, Tensor] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def save_code(path: Path, code: Code) -> None:
    """Write a `.st` file atomically: w in float32, offsets in float16."""
    tensors = {"w": code.w.float()}
    tensors |= {f"epsilon.{name}": value.half() for name, value in code.epsilon.items()}
    tensors |= {f"delta.{name}": value.half() for name, value in code.delta.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WranganError(f"{path}: not written, {name} has values that are not finite")
    write_tensors(path, tensors, {"kind": "code", **code.info})


def load_code(path: Path, model: Model | None = None) -> Code:
    """Read a code; with `model`, check that it was made for that model and fits it.

    Raises FileError: unreadable, not a code, not finite, or of another model.
    """
    tensors, info = read_tensors(path)
    if info.get("kind") != "code" or "w" not in tensors:
        raise FileError(path, "not a code (made by `wrangan invert`)")
    for name, kind in (("settings", dict), ("edits", list)):
        if not isinstance(info.get(name, kind()), kind):
            raise FileError(path, f"its record is broken: {name} is no {kind.__name__}")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(path, f"{name} has values that are not finite")
    code = Code(
        w=tensors["w"].float(),
        epsilon=_group(tensors, "epsilon."),
        delta=_group(tensors, "delta."),
        info=info,
    )
    if model is not None:
        _check_fit(path, code, model)
    return code


def find_codes(path: Path) -> list[Path]:
    """The codes of a folder, by name, or the one file; FileError if there are none."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix == SUFFIX and not p.name.startswith("."))
    if not found:
        raise FileError(path, f"no codes ({SUFFIX}) in it")
    return found


def read_info(path: Path) -> dict[str, Any]:
    """The metadata of a code alone."""
    return load_code(path).info


def render(model: Model, codes: Sequence[Code]) -> Tensor:
    """The images of `codes`: (B, 3, R, R) float32 on the model's device, not clipped.

    Codes that lack an offset that others have count as zero there.
    """
    device, config = model.device, model.generator.config
    w = torch.stack([as_w_plus(code.w, config.num_latents) for code in codes]).to(device)
    with torch.no_grad():
        return model.generator.synthesis(
            w,
            epsilon=_stack([code.epsilon for code in codes], device),
            delta=_stack([code.delta for code in codes], device),
        )


def as_w_plus(w: Tensor, num_latents: int) -> Tensor:
    """(style_dim,) or (num_latents, style_dim) → (num_latents, style_dim)."""
    return w[None].expand(num_latents, -1) if w.ndim == 1 else w


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _stack(offsets: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    shapes = {name: value.shape for group in offsets for name, value in group.items()}
    return {
        name: torch.stack([g[name].float() if name in g else torch.zeros(shape) for g in offsets]).to(device)
        for name, shape in shapes.items()
    }


def _check_fit(path: Path, code: Code, model: Model) -> None:
    made_for, config = code.info.get("model_sha256"), model.generator.config
    if made_for != model.sha256:
        name = code.info.get("model", "unknown")
        raise FileError(
            path,
            f"made for another model ({name}, sha256 {str(made_for)[:12]}…), "
            f"not for {model.name} ({model.sha256[:12]}…)",
        )
    if code.w.shape not in ((config.style_dim,), (config.num_latents, config.style_dim)):
        raise FileError(path, f"w has shape {tuple(code.w.shape)}, which {model.name} cannot draw")
    random, all_layers = randomized_layers(model.generator), model.generator.styled_convs()
    for kind, offsets in (("epsilon", code.epsilon), ("delta", code.delta)):
        for name, value in offsets.items():
            known = name in (random if kind == "epsilon" else all_layers)
            if not known or value.shape != all_layers[name].conv.weight.shape[1:]:
                raise FileError(path, f"{kind}.{name} does not fit {model.name}")
