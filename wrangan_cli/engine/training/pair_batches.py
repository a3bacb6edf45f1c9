"""Batches of pairs for training, with images slightly degraded to resemble photographs."""

import copy
import io
import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.image_sets import batch_indices
from wrangan_cli.engine.data.images import to_pillow, to_tensor
from wrangan_cli.engine.models.encoders.blocks import resized
from wrangan_cli.engine.models.pairs import SEED_STRIDE, Pairs


class PairBatches:
    """Batch after batch. The choice of pairs and their degradation depend only on the seed and the number of
    pairs seen, so that a resumed training continues exactly, with any number of processes."""

    def __init__(
        self, pairs: Pairs, batch: int, side: int, seed: int, rows: Sequence[int], degrade: bool = True
    ) -> None:
        """side: side of the images in px. rows: rows of each batch to return (the shard of one process)."""
        self.pairs, self.batch, self.side, self.seed = pairs, batch, side, seed
        self.rows, self.degrade = list(rows), degrade
        self.seen = 0
        """Number of pairs so far."""
        self._meta = False

    def next_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """w (B, style_dim) and images (B, 3, side, side) in [-1, 1] of the next batch, on `device`."""
        if self._meta:
            shape = len(self.rows), 3, self.side, self.side
            w = torch.empty(len(self.rows), self.pairs.w.shape[1], device="meta")
            return w, torch.empty(shape, device="meta")
        chosen = batch_indices(len(self.pairs), self.batch, self.seed, self.seen)[self.rows]
        images = resized(self.pairs.images(chosen), self.side)
        if self.degrade:
            images = torch.stack(
                [
                    degraded(image, random_generator(self.seed * SEED_STRIDE + self.seen + row))
                    for row, image in zip(self.rows, images, strict=True)
                ]
            )
        self.seen += self.batch
        return self.pairs.w[torch.from_numpy(chosen)].to(device), images.to(device)

    def on_meta(self) -> Self:
        """A copy that yields only shapes."""
        twin = copy.copy(self)
        twin._meta = True
        return twin


def degraded(image: Tensor, rng: torch.Generator) -> Tensor:
    """An image (3, R, R) in [-1, 1] degraded as by a camera, scanner or web page: slightly changed colours
    and, each in every second image, a smaller size, noise, JPEG. It is not moved or mirrored, so w stays
    valid.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=rng).item()

    def coin() -> bool:
        return between(0, 1) < 0.5

    side = image.shape[-1]
    grey = image.mean(dim=0, keepdim=True)
    image = grey + (image - grey) * between(0.7, 1.2)
    gains = 1 + 0.04 * torch.randn(3, 1, 1, generator=rng)
    image = (image * between(0.85, 1.15) * gains + between(-0.1, 0.1)).clamp(-1, 1)
    small = side
    if coin():
        small = max(8, round(side * math.exp(between(math.log(0.25), 0))))
        image = F.interpolate(image[None], size=(small, small), mode="area")[0]
    if coin():
        image = image + between(0, 0.1) * torch.randn(image.shape, generator=rng)
    if coin():
        image = _jpeg(image.clamp(-1, 1), quality=round(between(30, 95)))
    if small < side:
        image = F.interpolate(image[None], size=(side, side), mode="bicubic")[0]
    return image.clamp(-1, 1)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    to_pillow(image).save(stream, "JPEG", quality=quality)
    return to_tensor(Image.open(stream))
