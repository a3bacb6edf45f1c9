"""The kind of an image file, by its first bytes, and advice about kinds that cannot be read."""

from functools import cache

from wrangan_cli.engine.base.installation import install_line, upgrade_line

HEAD = 64
"""Number of initial bytes that determine a file's kind."""
VIDEO_HEAD = 1024
"""Number of initial bytes that tell whether it is a video."""

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0\x10\0\0\0CR", "RAW"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS\0\x01", "PSD"),
    (b"FUJIFILMCCD-RAW", "RAW"),
    (b"IIRO", "RAW"),
    (b"IIRS", "RAW"),
    (b"IIU\0", "RAW"),
)
_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"),
    "RAW": (b"crx ",),
}
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

RAW_SUFFIXES = frozenset(
    {".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".srf", ".sr2", ".orf", ".raf", ".rw2", ".pef", ".srw"}
)
"""Suffixes of raw camera files. Many are TIFF files whose first picture is a thumbnail."""

_ADVICE = {
    "JPEG XL": "a JPEG XL image, which cannot be read: convert it to PNG or JPEG",
    "RAW": "a raw camera file, which cannot be read: develop it to TIFF, PNG or JPEG",
    "JPEG 2000": "a JPEG 2000 image, which this Pillow cannot read: convert it to PNG or JPEG",
}


def is_video(head: bytes) -> bool:
    """Whether these initial bytes are those of a video of a common format: HEAD bytes, or
    VIDEO_HEAD to recognise MPEG transport streams."""
    if head.startswith((b"\x1a\x45\xdf\xa3", b"\0\0\x01\xba", b"FLV\x01", b"OggS", b"\x30\x26\xb2\x75")):
        return True  # Matroska and WebM, MPEG, Flash, Ogg, Windows Media
    if head.startswith(b"RIFF"):
        return head[8:12] == b"AVI "
    if head[4:8] == b"ftyp":
        return kind_of(head) is None
    if head[4:8] in (b"moov", b"mdat", b"wide", b"skip"):
        return True  # QuickTime before it had `ftyp`
    # Packets of equal length, each with the same first byte, preceded by 4 bytes with arrival times in .mts.
    packets = (head[:565:188], head[4:581:192])
    return b"\x47" * 4 in packets


def kind_of(head: bytes) -> str | None:
    """The kind of image with these initial bytes (HEAD bytes); None: not a format of photographs."""
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS:
        return "BMP"
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM" if head[3:4].isdigit() or head[3:4] == b"#" else None
    if head[4:8] == b"ftyp":
        length = int.from_bytes(head[:4], "big")
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))]
        # In this order, since AVIF files also name HEIC's general brands.
        return next((kind for kind, known in _BRANDS.items() if set(known) & set(brands)), None)
    return None


def why_not_read(head: bytes) -> str:
    """Why Pillow cannot read an image with these initial bytes, and what to do."""
    if is_video(head):
        return "a video, not an image: use `wrangan video` for clips"
    kind = kind_of(head)
    if kind == "HEIC":
        return f"a HEIC photograph: {install_line('heif')}, or convert it to JPEG"
    if kind == "AVIF":
        return f"an AVIF image, which this Pillow cannot read: {upgrade_line('pillow')}, or convert it"
    return _ADVICE.get(kind or "", "not an image of a known format")


@cache
def reads_heif() -> bool:
    """Whether HEIC photographs can be read, which needs the extra `heif`; registers it with Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
