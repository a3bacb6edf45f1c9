"""The projected discriminator: small networks on the frozen features of an ImageNet classifier.

Sauer et al., "Projected GANs converge faster" (NeurIPS 2021), sections 3 and 4: features of
four depths, mixed by frozen random convolutions across channels and across scales, and one
small discriminator on each. The classifier is EfficientNet-lite0 in timm's implementation.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import spectral_norm

from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.installation import install_line

CLASSIFIER = "tf_efficientnet_lite0"
WIDTH = 64
"""Channels of the mixed features."""
STRIDES = (4, 8, 16, 32)
"""Strides of the four feature maps, in px of the classifier's input."""


class ProjectedDiscriminator(nn.Module):
    """Images (B, 3, R, R) in [-1, 1] to logits (B, 4), one for each depth of the classifier.

    side: the classifier sees images resized to it (bilinear), a power of two, 64 or more.
    features: the frozen classifier, from images to its feature maps; `load_features` makes one.
    Only `heads` are trained. Their batch norms use the statistics of the current batch,
    so these differ between processes and micro-batches.
    """

    def __init__(self, features: nn.Module, channels: Sequence[int], side: int = 128) -> None:
        super().__init__()
        self.side = side
        self.features = features.eval().requires_grad_(False)
        sides = [side // stride for stride in STRIDES]
        self.across_channels = nn.ModuleList(nn.Conv2d(count, WIDTH, 1, bias=False) for count in channels)
        self.across_scales = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False) for _ in sides)
        for mixer in (*self.across_channels, *self.across_scales):
            nn.init.kaiming_normal_(mixer.weight, nonlinearity="linear")
            mixer.requires_grad_(False)
        self.heads = nn.ModuleList(_head(side) for side in sides)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, high for real."""
        if images.shape[-1] != self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        maps = self.features(images.contiguous(memory_format=torch.channels_last))
        deeper: Tensor | None = None
        logits: list[Tensor] = []
        for index in reversed(range(len(self.heads))):
            mixed = self.across_channels[index](maps[index])
            if deeper is not None:
                # The sum of two signals of equal strength: the root preserves the variance.
                mixed = (mixed + F.interpolate(deeper, scale_factor=2, mode="bilinear")) / 2**0.5
            deeper = self.across_scales[index](mixed)
            logits.append(self.heads[index](deeper).flatten(1))
        return torch.cat(logits[::-1], dim=1)

    def trained_state(self) -> dict[str, Tensor]:
        """The state without that of the classifier, which is the same in every run."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("features.")}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from `trained_state()`."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith("features.")}
        self.load_state_dict(state | own)


def load_projected(side: int, device: torch.device) -> ProjectedDiscriminator:
    """A new projected discriminator, with heads and mixers initialised from PyTorch's random state."""
    features, channels = load_features()
    return ProjectedDiscriminator(features, channels, side).to(device).to(memory_format=torch.channels_last)


def load_features() -> tuple[nn.Module, list[int]]:
    """EfficientNet-lite0 as feature maps at strides 4 … 32, and their channels.

    Raises WranganError if timm or the weights are missing, FileError for a different file.
    """
    path = weights.find_weights(weights.EFFICIENTNET_LITE0, "the projected discriminator")
    try:
        import timm
    except ImportError as error:
        raise WranganError(f"the projected discriminator needs timm: {install_line('projected')}") from error
    stored = torch.load(path, map_location="cpu", weights_only=True)
    whole = timm.create_model(CLASSIFIER, pretrained=False)
    # The file names the same layers differently, in the same order.
    renamed = dict(zip(whole.state_dict(), stored.values(), strict=True))
    net: Any = timm.create_model(CLASSIFIER, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4))
    net.load_state_dict({name: renamed[name] for name in net.state_dict()})
    fold_batch_norms(net.eval())
    return net, list(net.feature_info.channels())


def fold_batch_norms(network: nn.Module) -> None:
    """Merge each batch norm that follows a convolution into it; the activation after it is kept.

    In evaluation mode both are linear; merging saves one pass over memory.
    """
    for module in list(network.modules()):
        convolution: str | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and convolution is not None:
                fused = fuse_conv_bn_eval(getattr(module, convolution), child)
                setattr(module, convolution, fused)
                # timm's batch norm includes the activation.
                setattr(module, name, getattr(child, "act", nn.Identity()))
            convolution = name if isinstance(child, nn.Conv2d) else None


def _head(side: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = WIDTH
    while side > 4:
        layers += [_conv(width, 2 * WIDTH, 4, stride=2), nn.BatchNorm2d(2 * WIDTH, track_running_stats=False)]
        layers += [nn.LeakyReLU(0.2)]
        width, side = 2 * WIDTH, side // 2
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(width, 1, side)))


def _conv(inputs: int, outputs: int, side: int, stride: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, side, stride, padding=1, bias=False))


def projected_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss from logits (B, n): mean max(0, 1 - real) + max(0, 1 + fake)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def projected_generator_loss(fake: Tensor) -> Tensor:
    """The generator's part of the hinge loss: mean of -logits."""
    return -fake.mean()
