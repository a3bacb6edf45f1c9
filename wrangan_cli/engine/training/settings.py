"""Settings for training generators and encoders, from which the options of the commands are made."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from wrangan_cli.engine.base.choices import (
    Backbone,
    EncoderKind,
    Heads,
    Perceptual,
    Precision,
    ResizeFilter,
    SeparateHead,
    StdForm,
    WBackbone,
    check_choices,
)

Tie = Literal["weight", "filter", "layer", "all"]
"""The weights that share one σ."""
_COUNTS = ("images", "batch", "snapshot_images", "keep_snapshots", "ema_images")


def _check(settings: Any, counts: tuple[str, ...], numbers: tuple[str, ...]) -> None:
    """ValueError for an unknown choice, a count below 1, a number that is negative or not finite, and a
    negative seed."""
    check_choices(settings)
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} {getattr(settings, name)}: expected 1 or more")
    for name in numbers:
        if not 0 <= getattr(settings, name) < float("inf"):
            raise ValueError(f"{name} {getattr(settings, name)}: expected a number that is not negative")
    if settings.seed < 0:
        raise ValueError(f"seed {settings.seed}: expected 0 or more")


@dataclass(frozen=True)
class AdversarialSettings:
    """The settings that `train generator` and `train randomize` share."""

    images: int = 25_000_000
    """Train until D has seen this many real images."""
    batch: int = 16
    """Images per step, over all processes."""
    lr: float = 0.002
    """Adam's learning rate for G and D, before correction for lazy regularisation."""
    r1_gamma: float = 10.0
    """Weight γ of the R1 gradient penalty (γ/2 · ‖∇D‖²)."""
    r1_interval: int = 16
    """Steps between two R1 penalties."""
    path_length_weight: float = 2.0
    """Weight of path-length regularisation; 0 turns it off."""
    path_length_interval: int = 4
    """Steps between two path-length penalties, which take half a batch."""
    style_mixing: float = 0.9
    """Probability that an image mixes two w."""
    ema_images: int = 10_000
    """Half-life of the generator's moving average, in images."""
    ema_rampup: float = 0.05
    """Limit the half-life to this fraction of the images seen; 0: no limit."""
    noise: bool = True
    """Use the noise inputs of the layers; otherwise their strengths are fixed at 0."""
    flip: bool = True
    """Mirror real images at random."""
    resize_filter: ResizeFilter = "box"
    """Filter that reduces larger images; the choice alone changes FID."""
    augment: str = "none"
    """Augmentation: `ada` (its strength adapts to D's overfitting), a fixed probability such as `0.2`, or
    `none`."""
    augment_target: float = 0.6
    """Mean sign of D(real) at which adaptive augmentation stops growing."""
    discriminator: Literal["stylegan2", "projected", "both"] = "stylegan2"
    """projected (Sauer et al. 2021): judges features of an ImageNet classifier, so that G needs far fewer
    images. both: the two side by side."""
    projected_weight: float = 1.0
    """With `both`: weight of the projected discriminator in G's loss."""
    projected_side: int = 128
    """Side in px at which the projected discriminator sees images: a power of two, 64 or more."""
    precision: Precision = "float32"
    """Precision of the top resolutions; weights, σ and Adam stay float32."""
    low_precision_resolutions: int = 4
    """Number of top resolutions that use the lower precision."""
    accumulate: int = 1
    """Number of micro-batches into which a process cuts its shard of a batch: less memory, same result."""
    compile: bool = False
    """Compile G and D with torch.compile, except for the two penalties."""
    kid_images: int = 0
    """Number of images between two measurements of KID, by which the best snapshot is kept; 0: never."""
    kid_samples: int = 5_000
    """Number of generated images for KID."""
    kid_reference: str = ""
    """Real images for KID: a zip, a folder, or features written by `evaluate --save-reference`."""
    seed: int = 0
    """Seed of weights, latents and data order."""
    snapshot_images: int = 5_000
    """Number of images between two snapshots (and sample grids)."""
    keep_snapshots: int = 2
    """Number of snapshots to keep; older ones are deleted."""

    def __post_init__(self) -> None:
        _check(
            self,
            (*_COUNTS, "r1_interval", "path_length_interval", "accumulate", "kid_samples"),
            (
                *("lr", "r1_gamma", "path_length_weight", "style_mixing", "ema_rampup"),
                *("low_precision_resolutions", "kid_images", "projected_weight"),
            ),
        )
        if self.projected_side < 64 or self.projected_side.bit_count() != 1:
            raise ValueError(f"projected_side {self.projected_side}: expected a power of two, 64 or more")
        if self.kid_images and not self.kid_reference:
            raise ValueError("kid_images needs kid_reference, the images to compare with")


@dataclass(frozen=True)
class GeneratorSettings(AdversarialSettings):
    """`train generator`: a StyleGAN2 from scratch."""

    resolution: int = 256
    """Side of the images in px: a power of two."""
    channels: str = ""
    """Widths at 4, 8 … px, such as `256,192,96,64,32`; empty: StyleGAN2's config-f."""
    style_dim: int = 512
    """Length of z and w."""
    mapping_layers: int = 8
    """Fully connected layers between z and w."""


@dataclass(frozen=True)
class RandomizeSettings(AdversarialSettings):
    """`train randomize`: μ and σ from a trained generator (paper, Algorithm 2)."""

    images: int = 3_200_000
    """Train until D has seen this many real images (paper: 200,000 steps on 2 GPUs with a batch of 8, which
    in rosinality's script is the number per GPU)."""
    batch: int = 16
    """Images per step, over all processes (2 × 8)."""
    ema_images: int = 5_000
    """Half-life of the generator's moving average, in images (rosinality: 312.5 steps, here of 16 images)."""
    layers: str = "6"
    """Styled convolutions to make random: the last N (`6`), a range (`3-5`, `layers.3-5`), or
    names (`convs.6,convs.7`)."""
    initial_std: float = 1.0
    """Initial σ."""
    epsilon_per: Literal["batch", "image"] = "batch"
    """Sample ε once per batch (Algorithm 2) or once per image."""
    std_form: StdForm = "raw"
    """Form in which σ is trained. raw: σ itself, of either sign (as in the paper). softplus, log: its inverse
    softplus or its logarithm, which keep it positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, (), ("initial_std",))
        if not self.layers.strip("0 "):
            raise ValueError(f"layers {self.layers}: expected 1 or more")


@dataclass(frozen=True)
class SensitivitySettings:
    """`train randomize --from sensitivity`."""

    probes: int = 2000
    """With --from sensitivity: number of generated images, with one random probe each."""
    distortion: float = 0.1
    """With --from sensitivity: mean 2·L2 + perceptual distance between images rendered with ε = 0
    and with random ε, to which σ is scaled."""
    floor: float = 0.01
    """With --from sensitivity: λ as a fraction of the mean sensitivity; larger values make σ more uniform."""
    exponent: float = 0.5
    """With --from sensitivity: σ is proportional to (F + λ) to the power of minus this. With 0.5 every weight
    contributes equally to the distortion; with 1 weights that change the images little move further."""
    tie: Tie = "weight"
    """With --from sensitivity: the weights that share one σ. weight: none do; filter: those of an output
    channel."""
    side: int = 256
    """With --from sensitivity: side in px to which larger images are reduced for comparison."""
    epsilon_lr: float = 0.01
    """With --from sensitivity: learning rate of ε to record in the model as suitable for this σ."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.probes < 1 or self.side < 16:
            raise ValueError("probes must be 1 or more and side 16 or more")
        for name in ("distortion", "floor", "exponent", "epsilon_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")


@dataclass(frozen=True)
class EncoderSettings:
    """`train encoder`: from photographs into W or W+, or to offsets of the generator's weights (--kind)."""

    kind: EncoderKind = "w"
    """w: into W, anchored by images of known w. e4e: into W+ (Tov et al. 2021). restyle: into W+ in
    several passes (Alaluf et al. 2021). hyperstyle: offsets of the generator's weights (Alaluf et al.
    2022)."""
    images: int = 1_600_000
    """Train until this many real images have been seen (e4e: 200,000 steps of 8); with --batch 0, pairs."""
    batch: int = 8
    """Real images per step; equally many generated images are added. 0: none, which needs --pairs."""
    pair_batch: int = 8
    """With --pairs: pairs per step, in place of newly generated images."""
    pair_augment: bool = True
    """Degrade the images of pairs to resemble photographs: blur, noise, JPEG and small changes of colour, but
    nothing that would change w."""
    image_side: int = 256
    """Side in px at which real and reconstructed images are compared, if the model's is larger (256, as
    published); 0: the model's."""
    lr: float = 1e-4
    """Adam's learning rate, which falls to a tenth along a cosine over the second half."""
    l2_weight: float = 1.0
    """Weight of the squared error of reconstructed real images in [-1, 1]."""
    perceptual_weight: float = 0.8
    """Weight of the perceptual distance of reconstructed real images."""
    w_weight: float | None = None
    """Weight of the squared error of w on generated images, in units of the variance of W. Unset: 1
    for kind w, 0 for e4e and restyle (as published); hyperstyle has no such term."""
    w_power: float = 0.0
    """Exponent by which the variance of W along each principal direction weights the error of w. 0: plain
    distance; 1: directions of large variance, which are visible, count most; -1: all directions count
    equally."""
    perceptual: Literal[Perceptual, ""] = ""
    """Perceptual distance; empty: that of the model."""
    widths: str = "64,128,256,512"
    """Feature maps of the encoder's stages: multiples of 8 (otherwise strided 1×1 convolutions of
    torch 2.15 on the CPU write out of bounds)."""
    blocks: str = ""
    """Residual blocks of the stages. Empty: 3,4,14,3 (IR-SE50), or 3,4,6,3 for resnet (ResNet34)."""
    backbone: Literal[Backbone, ""] = ""
    """ir-se; resnet (not for kind w); efficientnet-lite0 (of fixed size). Empty: ir-se, or resnet for
    hyperstyle."""
    pretrained: bool = True
    """Start efficientnet-lite0 from ImageNet weights, which the optional part "projected" has."""
    input_side: int = 256
    """Side in px of the images that the encoder sees."""
    ema_images: int = 10_000
    """Half-life of the encoder's moving average, in images."""
    flip: bool = True
    """Mirror real images at random."""
    resize_filter: ResizeFilter = "box"
    """Filter that reduces larger images; the choice alone changes FID."""
    seed: int = 0
    """Seed of weights, latents and data order."""
    snapshot_images: int = 5_000
    """Number of images between two snapshots (and sample grids)."""
    keep_snapshots: int = 2
    """Number of snapshots to keep; older ones are deleted."""
    heads: Literal[Heads, ""] = ""
    """e4e, restyle: heads on three depths (pyramid), all on the last stage (single), or on its 4×4 means with
    a shared hidden layer (pooled). Empty: pyramid for e4e, single for restyle, pooled for
    efficientnet-lite0."""
    deltas: bool = True
    """e4e, restyle: predict one w and an offset from it for each further latent (as e4e), not
    independent latents (as pSp)."""
    head_width: int = 0
    """e4e, restyle: feature maps in a head (pooled: size of the hidden layer); 0: the length of w."""
    passes: int = 5
    """restyle, hyperstyle: number of passes of the network over an image."""
    progressive_start: int = 160_000
    """e4e, restyle: number of images before the first delta is switched on (e4e: 20,000 steps of 8)."""
    progressive_every: int = 16_000
    """e4e, restyle: number of images before each further delta (e4e: 2,000 steps of 8)."""
    delta_weight: float = 2e-4
    """e4e, restyle: weight of the summed norms of the deltas."""
    latent_weight: float = 0.1
    """e4e, restyle: weight of the latent discriminator's loss; 0: no latent discriminator."""
    latent_lr: float = 2e-5
    """Adam's learning rate of the latent discriminator."""
    latent_r1_gamma: float = 10.0
    """Weight γ of the latent discriminator's R1 gradient penalty (γ/2 · ‖∇D‖²)."""
    latent_r1_interval: int = 16
    """Steps between two R1 penalties of the latent discriminator."""
    latent_pool: int = 50
    """Number of earlier codes, real and encoded, kept to show the latent discriminator again; 0: none."""
    shared_width: int = 512
    """hyperstyle: layers with this many input and output channels share a head; 0: no shared head."""
    shared_inner: int = 128
    """hyperstyle: feature maps in the refinement block of a layer with the shared head."""
    inner: int = 256
    """hyperstyle: feature maps in the refinement block of a layer with a separate head."""
    features: int = 512
    """hyperstyle: size of the output of a refinement block."""
    separate: SeparateHead = "separable"
    """hyperstyle: form of separate heads; linear is much larger."""
    offset_rank: int = 1
    """hyperstyle: rank of a separable head (the number of products that it sums)."""
    offset_kernel: int = 1
    """hyperstyle: 1: one offset per kernel; 3: one for each of its nine weights (as in the published
    files)."""

    def __post_init__(self) -> None:
        _check(
            self,
            (
                *("images", "snapshot_images", "keep_snapshots", "ema_images", "pair_batch"),
                *("input_side", "passes", "progressive_every", "latent_r1_interval"),
                *("shared_inner", "inner", "features", "offset_rank", "offset_kernel"),
            ),
            (
                *("lr", "l2_weight", "perceptual_weight", "head_width", "progressive_start"),
                *("batch", "image_side"),
                *("delta_weight", "latent_weight", "latent_lr", "latent_r1_gamma", "latent_pool"),
                "shared_width",
            ),
        )
        if self.w_weight is not None and not 0 <= self.w_weight < float("inf"):
            raise ValueError(f"w_weight {self.w_weight}: expected a number that is not negative")
        if not -1 <= self.w_power <= 1:
            raise ValueError(f"w_power {self.w_power}: expected a number from -1 to 1")
        if self.kind == "w" and self.backbone not in ("", *get_args(WBackbone)):
            raise ValueError(f"backbone {self.backbone}: kind w has {' and '.join(get_args(WBackbone))}")
        if self.kind != "w" and self.batch < 1:
            raise ValueError(f"batch {self.batch}: expected 1 or more (0 only for kind w with --pairs)")
