"""Inception features of images, for FID, KID, precision and recall.

Network: Inception-v3 of 2015-12-05 as TorchScript, 2048 values after the last pooling.
Protocol, in this order:

1. values in [-1, 1] are rounded to 8 bits, as in a saved image;
2. images with a side below 161 px are enlarged bilinearly to 256;
3. bilinear to 299 × 299 by the rule of TensorFlow 1 (source px = target px · n / 299, no
   antialiasing), which the original network applies itself; there is no other resizing;
4. (value - 128) / 128 into the network, float32.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import FileError, WranganError, cause_of
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.base.weights import INCEPTION, find_weights
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.models.perceptual import for_metric

FEATURES = 2048
SIDE = 299
PROTOCOL = "Inception-v3 2015-12-05, 8-bit images, those below 161 px enlarged bilinearly to 256"


class InceptionFeatures:
    """images (B, 3, H, W) in [-1, 1] → features (B, 2048), float32 on the CPU."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = network
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = to_uint8(images).to(self.device, torch.float32)
        return self.network((as_tensorflow_resizes(for_metric(pixels), SIDE) - 128) / 128).float().cpu()


def load_inception(device: torch.device | str = "cpu", wanted_by: str = "fid") -> InceptionFeatures:
    """The network on `device`; WranganError if its file is missing, FileError if it is broken.

    The file holds TorchScript, which runs when loaded, so its sha256 is checked first.
    """
    path = find_weights(INCEPTION, wanted_by)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that TorchScript is deprecated
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, OSError) as error:
        raise FileError(path, f"not readable as TorchScript ({cause_of(error)})") from error
    return InceptionFeatures(network, torch.device(device))


def extract_features(
    inception: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Features of all images of `batches`: (N, 2048) float32 on the CPU.

    progress: called with the number of images done. Raises WranganError for features
    that are not finite (broken images or weights) and for no images.
    """
    parts, done = [], 0
    for images in batches:
        features = inception(images)
        if not features.isfinite().all():
            raise WranganError("Inception features are not finite, because the model's images are not")
        parts.append(features)
        done += len(images)
        if progress:
            progress(done)
    if not parts:
        raise WranganError("no images to extract features from")
    return torch.cat(parts)


def as_tensorflow_resizes(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) → (B, C, side, side), bilinear by the rule of TensorFlow 1."""
    rows, columns = (_interpolation(n, side).to(images) for n in images.shape[-2:])
    return rows @ images @ columns.T


def require_samples(name: str, least: int, generated: Tensor, reference: Tensor) -> None:
    """WranganError if either set has fewer than `least` images."""
    fewest = min(len(generated), len(reference))
    if fewest < least:
        raise WranganError(f"{name}: needs {least} images or more in each set, one has {fewest}")


def require_package(name: str) -> None:
    """WranganError if torch-fidelity is not installed."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise WranganError(f"{name}: package torch-fidelity is not installed; {install_line()}")


def _interpolation(n: int, side: int) -> Tensor:
    """(side, n) matrix that interpolates n samples at i · n / side."""
    position = torch.arange(side, dtype=torch.float64) * (n / side)
    low = position.floor().long().clamp(max=n - 1)
    high = (low + 1).clamp(max=n - 1)
    fraction = (position - low).unsqueeze(1)
    eye = torch.eye(n, dtype=torch.float64)
    return (1 - fraction) * eye[low] + fraction * eye[high]
