"""The marks in the metadata of edited pictures: that they were edited, and with which program."""

from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wrangan_cli import __version__

SOFTWARE = f"wrangan {__version__}"
MARK = f"edited with {SOFTWARE}"
"""ASCII, at most 255 characters: it is one block of a GIF's comment."""

_SOFTWARE_TAG, _DESCRIPTION_TAG = 0x0131, 0x010E


def mark_for(kind: str) -> dict[str, Any]:
    """The arguments of `Image.save` that write SOFTWARE and MARK into a file of this kind: text chunks
    `Software` and `Comment` in PNG, `Software` and `ImageDescription` of Exif in JPEG and WebP."""
    if kind == "PNG":
        text = PngInfo()
        text.add_text("Software", SOFTWARE)
        text.add_text("Comment", MARK)
        return {"pnginfo": text}
    exif = Image.Exif()
    exif[_SOFTWARE_TAG], exif[_DESCRIPTION_TAG] = SOFTWARE, MARK
    return {"exif": exif}
