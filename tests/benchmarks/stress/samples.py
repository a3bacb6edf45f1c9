"""Tiny valid files of every format that the suite reads, and the command that reads each."""

import dataclasses
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, features
from typer.testing import CliRunner

from tests.code_files import make_code
from tests.conftest import TINY, random_generator_network, write_photo
from tests.fixtures.checkpoint_files import CASES, write_case
from wrangan_cli.app import app
from wrangan_cli.engine.data.image_kinds import reads_heif
from wrangan_cli.engine.editing.directions import Direction, save_directions, unit
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import save_code
from wrangan_cli.engine.models.encoders import Encoder, EncoderConfig, save_encoder
from wrangan_cli.engine.models.folder import Model, save_model

SIDE = 24
INVERT = ["--method", "encoder", "--perceptual-weight", "0", "--device", "cpu"]
SHAPE = ["--resolution", "16", "--channels", "8,8,8", "--style-dim", "8", "--mapping-layers", "2"]
TRAIN = [*SHAPE, "--batch", "4", "--device", "cpu"]


@dataclass(frozen=True)
class Format:
    """One format: a valid file, and how the suite reads it."""

    name: str
    valid: tuple[Path, ...]
    """Valid files, which are damaged in turn."""
    command: Callable[[Path, Path], list[str]]
    """The damaged file (with `folder`: the folder that contains it) and a folder for results → arguments."""
    folder: bool = False
    """Whether the whole folder is copied, with only this file in it damaged."""
    regions: tuple[int, ...] = (0,)
    """Offsets of the kilobytes that may be damaged; negative: from the end."""
    inner: int = 0
    """Number of images in it, which are also named in messages."""


def tiny_model(folder: Path) -> Model:
    """A random model of 16 px with an encoder and a direction `d`."""
    model = load_model(str(save_model(folder, random_generator_network(), perceptual="st-lpips-alex")))
    torch.manual_seed(2)
    save_encoder(folder, Encoder(EncoderConfig(TINY.style_dim, (8, 8), (1, 1), 16)).eval(), model, {})
    direction = Direction("d", unit(torch.randn(TINY.style_dim)), 1.0, None, (-3.0, 3.0), {})
    save_directions(folder / "directions.safetensors", model, [direction])
    return model


def formats(work: Path) -> list[Format]:
    """All formats that can be written on this machine, with their valid files in `work`."""
    model = tiny_model(work / "tiny")
    photo = write_photo(work / "photo.png", SIDE)
    code = work / "code.st"
    save_code(code, make_code(model))
    return [*_images(work, model), *_tensors(model, photo, code), *_data(work), *_arrays(work, model)]


def _images(work: Path, model: Model) -> list[Format]:
    picture = Image.open(write_photo(work / "base.png", SIDE)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    beside = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    kinds: dict[str, list[dict[str, object]]] = {
        "jpg": [{}, beside, {"progressive": True}],
        "png": [{}, beside],
        "webp": [{}, beside, {"lossless": True}],
        "tif": [{}, beside, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}],
        "bmp": [{}],
        "gif": [{}],
        "ppm": [{}],
    }
    if features.check("avif"):
        kinds["avif"] = [{}]
    if features.check("jpg_2000"):
        kinds["jp2"] = [{}]
    if reads_heif():
        kinds["heic"] = [{}, {"exif": exif.tobytes()}]
    found = []
    for suffix, variants in kinds.items():
        files = []
        for number, options in enumerate(variants):
            files.append(work / "images" / f"{suffix}-{number}.{suffix}")
            files[-1].parent.mkdir(exist_ok=True)
            picture.save(files[-1], **options)
        found.append(Format(suffix, tuple(files), _inverted(model.path)))
    return found


def _inverted(model: Path) -> Callable[[Path, Path], list[str]]:
    return lambda path, out: ["invert", str(path), "--model", str(model), *INVERT, "--out", str(out)]


def _tensors(model: Model, photo: Path, code: Path) -> list[Format]:
    path = model.path
    edit = ["edit", "--model", str(path), "--direction", "d", "--strength", "1", "--device", "cpu"]

    def generated(folder: Path, out: Path) -> list[str]:
        model = ["--model", str(folder), "--device", "cpu"]
        return ["generate", "--seeds", "0", *model, "--out", str(out)]

    def inverted(folder: Path, out: Path) -> list[str]:
        return _inverted(folder)(photo, out)

    return [
        Format("code .st", (code,), lambda path, out: [*edit, str(path), "--out", str(out)]),
        Format("model.safetensors", (path / "model.safetensors",), generated, folder=True),
        Format("config.json", (path / "config.json",), generated, folder=True),
        Format("encoder.safetensors", (path / "encoder.safetensors",), inverted, folder=True),
        Format(
            "directions.safetensors",
            (path / "directions.safetensors",),
            lambda path, out: [*edit, str(code), "--directions", str(path), "--out", str(out)],
        ),
    ]


def _data(work: Path) -> list[Format]:
    pictures = [write_photo(work / "faces" / f"{seed}.png", SIDE, seed) for seed in range(4)]
    archive = work / "faces.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for picture in pictures:
            stream.write(picture, picture.name)

    def trained(path: Path, out: Path) -> list[str]:
        return ["train", "generator", "--data", str(path), *TRAIN, "--images", "4", "--out", str(out)]

    found = [Format("zip of images", (archive,), trained, regions=(0, -1024), inner=len(pictures))]
    try:
        import lmdb
    except ImportError:
        lmdb = None
    if lmdb is not None:
        values = {f"{SIDE}-{i:05d}".encode(): path.read_bytes() for i, path in enumerate(pictures)}
        base = work / "faces.lmdb"
        with (
            lmdb.open(str(base), subdir=False, map_size=2**20) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in {**values, b"length": b"4"}.items():
                transaction.put(key, value)
        os.truncate(base, (base.stat().st_size // 4096) * 4096)
        # Two pages hold the location of the newest tree; both are headers.
        found.append(Format("LMDB", (base,), trained, regions=(0, 4096), inner=len(pictures)))
    run = work / "run"
    made = CliRunner().invoke(app, trained(work / "faces", run))
    assert made.exit_code == 0, made.stderr

    def resumed(folder: Path, _: Path) -> list[str]:
        base = ["train", "generator", "--data", str(work / "faces"), *TRAIN]
        return [*base, "--images", "8", "--out", str(folder)]

    snapshot = next(run.glob("snapshot-*.pt"))
    found.append(Format("training snapshot .pt", (snapshot,), resumed, folder=True, regions=(0, -1024)))
    return found


def _arrays(work: Path, model: Model) -> list[Format]:
    def converted(path: Path, out: Path) -> list[str]:
        return ["convert-checkpoint", str(path), "--out", str(out / "model")]

    def imported(path: Path, out: Path) -> list[str]:
        base = ["import-latents", str(path), "--model", str(model.path), "--device", "cpu"]
        return [*base, "--out", str(out)]

    found = []
    for name, case in {
        "rosinality .pt": "rosinality-depth2",
        "NVIDIA PyTorch .pkl": "ada-depth2-clamp256",
        "NVIDIA TensorFlow .pkl": "tf-clamp1-depth2",
    }.items():
        narrow = dataclasses.replace(CASES[case], width=4, style_dim=4)
        path = work / f"{case}{'.pt' if case.startswith('rosinality') else '.pkl'}"
        write_case(path, narrow)
        ends = (0, -1024) if path.suffix == ".pt" else (0,)
        found.append(Format(name, (path,), converted, regions=ends))
    w = np.random.default_rng(0).standard_normal((1, TINY.num_latents, TINY.style_dim)).astype(np.float32)
    np.save(work / "w.npy", w)
    np.savez(work / "w.npz", w=w)
    torch.save({"a.png": {"latent": torch.from_numpy(w[0])}}, work / "w.pt")
    for suffix in ("npy", "npz", "pt"):
        ends = (0,) if suffix == "npy" else (0, -1024)
        found.append(Format(f"latents .{suffix}", (work / f"w.{suffix}",), imported, regions=ends))
    return found


def copied(form: Format, valid: Path, folder: Path) -> tuple[Path, Path]:
    """Copy to `folder`, a new folder; returns the file to damage, and the path to give to the command."""
    if not form.folder:
        folder.mkdir(parents=True)
        path = folder / valid.name
        shutil.copyfile(valid, path)
        return path, path
    shutil.copytree(valid.parent, folder, ignore=shutil.ignore_patterns("events.*", "grid-*"))
    return folder / valid.name, folder
