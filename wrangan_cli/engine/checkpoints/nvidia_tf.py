"""NVIDIA's TensorFlow pickles of StyleGAN2 (repositories stylegan2 and stylegan2-ada, 2020).

A tuple (G, D, Gs) of networks; each has `static_kwargs`, `components` and `variables`
(pairs of name and NumPy array).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wrangan_cli.engine.checkpoints.naming import TENSORFLOW
from wrangan_cli.engine.checkpoints.numpy_stand_ins import StoredArray
from wrangan_cli.engine.checkpoints.nvidia_assembly import DiscriminatorRecord, GeneratorRecord, assemble
from wrangan_cli.engine.checkpoints.records import Checkpoint, NotConvertible, brief, taps_of_kernel
from wrangan_cli.engine.checkpoints.stand_ins import TensorFlowNetwork

KIND = "nvidia-tensorflow"
OLDEST_VERSION = 4

# Settings that follow from the tensors' shapes, or that only matter in training.
_HARMLESS = {
    "conditioning", "dlatent_avg_beta", "dlatent_size", "dtype", "fmap_base", "fmap_decay", "fmap_max",
    "fmap_min", "freeze_layers", "fused_modconv", "latent_size", "mapping_fmaps", "mapping_layers",
    "num_fp16_res", "randomize_noise", "resolution", "structure", "style_mixing_prob", "label_fmaps",
    "truncation_cutoff", "truncation_cutoff_val", "truncation_psi", "truncation_psi_val", "use_noise",
    "w_avg_beta",
}  # fmt: skip
_MEANINGFUL = {
    "architecture", "conv_clamp", "label_size", "mapping_func", "mapping_lrmul", "mapping_nonlinearity",
    "mbstd_group_size", "mbstd_num_features", "nonlinearity", "normalize_latents", "num_channels",
    "resample_kernel", "synthesis_func",
}  # fmt: skip
# Values of settings with which the network is the one that this suite implements.
_REQUIRED = {
    "label_size": (0,),
    "mapping_func": ("G_mapping",),
    "mapping_nonlinearity": ("lrelu",),
    "mbstd_num_features": (1,),
    "nonlinearity": ("lrelu",),
    "normalize_latents": (True,),
    "synthesis_func": ("G_synthesis_stylegan2", "G_synthesis"),
}


def networks_of(data: object) -> dict[str, TensorFlowNetwork]:
    """The networks of unpickled data by their names, `G`, `D` and `Gs`; empty if there are none.

    A file holds them in a sequence or in a dict; a single network counts as `Gs`.
    """
    if isinstance(data, TensorFlowNetwork):
        return {"Gs": data}
    if isinstance(data, tuple | list):
        data = dict(zip(("G", "D", "Gs"), data, strict=False)) if len(data) == 3 else {}
    pairs = data.items() if isinstance(data, dict) else ()
    return {str(name): network for name, network in pairs if isinstance(network, TensorFlowNetwork)}


def from_networks(networks: Mapping[str, TensorFlowNetwork], raw: bool = False) -> Checkpoint:
    """The moving average `Gs` (or with `raw` the trained `G`) and `D`.

    networks: from `networks_of`. Raises NotConvertible:
    conditional, older architectures, tensors that are missing.
    """
    label = "G" if raw else "Gs"
    if label not in networks:
        raise NotConvertible(f"lacks the network {label}; it has {', '.join(sorted(networks))}")
    generator = _generator(label, networks[label])
    discriminator: DiscriminatorRecord | NotConvertible | None = None
    try:
        discriminator = _discriminator(networks["D"]) if "D" in networks else None
    except NotConvertible as reason:
        discriminator = reason
    return assemble(KIND, TENSORFLOW, label, generator, discriminator)


def _generator(label: str, network: TensorFlowNetwork) -> GeneratorRecord:
    settings = _settings(label, network, "skip")
    tensors = _tensors(label, network)
    if any("ToRGB_lod" in name for name in tensors):
        raise NotConvertible(f"{label} is of configuration A–D (progressive growing), not E or F")
    return GeneratorRecord(
        tensors,
        float(settings.get("mapping_lrmul", 0.01)),
        _clamp(settings),
        _taps(settings),
    )


def _discriminator(network: TensorFlowNetwork) -> DiscriminatorRecord:
    settings = _settings("D", network, "resnet")
    tensors = _tensors("D", network)
    if any("FromRGB_lod" in name for name in tensors):
        raise NotConvertible("D is of configuration A–D (progressive growing), not E or F")
    # The two repositories have different defaults, and different names for the function.
    default = 4 if network.state.get("build_func_name") == "D_stylegan2" else None
    group = settings.get("mbstd_group_size", default)
    if group is not None and group < 2:
        raise NotConvertible("D has no minibatch standard deviation")
    return DiscriminatorRecord(
        tensors, _clamp(settings), _taps(settings), None if group is None else int(group)
    )


def _settings(label: str, network: TensorFlowNetwork, architecture: str) -> dict[str, Any]:
    """`static_kwargs`, checked to describe a network that this suite supports."""
    version = network.state.get("version")
    if not isinstance(version, int) or version < OLDEST_VERSION:
        raise NotConvertible(
            f"{label} has the format version {version}, older than StyleGAN2's {OLDEST_VERSION}"
        )
    settings = network.state.get("static_kwargs")
    if not isinstance(settings, dict):
        raise NotConvertible(f"{label} lacks its settings (static_kwargs)")
    unknown = sorted(str(name) for name in settings if name not in _HARMLESS | _MEANINGFUL)
    if unknown:
        raise NotConvertible(
            f"{label} has a setting with unknown effect: {unknown[0]}={brief(settings[unknown[0]])}"
        )
    if settings.get("label_size", 0):
        classes = brief(settings["label_size"])
        raise NotConvertible(
            f"{label} is conditional ({classes} label values); only unconditional networks fit"
        )
    for name, allowed in (_REQUIRED | {"architecture": (architecture,)}).items():
        if settings.get(name, allowed[0]) not in allowed:
            raise NotConvertible(f"{label} has {name}={brief(settings[name])}, not {allowed[0]!r}")
    return settings


def _clamp(settings: Mapping[str, Any]) -> float | None:
    clamp = settings.get("conv_clamp")
    return None if clamp is None else float(clamp)


def _taps(settings: Mapping[str, Any]) -> tuple[float, ...]:
    taps = settings.get("resample_kernel", [1, 3, 3, 1])
    try:
        return taps_of_kernel(torch.tensor([float(tap) for tap in taps]))
    except (TypeError, ValueError) as error:
        raise NotConvertible(f"its resampling filter is {brief(taps)}") from error


def _tensors(label: str, network: TensorFlowNetwork) -> dict[str, Tensor]:
    """All variables by path, in PyTorch's axis order and with PyTorch's conventions."""
    return {name: _as_torch(name, value) for name, value in _variables(label, "", network, set())}


def _variables(
    label: str, prefix: str, network: object, seen: set[int]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    if not isinstance(network, TensorFlowNetwork) or id(network) in seen:
        raise NotConvertible(f"{label}: {prefix or 'it'} is not a network, or occurs twice")
    seen.add(id(network))
    try:
        pairs = [(str(name), value) for name, value in network.state["variables"]]
        components = dict(network.state.get("components") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise NotConvertible(f"{label} lacks its variables") from error
    for name, value in pairs:
        # A scalar variable (noise_strength) was stored as a number, all others as arrays.
        array = value.value if isinstance(value, StoredArray) else np.asarray(value, dtype=np.float32)
        if array is None:
            raise NotConvertible(f"{label}: {prefix}{name} has no values")
        yield prefix + name, array
    for name, component in components.items():
        yield from _variables(label, f"{prefix}{name}/", component, seen)


def _as_torch(name: str, array: np.ndarray[Any, Any]) -> Tensor:
    leaf = name.rpartition("/")[2]
    if leaf == "weight" and array.ndim == 4:
        # (k, k, I, O) → (O, I, k, k). TensorFlow's up-sampling convolution flips the
        # kernel with respect to a transposed convolution.
        if "/Conv0_up/" in name:
            array = array[::-1, ::-1]
        array = array.transpose(3, 2, 0, 1)
    elif leaf in ("weight", "mod_weight") and array.ndim == 2:
        array = array.T
    elif leaf == "mod_bias":
        # The TensorFlow code adds the 1 of the initial style at run time.
        array = array + 1
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
