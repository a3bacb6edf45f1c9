"""A model: a folder with `config.json`, `model.safetensors` and what was trained for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import FileError, WranganError, cause_of
from wrangan_cli.engine.base.files import replaced_together, sha256
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.base.tensorfile import clear_write_errors, read_tensors, store_tensors, write_tensors
from wrangan_cli.engine.models.architectures import build_generator, config_record, read_generator_config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.generator import Generator, GeneratorConfig

FORMAT = "wrangan-model"
W_SAMPLES = 10_000
SAMPLE_SIDE = 256

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
DISCRIMINATOR = "discriminator.safetensors"
FITTED = "fitted.safetensors"
"""This project's additions to weights that are fetched (fetched_models.py)."""
SHARED_FILES = (
    *("encoder.safetensors", "encoder-e4e.safetensors", "encoder-restyle.safetensors"),
    *("attributes.safetensors", "directions.safetensors"),
)
"""Files that depend only on W and on the content of the images, so that smaller forms of a generator can use
them too."""


@dataclass(frozen=True)
class Parent:
    """The bundled model of which another is a smaller form, which also uses its SHARED_FILES."""

    folder: Path
    """The folder of the files that ship for it."""
    sha256: str
    """That of its `model.safetensors`, which need not exist."""


@dataclass(frozen=True, eq=False)
class Model:
    """A generator in evaluation mode with its statistics; weights do not require gradients."""

    name: str
    """Name of the folder."""
    path: Path
    """The folder, to which files that the user makes for the model are written."""
    sha256: str
    """That of `model.safetensors`; codes refer to it."""
    generator: Generator
    w_mean: Tensor
    """Mean of w over many z: float32 (style_dim,), on the generator's device."""
    w_std: float
    """Characteristic size of W: root of the summed variance of w's components."""
    perceptual: str
    """Name of the model's perceptual distance (engine/models/perceptual.py)."""
    inversion: Mapping[str, Any] = field(default_factory=dict)
    """Settings of wrangan that suit the model's σ by measurement (NAMED_BY_MODEL), such as `epsilon_lr`."""
    bundled: Path | None = None
    """Folder of the files that ship with a model whose weights are fetched; None: everything is in `path`."""
    parent: Parent | None = None
    """The model that `config.json` names as `companions_of`; None if it names none."""

    def __repr__(self) -> str:
        """In short: the whole network would fill the screen."""
        kind = self.generator.config.architecture
        return f"Model({self.name}, {kind}, {self.resolution} px, {self.device})"

    def companions(self, name: str) -> list[Path]:
        """The files of this name that belong to the model: first in its folder, then those that ship with it,
        then, for SHARED_FILES, those that ship with its parent."""
        folders = [self.path, *([self.bundled] if self.bundled else [])]
        if self.parent and name in SHARED_FILES:
            folders.append(self.parent.folder)
        return [folder / name for folder in folders if (folder / name).is_file()]

    def accepts(self, made_for: object) -> bool:
        """Whether an encoder into W or directions made for the model with this sha256 fit this model: only if
        that is this model or its parent."""
        return made_for == self.sha256 or (self.parent is not None and made_for == self.parent.sha256)

    def companion(self, name: str) -> Path | None:
        """The first of `companions`; None if there is none."""
        return next(iter(self.companions(name)), None)

    @property
    def resolution(self) -> int:
        """Side of its images in px."""
        return self.generator.config.resolution

    @property
    def sample_side(self) -> int:
        """Side in px at which its samples are compared with real images (FID, KID, corruption …): that of its
        images, at most 256, as is usual in the field."""
        return min(self.resolution, SAMPLE_SIDE)

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.w_mean.device


def bundled_root() -> Path:
    """The folder of the models that ship with the package."""
    return Path(__file__).parents[2] / "bundled"


def bundled_models() -> dict[str, Path]:
    """Models that ship with the package, by name."""
    root = bundled_root()
    folders = sorted(p for p in root.iterdir() if (p / CONFIG).is_file()) if root.is_dir() else []
    return {folder.name: folder for folder in folders}


def network_of(folder: Path, record: dict[str, Any]) -> Generator:
    """A new generator with the settings in a model's record; FileError for bad ones."""
    try:
        return build_generator(read_generator_config(record))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(folder / CONFIG, f"bad generator settings ({cause_of(error)})") from error


def read_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """Read the model of a folder that holds its weights, in float32, onto `device`.

    Raises FileError for files that are missing, broken, or do not fit each other. The inversion settings
    in its record are not checked here (see library.py).
    """
    record = read_config(folder)
    generator = network_of(folder, record)
    config = generator.config
    weights = folder / WEIGHTS
    tensors, _ = read_tensors(weights)
    load_weights(generator, tensors, weights, prefix="generator.")
    for name, shape in (("w_mean", (config.style_dim,)), ("w_std", ())):
        if name not in tensors:
            raise FileError(weights, f"lacks the tensor {name}")
        if tensors[name].shape != shape or not tensors[name].isfinite().all():
            raise FileError(weights, f"{name} is not a finite tensor of shape {shape}")
    digest = _check_sha(weights, record)
    generator.to(device).eval().requires_grad_(False)
    return Model(
        name=folder.resolve().name,
        path=folder,
        sha256=digest,
        generator=generator,
        w_mean=tensors["w_mean"].float().to(device),
        w_std=float(tensors["w_std"]),
        perceptual=record.get("perceptual", "lpips-vgg"),
        inversion=record.get("inversion", {}),
        bundled=bundled_models().get(folder.resolve().name) if "fetched" in record else None,
        parent=_parent(folder, record),
    )


def save_model(
    folder: Path,
    generator: Generator,
    discriminator: Discriminator | None = None,
    w_mean: Tensor | None = None,
    perceptual: str = "lpips-vgg",
    source: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    inversion: Mapping[str, Any] | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors` (and `discriminator.safetensors`) to `folder`.

    w_mean is measured if not given. source: where the weights come from, for the
    record. dtype: storage type of the weights. inversion: see Model. The discriminator of an earlier
    model there is removed. Other files in the folder are kept, but networks trained for the
    old weights no longer fit.

    The files are replaced together, `config.json` last, with the sha256 of the others: a
    crash between two renames leaves a folder that `read_model` rejects, not a mixture of two
    models. Raises FileError if they cannot be written.
    """
    measured_mean, w_std = w_statistics(generator)
    tensors = stored_weights(generator, dtype, prefix="generator.")
    tensors["w_mean"] = (measured_mean if w_mean is None else w_mean).detach().float().cpu()
    tensors["w_std"] = torch.tensor(w_std)
    config = {
        "format": FORMAT,
        "version": 1,
        **config_record(generator.config),
        "perceptual": perceptual,
        "source": dict(source or {}),
    }
    if inversion:
        config["inversion"] = dict(inversion)
    contents = {WEIGHTS: (tensors, {"kind": "generator"})}
    if discriminator is not None:
        contents[DISCRIMINATOR] = (stored_weights(discriminator, dtype), {"kind": "discriminator"})
    names = [*contents, CONFIG]
    with clear_write_errors(folder), replaced_together([folder / name for name in names]) as temporaries:
        for temporary, (weights, about) in zip(temporaries, contents.values(), strict=False):
            store_tensors(temporary, weights, about)
        stored = {name: sha256(path) for name, path in zip(contents, temporaries, strict=False)}
        temporaries[-1].write_text(json.dumps({**config, "sha256": stored}, indent=2) + "\n")
    if discriminator is None:
        with clear_write_errors(folder):
            (folder / DISCRIMINATOR).unlink(missing_ok=True)
    return folder


def carry_companions(start: Model, folder: Path) -> list[Path]:
    """Copy what was trained for `start` (encoder, directions, attribute net, reference) into `folder`.

    For a model there that renders the same images from the same w, such as one to which only σ was
    added. Files that name the model for which they were made, or one another (a hypernetwork its
    encoder), get the sha256 of the new one.
    """
    new = sha256(folder / WEIGHTS)
    carried = []
    renewed: dict[str, str] = {}
    found = [start.parent.folder / name for name in SHARED_FILES] if start.parent else []
    found = [path for path in found if path.is_file()]
    found += [path for part in (start.bundled, start.path) if part for path in part.glob("[!.]*.safetensors")]
    for path in sorted({path.name: path for path in found}.values(), key=lambda path: path.name):
        if path.name in (WEIGHTS, DISCRIMINATOR, FITTED) or path.parent.resolve() == folder.resolve():
            continue
        tensors, record = read_tensors(path)
        if "model_sha256" in record:
            made_for = record["model_sha256"]
            if not (made_for == start.sha256 or (path.name in SHARED_FILES and start.accepts(made_for))):
                continue
            record["model_sha256"] = new
        # In order of names, an encoder comes before the hypernetwork that was trained with it.
        if record.get("encoder_sha256") in renewed:
            record["encoder_sha256"] = renewed[record["encoder_sha256"]]
        write_tensors(folder / path.name, tensors, record)
        renewed[sha256(path)] = sha256(folder / path.name)
        carried.append(folder / path.name)
    return carried


def load_discriminator(folder: Path, config: GeneratorConfig) -> Discriminator:
    """The discriminator that was trained with a model, in float32 on the CPU.

    Raises UsageError for an architecture that has none, FileError if it is missing or broken.
    """
    discriminator = config.discriminator()
    path = folder / DISCRIMINATOR
    tensors, _ = read_tensors(path)
    load_weights(discriminator, tensors, path)
    _check_sha(path, read_config(folder))
    return discriminator


def find_discriminator(model: Model) -> Discriminator | None:
    """`load_discriminator` of a model, or None if it has none."""
    path = model.companion(DISCRIMINATOR)
    return load_discriminator(path.parent, model.generator.config) if path else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model; FileError if it is not one."""
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(path, f"not readable as JSON ({cause_of(error)})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FileError(path, f"not a model's settings (no format {FORMAT!r})")
    return record


def recorded_sha256(folder: Path) -> str | None:
    """The sha256 of `model.safetensors`, which need not exist, in `config.json`; None if not recorded."""
    known = read_config(folder).get("sha256")
    return known.get(WEIGHTS) if isinstance(known, dict) else None


def _check_sha(weights: Path, record: Mapping[str, Any]) -> str:
    """The file's sha256; FileError if `config.json` records a different one. Older models record none."""
    digest, known = sha256(weights), record.get("sha256")
    named = known.get(weights.name) if isinstance(known, dict) else None
    if named not in (None, digest):
        again = (
            f"it was changed: run `wrangan fetch {weights.parent.name} --overwrite`"
            if "fetched" in record
            else "saving was interrupted: save, train or convert the model again"
        )
        raise FileError(
            weights, f"sha256 {digest[:12]}…, and {CONFIG} was written with {str(named)[:12]}…: {again}"
        )
    return digest


def _parent(folder: Path, record: Mapping[str, Any]) -> Parent | None:
    """The bundled model that the record names; FileError if it does not exist."""
    name = record.get("companions_of")
    if name is None:
        return None
    shipped = bundled_models().get(str(name))
    digest = recorded_sha256(shipped) if shipped else None
    if shipped is None or digest is None:
        raise FileError(folder / CONFIG, f"companions_of: there is no bundled model {name!r} with a sha256")
    return Parent(shipped, digest)


def stored_weights(network: nn.Module, dtype: torch.dtype, prefix: str = "") -> dict[str, Tensor]:
    """The state dict to store, without FIR kernels, which the settings determine."""
    return {
        prefix + name: tensor.to(dtype)
        for name, tensor in network.state_dict().items()
        if not name.endswith(".kernel")
    }


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, prefix: str = "") -> None:
    """Copy tensors into `network`; FileError names the first key that is missing,
    superfluous, misshapen or not finite."""
    given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    own = network.state_dict()
    for name, tensor in own.items():
        if name.endswith(".kernel") and name not in given:
            continue
        if name not in given:
            raise FileError(path, f"lacks the tensor {prefix}{name}")
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
            raise FileError(path, f"{prefix}{name} has shape {shapes}")
        if not given[name].isfinite().all():
            raise FileError(path, f"{prefix}{name} has values that are not finite")
    extra = sorted(set(given) - set(own))
    if extra:
        raise FileError(path, f"has a tensor that does not belong here: {prefix}{extra[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given:
                tensor.copy_(given[name])


@torch.no_grad()
def w_statistics(generator: Generator, samples: int = W_SAMPLES) -> tuple[Tensor, float]:
    """Mean of w (style_dim,) and the root of its summed variance, over z of a fixed seed."""
    w = sample_w(generator, samples, seed=0)
    mean = w.mean(dim=0)
    std = (w - mean).square().sum(dim=1).mean().sqrt()
    if not (mean.isfinite().all() and std.isfinite()):
        raise WranganError("the mapping network returned values that are not finite")
    return mean, float(std)


@torch.no_grad()
def sample_w(generator: Generator, samples: int, seed: int) -> Tensor:
    """w of `samples` random z: (samples, style_dim) on the generator's device."""
    z = torch.randn(samples, generator.config.style_dim, generator=random_generator(seed))
    return torch.cat([generator.mapping(part.to(generator.device)) for part in z.split(4096)])
