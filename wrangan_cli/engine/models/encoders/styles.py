"""Encoders from images into W+, with a head for every latent: e4e, pSp, and ReStyle over either.

e4e: Tov et al. 2021 (SIGGRAPH). pSp: Richardson et al. 2021 (CVPR). ReStyle: Alaluf et al.
2021 (ICCV). One class covers them all: heads on three depths of the body, or all on the
last one; a first w with an offset for each further latent, or independent latents; and three
input channels, or six, of which the last three hold the current reconstruction.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base.choices import Backbone, Heads, check_choices
from wrangan_cli.engine.models.encoders.blocks import (
    EFFICIENTNET,
    PooledHeads,
    StyleHead,
    body_layers,
    encoder_input,
    laid_out,
    last_map,
    stage_side,
)
from wrangan_cli.engine.models.encoders.w import Encoder
from wrangan_cli.engine.models.generator import Generator


@dataclass(frozen=True)
class StyleEncoderConfig:
    """Shape of an encoder into W+."""

    style_dim: int
    """Length of w."""
    num_latents: int
    """Rows of a W+ code, and so heads."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Feature maps of the stages; each halves the size."""
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    """Residual blocks of each stage."""
    input_side: int = 256
    """Side in px to which images are resized."""
    input_channels: int = 3
    """3, or 6: the image and its current reconstruction (ReStyle)."""
    backbone: Backbone = "ir-se"
    """`ir-se`, `resnet`, or `efficientnet-lite0`, which has fixed widths and blocks (empty here)."""
    heads: Heads = "pyramid"
    """`pyramid`: on the last three stages; `single`: all on the last one; `pooled`: on 4×4 means of it,
    with a shared hidden layer."""
    deltas: bool = True
    """Whether all heads except the first predict offsets from its w (e4e), or independent latents (pSp)."""
    head_width: int = 0
    """Feature maps in a head (pooled: size of the hidden layer); 0: the length of w."""
    levels: tuple[int, int] = (3, 7)
    """Indices of the first latents that see the middle and the finest stage of the pyramid."""
    passes: int = 1
    """Number of passes over an image; above 1 the network sees the current reconstruction."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.backbone == EFFICIENTNET and self.heads != "pooled":
            raise ValueError(f"backbone {EFFICIENTNET}: expected pooled heads, not {self.heads}")
        if self.heads == "pooled" and not self.deltas:
            raise ValueError("pooled heads predict offsets from one w (deltas)")
        if self.heads == "pyramid" and len(self.widths) < 3:
            raise ValueError(f"{len(self.widths)} widths: heads on a pyramid need three stages or more")
        if self.input_channels not in (3, 6) or (self.input_channels == 3 and self.passes != 1):
            raise ValueError("expected 3 input channels and one pass, or 6")
        if min(self.style_dim, self.num_latents, self.input_side, self.passes) < 1 or self.head_width < 0:
            raise ValueError("style_dim, num_latents, input_side and passes must be 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Plain values for the file's record."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "StyleEncoderConfig":
        """The inverse of `to_json`; raises TypeError or ValueError on a bad field."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)


class StyleEncoder(nn.Module):
    """Images → codes in W+; the prediction is added to the mean of W, or to the codes so far."""

    w_mean: Tensor

    def __init__(self, config: StyleEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.body, self.ends = body_layers(
            config.backbone, config.input_channels, config.widths, config.blocks
        )
        last, _ = last_map(config.backbone, config.widths, config.input_side)
        width, stages = config.head_width or config.style_dim, len(config.widths)
        self.register_buffer("w_mean", torch.zeros(config.style_dim))
        if config.heads == "pooled":
            self.heads: nn.Module = PooledHeads(last, width, config.style_dim, config.num_latents)
            self.laterals = nn.ModuleList()
            return
        heads = nn.ModuleList(
            StyleHead(
                last,
                width,
                config.style_dim,
                stage_side(config.input_side, stages - 1 - self.level(index)),
                # So that the output does not jump when a delta is switched on.
                silent=config.deltas and index > 0,
            )
            for index in range(config.num_latents)
        )
        self.heads = heads
        first = heads[0]
        assert isinstance(first, StyleHead)
        with torch.no_grad():
            first.linear.weight.mul_(0.1)  # start near the mean of W
        self.laterals = nn.ModuleList(
            nn.Conv2d(config.widths[-1 - depth], last, 1) for depth in (1, 2) if config.heads == "pyramid"
        )

    def init_from(self, encoder: Encoder) -> None:
        """Copy body and map into W from an encoder into W, so that the first w is its prediction (with six
        channels, independently of the reconstruction).

        Raises ValueError unless both have the same body and this one pooled heads.
        """
        config, theirs = self.config, encoder.config
        same = (config.backbone, config.style_dim) == (theirs.backbone, theirs.style_dim)
        if not isinstance(self.heads, PooledHeads) or config.backbone != EFFICIENTNET or not same:
            raise ValueError(f"expected an encoder into W of {EFFICIENTNET}, and pooled heads")
        body = {name: tensor.clone() for name, tensor in encoder.body.state_dict().items()}
        stem = next(iter(body))
        missing = config.input_channels - body[stem].shape[1]
        body[stem] = F.pad(body[stem], (0, 0, 0, 0, 0, missing))
        self.body.load_state_dict(body)
        self.heads.first.load_state_dict(encoder.head.state_dict())
        self.w_mean.copy_(encoder.w_mean)

    def level(self, index: int) -> int:
        """The stage that the head of a latent sees: 0 the last, 1 and 2 the finer ones."""
        return 0 if self.config.heads == "single" else sum(index >= start for start in self.config.levels)

    def forward(
        self,
        images: Tensor,
        reconstruction: Tensor | None = None,
        base: Tensor | None = None,
        stage: int | None = None,
    ) -> Tensor:
        """Codes (B, num_latents, style_dim) of images (B, 3, R, R) in [-1, 1].

        reconstruction: the current reconstructions (B, 3, S, S), only for an encoder with six channels.
        base: the codes so far (B, num_latents, style_dim), to which the prediction is added;
        None: the mean of W. stage: with deltas, how many of them to use: 0 gives one w for
        all latents, None uses all deltas.
        """
        config = self.config
        x, maps = encoder_input(images, reconstruction, config.input_channels, config.input_side), []
        x = laid_out(x, config.backbone)
        for index, layer in enumerate(self.body):
            x = layer(x)
            if index in self.ends[-3:]:
                maps.append(x)
        features = [maps[-1]]
        for depth, lateral in enumerate(self.laterals, start=2):
            finer = lateral(maps[-depth])
            coarser = F.interpolate(features[-1], finer.shape[-2:], mode="bilinear", align_corners=True)
            features.append(coarser + finer)
        active = config.num_latents
        if config.deltas and stage is not None:
            active = min(stage + 1, active)
        if isinstance(self.heads, PooledHeads):
            rows = self.heads(features[0], active)
        else:
            assert isinstance(self.heads, nn.ModuleList)
            each = zip(range(active), self.heads, strict=False)
            rows = [head(features[self.level(index)]) for index, head in each]
        if config.deltas:
            silent = [torch.zeros_like(rows[0])] * (config.num_latents - active)
            rows = [rows[0], *(rows[0] + delta for delta in [*rows[1:], *silent])]
        return torch.stack(rows, dim=1) + (self.w_mean if base is None else base)


def encoded(
    encoder: StyleEncoder,
    generator: Generator,
    images: Tensor,
    average: Tensor,
    passes: int | None = None,
) -> Tensor:
    """The codes (B, num_latents, style_dim) of images (B, 3, S, S) after all passes, or the first few.

    average: (1, 3, R, R), the image of the encoder's mean of W, where its codes start: the reconstruction in
    the first pass. With three input channels there is one pass, without a reconstruction.
    """
    codes: Tensor | None = None
    for _ in range(passes or encoder.config.passes):
        reconstruction = None
        if encoder.config.input_channels == 6:
            reconstruction = (
                average.expand(len(images), -1, -1, -1) if codes is None else generator.synthesis(codes)
            )
        codes = encoder(images, reconstruction, codes)
    assert codes is not None
    return codes


@torch.no_grad()
def average_image(generator: Generator, w_mean: Tensor) -> Tensor:
    """The image of the mean of W: (1, 3, R, R)."""
    return generator.synthesis(w_mean[None])
