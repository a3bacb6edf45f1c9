"""VGG16 features of images, as used by the authors of precision and recall (Kynkäänniemi et al. 2019).

Network: torchvision's VGG16 of ImageNet, the 4096 values of its second fully connected layer after the
ReLU. The authors' file (a TensorFlow pickle) holds a VGG16 from another training on ImageNet; torch-fidelity
and the usual PyTorch ports use torchvision's too. Protocol, in this order:

1. values in [-1, 1] are rounded to 8 bits, as in a saved image;
2. images with a side below 161 px are enlarged bilinearly to 256;
3. bilinear to 224 × 224 by the rule of TensorFlow 1, as torch-fidelity does;
4. to [0, 1], minus ImageNet's mean, over its standard deviation, float32.
"""

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.weights import TORCHVISION_VGG, find_weights
from wrangan_cli.engine.data.images import to_uint8
from wrangan_cli.engine.metrics.inception import as_tensorflow_resizes
from wrangan_cli.engine.models.perceptual import for_metric, read_state

SIDE = 224
PROTOCOL = (
    "VGG16 fc2 at 224 px (torchvision's weights), 8-bit images, those below 161 px enlarged bilinearly to 256"
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16Features:
    """images (B, 3, H, W) in [-1, 1] → features (B, 4096), float32 on the CPU, not negative."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        """network: images (B, 3, 224, 224), normalised, → (B, 4096)."""
        self.network, self.device = network, device
        self.mean, self.std = (torch.tensor(part, device=device)[:, None, None] for part in (_MEAN, _STD))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = for_metric(to_uint8(images).to(self.device, torch.float32))
        return self.network((as_tensorflow_resizes(pixels, SIDE) / 255 - self.mean) / self.std).float().cpu()


def load_vgg16(device: torch.device | str = "cpu", wanted_by: str = "precision-vgg16") -> VGG16Features:
    """The network on `device`; WranganError if its file is missing, FileError if it is a different one."""
    path = find_weights(TORCHVISION_VGG, wanted_by)
    from torchvision.models import vgg16

    # On the meta device nothing is initialised or downloaded; the tensors of the file are assigned instead.
    with torch.device("meta"):
        network = vgg16()
    try:
        network.load_state_dict(read_state(path), assign=True)
    except RuntimeError as error:
        raise FileError(path, f"not torchvision's VGG16 ({str(error).splitlines()[-1].strip()})") from error
    network.classifier = network.classifier[:5]  # fc1, ReLU, dropout, fc2, ReLU
    place = torch.device(device)
    return VGG16Features(network.to(place).eval().requires_grad_(False), place)
