"""The brightness of the middle of an aligned face, which other directions should not change."""

import torch
from torch import Tensor

REGION = (8 / 16, 12 / 16, 5 / 16, 11 / 16)
"""Top, bottom, left, right, as fractions of the side: cheeks, nose and upper lip of a face aligned as
in FFHQ. It starts below the eyes, so that glasses do not count as dark skin."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue (Rec. 709)."""
SIDE = 64
"""Side in px that suffices, since area averaging preserves the mean over the region."""


class BrightnessScorer:
    """Mean luminance of the middle of the face, in stored (gamma-encoded) values: -1 black, 1 white."""

    side = SIDE

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), clipped to [-1, 1] → (B, 1) float32."""
        height, width = images.shape[-2:]
        top, bottom, left, right = REGION
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        colours = images[..., rows, columns].float().clamp(-1, 1).mean(dim=(2, 3)).cpu()
        return (colours * torch.tensor(LUMINANCE)).sum(dim=1, keepdim=True)
