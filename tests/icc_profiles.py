"""ICC profiles made by the tests, and what their colours are in sRGB by the definition.

A profile here is ICC version 2 with a matrix and one gamma (ICC.1:2001-04, sections 6 and
7). Chromaticities: Adobe RGB (1998), and Display P3 with a plain gamma.
"""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = np.array([0.95047, 1.0, 1.08883])
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
GAMMA = 563 / 256

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB → XYZ under D50: primaries scaled so that white is D65, then adapted by Bradford."""
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    matrix = columns * np.linalg.solve(columns, D65)
    cones = np.diag((_BRADFORD @ D50) / (_BRADFORD @ D65))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ matrix


def rgb_profile(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """A display profile with these primaries, white D65 and gamma 2.2 (563/256)."""
    curve = b"curv" + struct.pack(">4xIH2x", 1, 563)
    tags = {
        name: _xyz(column) for name, column in zip(("rXYZ", "gXYZ", "bXYZ"), to_xyz(primaries).T, strict=True)
    }
    tags |= {"rTRC": curve, "gTRC": curve, "bTRC": curve}
    return _profile("RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """A grey profile with this gamma."""
    return _profile("GRAY", {"kTRC": b"curv" + struct.pack(">4xIH2x", 1, round(gamma * 256))})


def in_srgb(pixels: np.ndarray, primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """uint8 (..., 3) in those primaries and gamma 2.2 → sRGB 0…255, by IEC 61966-2-1."""
    linear = (pixels / 255.0) ** GAMMA @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T
    return encode(linear)


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear light 0…1 → sRGB 0…255."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *(round(float(v) * 65536) for v in values))


def _profile(space: str, tags: dict[str, bytes]) -> bytes:
    text = b"test\0"
    tags = {
        "desc": b"desc" + struct.pack(">4xI", len(text)) + text + bytes(78),
        "cprt": b"text" + bytes(4) + text,
        "wtpt": _xyz(D50),
        **tags,
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name.encode() + struct.pack(">II", offset + len(body), len(data))
        body += padded
    header = struct.pack(
        ">I4xI4s4s4s12x4s4x4x4x4x8x4x3i", offset + len(body), 0x02100000, b"mntr", space.encode(),
        b"XYZ ", b"acsp", *(round(float(v) * 65536) for v in D50),
    )  # fmt: skip
    return header.ljust(128, b"\0") + table + body
