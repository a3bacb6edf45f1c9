"""Cut faces out of photographs, and put them back."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

from wrangan_cli.api.pictures import Face, Picture, whole
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.faces.align_photos import check_alignment, check_feather, check_square, face_side
from wrangan_cli.engine.faces.alignment import crop_quad, paste_back
from wrangan_cli.engine.faces.detection import MIN_CONFIDENCE, FaceDetector


def align(
    photo: Picture,
    *,
    size: int | None = None,
    max_faces: int | None = None,
    min_confidence: float = MIN_CONFIDENCE,
) -> list[Face]:
    """Cut the faces out of a photograph, framed as in FFHQ, as the bundled models of faces expect.

    photo: a file, a Pillow image, an array (H, W, 3) of uint8 in RGB, or a tensor (3, S, S) in [-1, 1].
    size: side of the aligned images, 16 to 4096 px; None: for each face the side of its frame in the
    photograph, within 256 to 1024 px. max_faces: maximum number of faces, largest first; None: all.
    min_confidence: ignore faces detected with less confidence than this, 0 to 1.

    Returns the faces, largest first, or an empty list. `face.image` is the aligned
    picture; pass the face itself to `invert` and to `paste`.

    Raises WranganError for a photograph that cannot be used and for settings that are out of range.
    """
    check_alignment(size, max_faces, min_confidence)
    picture = whole(photo)
    found = _detector(min_confidence).detect(picture)[:max_faces]
    return [
        Face(
            image=crop_quad(picture, face.quad, face_side(face.quad, size)),
            photo=picture,
            quad=face.quad,
            confidence=face.confidence,
        )
        for face in found
    ]


def paste(edited: Picture, face: Face, *, feather: float = 0.1, keep_detail: bool = False) -> Image.Image:
    """Put an edited face back into its photograph, with a soft border.

    edited: the aligned face after editing, of any size, as returned by `edit` and `render`. face: the face
    from `align`. feather: width of the soft border as a fraction of the frame's side, 0 to 0.5. keep_detail:
    add only the difference between the edited and the aligned face, so that the photograph keeps its fine
    detail.

    Returns the whole photograph, 8-bit RGB; pixels outside the frame are unchanged. Raises WranganError for
    a picture that is not square, a face that is not from `align`, and a feather that is out of range.
    """
    check_feather(feather)
    if not isinstance(face, Face):
        raise UsageError(
            f"face: {type(face).__name__}: expected a face from `align`, which records its place"
        )
    picture = whole(edited, "edited face")
    check_square(Path(edited) if isinstance(edited, str | Path) else Path("edited face"), picture)
    return paste_back(face.photo, picture, face.quad, feather, keep_detail)


@lru_cache(maxsize=1)
def _detector(min_confidence: float) -> FaceDetector:
    return FaceDetector(min_confidence)
