"""Identity distance: how much two images of faces look like different persons.

Network: dlib's face recognition ResNet (128 numbers, weights of face_recognition_models, CC0), run
by package dlib (`dlib-bin`). It was trained so that two pictures of the same person are closer
than 0.6, and those of different persons farther apart.

Protocol: images as aligned for FFHQ. They are rounded to 8 bits; below 161 px a side they are
enlarged bilinearly to 256. No detector is run: alignment determines the position of the face, so no
image drops out because a detector missed it (which would favour the methods that fail most).
The box is BOX, the median of dlib's detections over aligned photographs; in it the
five-point predictor finds the eyes and the nose, by which dlib crops the face (150 px).
The metric is the Euclidean distance between the two descriptors. Lower is better. For faces only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.base.weights import FACE_DESCRIPTOR, FACE_LANDMARKS, find_weights
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.metrics.base import PairMetric
from wrangan_cli.engine.models.perceptual import for_metric

BOX = (46 / 256, 81 / 256, 201 / 256, 219 / 256)
"""Left, top, right, bottom of the face in an aligned image, as fractions of its side."""


class FaceDescriptors:
    """Images (B, 3, H, W) in [-1, 1] → descriptors (B, 128), float32 on the CPU."""

    def __init__(self, dlib: Any, landmarks: Any, network: Any) -> None:
        self._dlib, self._landmarks, self._network = dlib, landmarks, network

    def __call__(self, images: Tensor) -> Tensor:
        rows = []
        for image in to_uint8(for_metric(images.detach().float().cpu().clamp(-1, 1))):
            side = image.shape[-1]
            pixels = image.permute(1, 2, 0).contiguous().numpy()
            box = self._dlib.rectangle(*(round(fraction * side) for fraction in BOX))
            found = self._network.compute_face_descriptor(pixels, self._landmarks(pixels, box))
            rows.append(torch.tensor(list(found)))
        return torch.stack(rows)


def load_descriptors() -> FaceDescriptors:
    """The network on the CPU; a WranganError that names the extra if package or weights are missing."""
    try:
        import dlib
    except ImportError as error:
        raise WranganError(f"identity: package dlib is not installed; {install_line('identity')}") from error
    landmarks = dlib.shape_predictor(str(find_weights(FACE_LANDMARKS, "identity")))
    network = dlib.face_recognition_model_v1(str(find_weights(FACE_DESCRIPTOR, "identity")))
    return FaceDescriptors(dlib, landmarks, network)


def _load(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:  # noqa: ARG001
    describe = load_descriptors()
    return lambda x, y: (describe(x) - describe(y)).norm(dim=1)


METRIC = PairMetric(
    "identity",
    False,
    "distance of dlib's 128-d face descriptors (one person: below 0.6), aligned faces, fixed box; "
    "8-bit images, those below 161 px enlarged bilinearly to 256",
    _load,
)
