"""A second discriminator, on features of a fixed pretrained network.

Small trained heads judge the feature maps of the backbone of a perceptual distance, as in
vision-aided training (Kumari et al. 2022) and Projected GAN (Sauer et al. 2021). It stands
beside StyleGAN2's discriminator and does not replace it: Algorithm 2 and every checkpoint
know only that one.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from wrangan_cli.engine.perceptual import PerceptualDistance, for_loss


class FeatureDiscriminator(nn.Module):
    """Images → one mean logit per feature map of the backbone."""

    def __init__(self, backbone: PerceptualDistance, resolution: int, width: int = 64) -> None:
        super().__init__()
        # Kept out of the state dict: its weights come from their own file.
        self._backbone = [backbone]
        with torch.no_grad():
            maps = self._maps(torch.zeros(1, 3, resolution, resolution))
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(features.shape[1], width, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 3, padding=1)),
            )
            for features in maps
        )

    def _maps(self, images: Tensor) -> list[Tensor]:
        backbone = self._backbone[0]
        hidden, maps = (for_loss(images) - backbone.shift) / backbone.scale, []
        for tap in backbone.taps:
            hidden = tap(hidden)
            # A common scale for maps whose sizes differ by orders; no statistic crosses images.
            maps.append(hidden / (hidden.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt())
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, R, R) in [-1, 1] → logits (B, number of maps)."""
        maps = self._maps(images)
        logits = [head(features).mean(dim=(1, 2, 3)) for head, features in zip(self.heads, maps, strict=True)]
        return torch.stack(logits, dim=1)
