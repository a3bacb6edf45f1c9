"""Pictures whose side information is long, damaged or wrong: the pixels are what they are."""

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.data.image_reading import open_image


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels()).save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return len(body).to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")


def png_with(*chunks: bytes) -> bytes:
    data = saved("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = saved("JPEG", quality=95)
    return data[:2] + bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


long_text = zlib.compress(bytes(40 << 20))
PNGS = {
    "long text": png_with(chunk(b"tEXt", b"Comment\0" + b"x" * (2 << 20))),
    "long packed text": png_with(chunk(b"zTXt", b"Comment\0\0" + long_text)),
    "many long texts": png_with(*[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(15 << 20)))] * 5),
    "long XMP": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long_text)),
    "wrong checksum": png_with(chunk(b"tEXt", b"Comment\0text", checksum=1)),
    "wrong checksum of a time": png_with(chunk(b"tIME", bytes(7), checksum=1)),
    "broken text": png_with(chunk(b"zTXt", b"Comment\0\0no zlib")),
    "text without an end": png_with(chunk(b"iTXt", b"no end")),
    "broken Exif": png_with(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "large profile": png_with(chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20 << 20)))),
    "short profile": png_with(chunk(b"iCCP", b"")),
    "short animation": png_with(chunk(b"acTL", b"\0")),
    "short resolution": png_with(chunk(b"pHYs", b"\0")),
}
JPEGS = {
    "photoshop": jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x04"),
    "photoshop, length": jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x03\xed\x00\x00\xff\xff\xff\xff"),
    "photoshop, cut": jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x03\xed\x03a"),
    "exif": jpeg_with(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "exif, short": jpeg_with(0xE1, b"Exif\0\0I"),
    "profile": jpeg_with(0xE2, b"ICC_PROFILE\0"),
    "adobe": jpeg_with(0xEE, b"Adobe"),
    "jfif": jpeg_with(0xE0, b"JFIF\0"),
    "mpo": jpeg_with(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\2\xb0"),
    "xmp": jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<" * 60000),
}


@pytest.mark.parametrize("name", PNGS)
def test_png(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNGS[name])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels())


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEGS[name])
    expected = np.asarray(Image.open(io.BytesIO(saved("JPEG", quality=95))))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.jpg")), expected)


def test_orientation_and_pixels_stay_where_a_text_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    data = png_with(chunk(b"eXIf", body), chunk(b"tEXt", b"a\0b", checksum=1))
    (tmp_path / "a.png").write_bytes(data)
    with caplog.at_level(logging.WARNING, "wrangan"):
        turned = np.asarray(open_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(turned, np.rot90(pixels(), -1))
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'a.png'}: ")
    assert "damaged metadata ignored" in line


def test_a_profile_stays_where_a_text_is_wrong(tmp_path: Path) -> None:
    from tests.icc_profiles import ADOBE, rgb_profile

    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(rgb_profile(ADOBE)))
    for name, extra in (("a.png", []), ("b.png", [chunk(b"tEXt", b"a\0b", checksum=1)])):
        (tmp_path / name).write_bytes(png_with(profile, *extra))
    first, second = (np.asarray(open_image(tmp_path / name)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(first, second)
    assert (first != pixels()).any()


def test_tiff(tmp_path: Path) -> None:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[305] = "a description", "a program"
    data = bytearray(saved("TIFF", tiffinfo=tags))
    start = struct.unpack("<I", data[4:8])[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0], 12):
        if struct.unpack("<H", data[at : at + 2])[0] == 270:
            data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"  # beyond the end
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.tif")), pixels())


@pytest.mark.parametrize("name", ["pixels", "header", "cut"])
def test_damaged_pixels_are_no_side_information(name: str, tmp_path: Path) -> None:
    data = bytearray(png_with(chunk(b"tEXt", b"a\0b", checksum=1)))
    where = data.index(b"IDAT" if name == "pixels" else b"IHDR")
    data[where + 6] ^= 0xFF
    (tmp_path / "a.png").write_bytes(saved("PNG")[:400] if name == "cut" else bytes(data))
    with pytest.raises(FileError, match=r"broken image|not an image"):
        open_image(tmp_path / "a.png")
