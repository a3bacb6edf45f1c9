"""Remove metadata from image files: texts, XMP, previews, damaged profiles."""

import zlib
from collections.abc import Iterator
from typing import Literal

TEXT_LIMIT = 16 << 20
"""Maximum size in bytes of an unpacked text or colour profile in a PNG."""

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"


def stripped(data: bytes) -> Iterator[bytes]:
    """The same picture with less and less metadata, for a decoder that failed on it.

    First everything except orientation (Exif) and colour profile is removed, then also either, then both.
    Yields nothing for files that are not PNG, JPEG or TIFF, or too damaged to parse.
    """
    strip = _png if data.startswith(_PNG) else _jpeg if data.startswith(b"\xff\xd8") else _tiff
    before = data
    for keep_exif, keep_profile in ((True, True), (False, True), (True, False), (False, False)):
        less = strip(data, keep_exif, keep_profile)
        if less is None:
            return
        if less != before:
            yield less
        before = less


def _png(data: bytes, exif: bool, profile: bool) -> bytes | None:
    """Critical chunks unchanged (their checksums matter), transparency, and the requested metadata."""
    kept, at = [_PNG], len(_PNG)
    wanted = {b"tRNS"} | ({b"eXIf"} if exif else set()) | ({b"iCCP"} if profile else set())
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, chunk = data[at + 4 : at + 8], data[at:end]
        critical = not kind[0] & 0x20
        whole = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
        if critical or (kind in wanted and whole):
            kept.append(chunk)
        at = end
    return b"".join(kept)


def _jpeg(data: bytes, exif: bool, profile: bool) -> bytes | None:
    """Segments before the pixels: those for decoding, of JFIF and Adobe, and the requested metadata."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return b"".join(kept) + data[at:]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : end]
        # JFIF's and Adobe's segments tell how colours are stored, unless they are too short.
        colours = len(body) >= {0xE0: 14, 0xEE: 12}.get(marker, 1 << 16)
        beside = (0xE0 <= marker <= 0xEF and not colours) or marker == 0xFE
        asked = (exif and body.startswith(_EXIF)) or (profile and body.startswith(_PROFILE))
        if not beside or asked:
            kept.append(data[at:end])
        at = end
    return None


_TIFF_BESIDE = {270, 271, 272, 285, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34853, 37724, 42112}
"""Tags: descriptions, makers, software, date, artist, XMP, IPTC, Photoshop, GPS."""


def _tiff(data: bytes, exif: bool, profile: bool) -> bytes | None:
    """The first directory without descriptive entries; the others are moved together."""
    orders: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
    order = orders.get(data[:4])
    if order is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    start = number(4, 4)
    count = number(start, 2)
    end = start + 2 + 12 * count
    if not count or end + 4 > len(data):
        return None
    unwanted = _TIFF_BESIDE | (set() if exif else {34665}) | (set() if profile else {34675})
    entries = [data[at : at + 12] for at in range(start + 2, end, 12) if number(at, 2) not in unwanted]
    left = len(entries).to_bytes(2, order)
    table = left + b"".join(entries) + data[end : end + 4]
    return data[:start] + table.ljust(end + 4 - start, b"\0") + data[end + 4 :]
