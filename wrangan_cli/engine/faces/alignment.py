"""Cut faces out of photographs, framed as in FFHQ, and put edited faces back.

The frame follows the recipe that Karras et al. published with FFHQ ("A Style-Based
Generator Architecture for GANs", 2019): a square along the line of the eyes, sized by
the distances between the eyes and from the eyes to the mouth. FFHQ's 68 landmarks are
replaced by the 5 of MTCNN, and the frame is corrected for the difference (docs/alignment.md).

Coordinates are pixels of the upright photograph; the centre of the first pixel is (0.5, 0.5).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from wrangan_cli.engine.base.errors import FileError, cause_of
from wrangan_cli.engine.base.files import replaced_atomically

Points = NDArray[np.float64]

FORMAT = "wrangan-alignment"
SUFFIX = ".align.json"
# By measurement on 259 FFHQ photographs, MTCNN's points would make the frame 1.5 % too large and
# place it 1 % too low. The published factor is 0.1 (towards the mouth), the published scale 1.
CENTRE_TOWARDS_MOUTH = 0.062
FRAME_SCALE = 0.985


@dataclass(frozen=True)
class Transform:
    """The photograph and the position from which an aligned face was cut out, for paste-back."""

    quad: Points
    """Corners of the frame, (4, 2): top left, bottom left, bottom right, top right."""
    photo: str
    """File name of the photograph, without folders."""
    photo_sha256: str
    photo_size: tuple[int, int]
    """Width and height in px, upright."""
    size: int
    """Side of the aligned image in px."""
    confidence: float
    face: int = 1
    """1 is the largest face of the photograph."""
    faces: int = 1
    """Number of faces in the photograph."""
    min_confidence: float = 0.0
    """The detector's threshold when the faces were counted."""


def ffhq_quad(landmarks: Points) -> Points:
    """FFHQ's frame of a face with 5 landmarks (5, 2).

    Returns (4, 2): top left, bottom left, bottom right, top right corner.
    """
    left_eye, right_eye, _, mouth_left, mouth_right = landmarks
    eyes = (left_eye + right_eye) / 2
    across = right_eye - left_eye
    down = (mouth_left + mouth_right) / 2 - eyes
    # Half of the frame's upper side: along the eyes, and perpendicular to eyes-to-mouth.
    half = across + np.array([down[1], -down[0]])
    length = max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down)) * FRAME_SCALE
    half = half / max(float(np.hypot(*half)), 1e-9) * length
    side = np.array([-half[1], half[0]])
    centre = eyes + CENTRE_TOWARDS_MOUTH * down
    return np.stack([centre - half - side, centre - half + side, centre + half + side, centre + half - side])


def quad_side(quad: Points) -> float:
    """Side of a frame in px of the photograph."""
    return float(np.hypot(*(quad[3] - quad[0])))


def crop_quad(photo: Image.Image, quad: Points, size: int) -> Image.Image:
    """The square `quad` of an RGB photograph as size × size px.

    Enlarged by bicubic interpolation; reduced by a box filter. The area outside of the
    photograph shows its mirror image, increasingly blurred and faded to its median colour.
    """
    factor = int(quad_side(quad) / size / 2)
    if factor > 1:
        # Average whole blocks of pixels first, so that the following steps cost the same for any photograph.
        photo, quad = photo.reduce(factor), quad / factor
    side = quad_side(quad)
    low = np.floor(quad.min(axis=0)).astype(int) - 3
    high = np.ceil(quad.max(axis=0)).astype(int) + 3
    region = _padded_region(photo, (*low, *high), side)
    local = quad - low
    fine = size * min(4, max(1, math.ceil(side / size)))
    right, down = (local[3] - local[0]) / fine, (local[1] - local[0]) / fine
    matrix = (right[0], down[0], local[0, 0], right[1], down[1], local[0, 1])
    crop = region.transform((fine, fine), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return crop.reduce(fine // size) if fine > size else crop


def paste_back(
    photo: Image.Image,
    edited: Image.Image,
    quad: Points,
    feather: float = 0.1,
    keep_detail: bool = False,
) -> Image.Image:
    """Put an aligned face of any size back into its frame of an RGB photograph.

    feather: width of the soft border, as a fraction of the frame's side.
    keep_detail: add the difference between the edited and the aligned face to the
    photograph, in place of the edited face, so that the photograph keeps its fine detail. Pixels
    outside of the frame are unchanged.
    """
    left, top = np.maximum(np.floor(quad.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(quad.max(axis=0)), photo.size).astype(int)
    if left >= right or top >= bottom:
        return photo.copy()
    box = (int(left), int(top), int(right), int(bottom))
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    across, down = quad[3] - quad[0], quad[1] - quad[0]
    inverse = np.linalg.inv(np.stack([across, down], axis=1))
    s, t = np.tensordot(inverse, np.stack([x, y]) - quad[0][:, None, None], axes=1)
    inside = np.minimum.reduce([s, 1 - s, t, 1 - t])
    ramp = np.clip(inside / max(feather, 1e-6), 0, 1)
    mask = (ramp * ramp * (3 - 2 * ramp))[..., None]

    original = np.asarray(photo.crop(box), dtype=np.float32)
    face = _warped_back(edited, quad, inverse, box)
    if keep_detail:
        aligned = crop_quad(photo, quad, edited.width)
        face = original + face - _warped_back(aligned, quad, inverse, box)
    blended = original + mask * (face - original)
    pasted = photo.copy()
    pasted.paste(Image.fromarray(blended.round().clip(0, 255).astype(np.uint8)), box[:2])
    return pasted


def save_transform(path: Path, transform: Transform) -> None:
    """Write a transform as JSON, atomically."""
    record = {
        "format": FORMAT,
        "version": 1,
        "photo": transform.photo,
        "photo_sha256": transform.photo_sha256,
        "photo_size": list(transform.photo_size),
        "size": transform.size,
        "quad": [[round(float(x), 4) for x in corner] for corner in transform.quad],
        "confidence": round(transform.confidence, 4),
        "face": transform.face,
        "faces": transform.faces,
        "min_confidence": transform.min_confidence,
    }
    with replaced_atomically(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def load_transform(path: Path) -> Transform:
    """Read what `save_transform` wrote; FileError if it is not that."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileError(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise FileError(path, f"not readable as JSON ({cause_of(error)})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FileError(path, "not an alignment (made by `wrangan align`)")
    try:
        return _transform_of(record)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"broken alignment ({type(error).__name__}: {error})") from error


def _transform_of(record: dict[str, Any]) -> Transform:
    quad = np.array(record["quad"], dtype=np.float64)
    if quad.shape != (4, 2) or not np.isfinite(quad).all() or quad_side(quad) < 1:
        raise ValueError("quad is not four corners of a square")
    width, height = record["photo_size"]
    return Transform(
        quad=quad,
        photo=str(record["photo"]),
        photo_sha256=str(record["photo_sha256"]),
        photo_size=(int(width), int(height)),
        size=int(record["size"]),
        confidence=float(record["confidence"]),
        face=int(record["face"]),
        faces=int(record["faces"]),
        min_confidence=float(record["min_confidence"]),
    )


def _warped_back(
    face: Image.Image, quad: Points, inverse: Points, box: tuple[int, int, int, int]
) -> NDArray[np.float32]:
    """An aligned face warped onto `box` of the photograph: (height, width, 3), 0…255."""
    side = quad_side(quad)
    if face.width > 2 * side:
        # Pillow's transform samples single pixels: without this, a large face would alias.
        smaller = max(1, round(side))
        face = face.resize((smaller, smaller), Image.Resampling.BICUBIC)
    # A border of repeated pixels, since Pillow's bicubic transform leaves the edge empty.
    border = 2
    edged = Image.fromarray(
        np.pad(np.asarray(face), ((border, border), (border, border), (0, 0)), mode="edge")
    )
    to_face = inverse * np.array([[face.width], [face.height]])
    origin = to_face @ (np.array(box[:2]) - quad[0]) + border
    matrix = (to_face[0, 0], to_face[0, 1], origin[0], to_face[1, 0], to_face[1, 1], origin[1])
    size = (box[2] - box[0], box[3] - box[1])
    warped = edged.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(warped, dtype=np.float32)


def _padded_region(photo: Image.Image, box: tuple[int, int, int, int], frame: float) -> Image.Image:
    """`photo.crop(box)`, with the area outside mirrored, blurred and faded.

    The pixels of the photograph are unchanged (FFHQ's recipe also blurs them near the edges).
    """
    left, top, right, bottom = box
    if left >= 0 and top >= 0 and right <= photo.width and bottom <= photo.height:
        return photo.crop(box)
    columns = _mirrored(np.arange(left, right), photo.width)
    rows = _mirrored(np.arange(top, bottom), photo.height)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    used = np.asarray(photo.crop((int(x0), int(y0), int(x1), int(y1))))
    mirrored = used[(rows - y0)[:, None], (columns - x0)[None, :]]
    blurred = Image.fromarray(mirrored).filter(ImageFilter.GaussianBlur(0.02 * frame))
    median = np.median(used.reshape(-1, 3), axis=0).astype(np.float32)
    x, y = np.arange(left, right), np.arange(top, bottom)
    outside_x = np.maximum(np.maximum(-x, x - (photo.width - 1)), 0)
    outside_y = np.maximum(np.maximum(-y, y - (photo.height - 1)), 0)
    # Distance from the photograph, in units of 0.3 frames, at which only the median is left.
    away = np.maximum(outside_x[None, :], outside_y[:, None])[..., None] / (0.3 * frame)
    result = mirrored.astype(np.float32)
    result += (np.asarray(blurred, dtype=np.float32) - result) * np.clip(10 * away, 0, 1)
    result += (median - result) * np.clip(away, 0, 1)
    return Image.fromarray(result.round().astype(np.uint8))


def _mirrored(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices outside of 0…length-1, reflected at the edge."""
    period = 2 * length
    folded = index % period
    return np.where(folded < length, folded, period - 1 - folded)
