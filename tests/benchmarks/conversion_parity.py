"""Compare images and logits of converted networks with those of the original code, on the CPU.

    python -m tests.benchmarks.conversion_parity --rosinality PATH --ada PATH --sg3 PATH

PATH: checkouts of rosinality/stylegan2-pytorch, NVlabs/stylegan2-ada-pytorch and
NVlabs/stylegan3 (any of them may be omitted). Each network gets random weights, biases and
noise strengths from a fixed seed (tests/fixtures/checkpoint_files.py), is saved by the
original classes, read back here, and compared at 64 and 256 px. TensorFlow is not
needed: its file is written with its variable names, and compared with NVIDIA's reader of
such files (`legacy.py` in the ada checkout).
`--write-fixtures` stores the outputs of the narrow cases for the tests.
"""

import argparse
import contextlib
import pickle
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import packaging.version
import torch
from torch import Tensor, nn

from tests.fixtures.checkpoint_files import CASES, OUTPUTS, Case, inputs, weights, write_case
from wrangan_cli.engine.checkpoints.convert import build, convert_to_model, export_rosinality
from wrangan_cli.engine.checkpoints.detect import read_checkpoint

_PEER_MODULES = ("model", "op", "torch_utils", "dnnlib", "training", "legacy", "metrics")


@dataclass(frozen=True)
class Outputs:
    """w (2, style_dim), images (2, 3, R, R) of G_ema with stored noise, logits (8, 1) of D."""

    w: Tensor
    image: Tensor
    logits: Tensor


def main() -> None:
    """Compare and print a table; on request, store the outputs of the narrow cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for peer in ("rosinality", "ada", "sg3"):
        parser.add_argument(f"--{peer}", type=Path)
    parser.add_argument("--write-fixtures", action="store_true")
    parser.add_argument("--narrow-only", action="store_true")
    options = parser.parse_args()
    checkouts = {"rosinality": options.rosinality, "ada": options.ada, "sg3": options.sg3, "tf": options.ada}
    stored = {}
    print("| network | max difference of w | of images (their std) | of logits (their std) |")
    print("|---|---|---|---|")
    for name, case in {**CASES, **({} if options.narrow_only else wide_cases())}.items():
        if checkouts[case.peer] is None:
            continue
        theirs, ours = compare(case, checkouts[case.peer])
        columns = [f"{float((ours.w - theirs.w).abs().max()):.1e}"]
        for our, their in ((ours.image, theirs.image), (ours.logits, theirs.logits)):
            columns.append(f"{float((our - their).abs().max()):.1e} ({float(their.std()):.2g})")
        print(f"| {name} | {' | '.join(columns)} |", flush=True)
        if name in CASES:
            stored |= {f"{name}/{key}": getattr(theirs, key).numpy() for key in ("w", "image", "logits")}
    if options.rosinality:
        difference = export_difference(options.rosinality)
        print(f"\n`--to rosinality`, rendered by rosinality's classes: max difference {difference:.1e}")
    if options.write_fixtures:
        np.savez_compressed(OUTPUTS, **stored)


def wide_cases() -> dict[str, Case]:
    """Networks of the published widths at 64 and 256 px, in each format."""
    full = {"width": 512, "channel_base": 32768, "style_dim": 512}
    cases = {}
    for resolution in (64, 256):
        for peer in ("rosinality", "ada", "sg3", "tf"):
            cases[f"{peer}, {resolution} px"] = Case(peer, resolution, **full)
        clamped = Case("ada", resolution, depth=2, clamp=256.0, **full)
        cases[f"ada, {resolution} px, clamp 256, depth 2"] = clamped
        cases[f"ada, {resolution} px, clamp 1, depth 2"] = replace(clamped, clamp=1.0)
    return cases


@torch.no_grad()
def compare(case: Case, checkout: Path) -> tuple[Outputs, Outputs]:
    """The outputs of the original code and ours, for one case."""
    z, images = inputs(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        with peer_modules(checkout):
            theirs = {"rosinality": _rosinality, "tf": _tensorflow}.get(case.peer, _nvidia)(
                case, path, z, images
            )
        generator, discriminator = build(read_checkpoint(path))
    assert discriminator is not None
    w = generator.mapping(z)
    return theirs, Outputs(w, generator.synthesis(w), discriminator(images))


@torch.no_grad()
def export_difference(checkout: Path) -> float:
    """Largest difference between a narrow NVIDIA network here and its export in rosinality's classes."""
    case = Case("ada", depth=3, channel_base=0)
    z, images = inputs(case)
    with tempfile.TemporaryDirectory() as name, peer_modules(checkout):
        folder = Path(name)
        convert_to_model(write_case(folder / "in.pkl", case), folder / "model")
        export_rosinality(str(folder / "model"), folder / "out.pt")
        contents = torch.load(folder / "out.pt", weights_only=True)
        generator, discriminator = build(read_checkpoint(folder / "in.pkl"))
        module = _rosinality_module(case)
        theirs = module.Generator(case.resolution, case.style_dim, case.depth)
        theirs.load_state_dict(contents["g_ema"])
        their_discriminator = module.Discriminator(case.resolution)
        their_discriminator.load_state_dict(contents["d"])
        assert discriminator is not None
        image = theirs([z], randomize_noise=False)[0] - generator.synthesis(generator.mapping(z))
        logits = their_discriminator(images) - discriminator(images)
    return max(float(image.abs().max()), float(logits.abs().max()))


def _rosinality_module(case: Case) -> Any:
    source = (Path(sys.path[0]) / "model.py").read_text()
    # The channel table in the source is fixed; a narrow network needs other numbers.
    module = types.ModuleType("model")
    exec(source.replace(": 512,", f": {case.width},"), module.__dict__)
    return module


def _rosinality(case: Case, path: Path, z: Tensor, images: Tensor) -> Outputs:
    module = _rosinality_module(case)
    size, dim = case.resolution, case.style_dim
    made = {
        "g": module.Generator(size, dim, case.depth),
        "d": module.Discriminator(size),
        "g_ema": module.Generator(size, dim, case.depth),
    }
    for name, tensors in zip(("g", "d", "g_ema"), _in_order(case), strict=True):
        _fill(made[name], tensors, (".kernel",))
    torch.save({name: network.state_dict() for name, network in made.items()}, path)
    w = made["g_ema"].style(z)
    image, _ = made["g_ema"]([z], randomize_noise=False)
    return Outputs(w, image, made["d"](images))


def _nvidia(case: Case, path: Path, z: Tensor, images: Tensor) -> Outputs:
    common = {"c_dim": 0, "img_resolution": case.resolution, "img_channels": 3}
    synthesis: dict[str, Any] = {"channel_base": case.channel_base, "channel_max": case.width}
    synthesis |= {"conv_clamp": case.clamp, "num_fp16_res": 4 if case.clamp else 0}
    mapping = {"num_layers": case.depth}
    if case.peer == "ada":
        from training import networks

        settings: dict[str, Any] = {"mapping_kwargs": mapping, "synthesis_kwargs": synthesis}
    else:
        from training import networks_stylegan2 as networks

        settings = {"mapping_kwargs": mapping, **synthesis}
    epilogue = {"mbstd_group_size": case.group}
    made = {
        "G": networks.Generator(z_dim=case.style_dim, w_dim=case.style_dim, **common, **settings),
        "D": networks.Discriminator(**common, **synthesis, epilogue_kwargs=epilogue),
        "G_ema": networks.Generator(z_dim=case.style_dim, w_dim=case.style_dim, **common, **settings),
    }
    for network, tensors in zip(made.values(), _in_order(case), strict=True):
        _fill(network.eval().requires_grad_(False), tensors, ("resample_filter",))
    path.write_bytes(pickle.dumps({**made, "augment_pipe": None, "training_set_kwargs": {}}))
    return _nvidia_outputs(made, z, images)


def _tensorflow(case: Case, path: Path, z: Tensor, images: Tensor) -> Outputs:
    write_case(path, case)
    import legacy

    with open(path, "rb") as stream:
        return _nvidia_outputs(legacy.load_network_pkl(stream), z, images)


def _nvidia_outputs(networks: Mapping[str, Any], z: Tensor, images: Tensor) -> Outputs:
    generator = networks["G_ema"]
    w = generator.mapping(z, None)
    image = generator.synthesis(w, noise_mode="const", force_fp32=True)
    return Outputs(w[:, 0], image, networks["D"](images, None, force_fp32=True))


def _in_order(case: Case) -> list[dict[str, Tensor]]:
    sampled = weights(case)
    return [sampled["G"], sampled["D"], sampled["G_ema"]]


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], fixed: tuple[str, ...]) -> None:
    """Copy all tensors; exactly those must be given whose names do not end in one of `fixed`."""
    state = network.state_dict()
    assert {name for name in state if not name.endswith(fixed)} == set(tensors)
    for name, tensor in tensors.items():
        assert state[name].shape == tensor.shape, name
        state[name].copy_(tensor)


@contextlib.contextmanager
def peer_modules(checkout: Path) -> Iterator[None]:
    """Within this block `checkout` comes first on the import path, with stubs for its compiled operations.

    Both NVIDIA repositories use the same module names, so the imported modules are removed at the end.
    """
    stubs: dict[str, Any] = {}
    for name in ("requests", "distutils", "distutils.util", "click"):
        try:
            __import__(name)
        except ImportError:
            stubs[name] = mock.MagicMock()
    stubs["pkg_resources"] = mock.MagicMock(parse_version=packaging.version.parse)
    sys.path.insert(0, str(checkout))
    try:
        with (
            mock.patch.dict(sys.modules, stubs),
            mock.patch("torch.utils.cpp_extension.load", return_value=None),
        ):
            yield
    finally:
        sys.path.remove(str(checkout))
        for name in [n for n in sys.modules if n.split(".")[0] in _PEER_MODULES]:
            del sys.modules[name]


if __name__ == "__main__":
    main()
