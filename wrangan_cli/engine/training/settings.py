"""Settings of the trainings of generators and encoders; the command line's options are made from them."""

from dataclasses import dataclass
from typing import Any

ENCODER_KINDS = ("w", "e4e", "restyle", "hyperstyle")
STD_FORMS = ("raw", "softplus", "log")
_COUNTS = ("images", "batch", "snapshot_images", "keep_snapshots", "ema_images")


def _check(settings: Any, counts: tuple[str, ...], numbers: tuple[str, ...]) -> None:
    """ValueError where a count is below 1, a number negative or not finite, or the seed negative."""
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
    """What `train generator` and `train randomize` have in common."""

    images: int = 25_000_000
    """Train until D has seen this many real images."""
    batch: int = 16
    """Images per step, over all processes."""
    lr: float = 0.002
    """Adam's learning rate for G and D, before the correction for lazy regularisation."""
    r1_gamma: float = 10.0
    """Weight γ of the R1 gradient penalty (γ/2 · ‖∇D‖²)."""
    r1_interval: int = 16
    """Steps between two R1 penalties."""
    path_length_weight: float = 2.0
    """Weight of path-length regularisation; 0 turns it off."""
    path_length_interval: int = 4
    """Steps between two path-length penalties, which take half a batch."""
    style_mixing: float = 0.9
    """Probability that an image is made from two w."""
    ema_images: int = 10_000
    """Half-life of the generator's moving average, in images."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images seen; 0 turns the ramp off."""
    noise: bool = True
    """Noise inputs in every layer; without them their strengths are set to 0 and stay there."""
    flip: bool = True
    """Mirror real images at random."""
    resize_filter: str = "box"
    """How larger images are reduced: box, bilinear, bicubic or lanczos; the filter alone moves FID."""
    augment: str = "none"
    """`ada` (strength adapts to D's overfitting), a fixed probability such as `0.2`, or `none`."""
    augment_target: float = 0.6
    """Mean sign of D(real) at which adaptive augmentation stops growing."""
    discriminator: str = "stylegan2"
    """`stylegan2`; `projected` (Sauer et al. 2021: judges features of an ImageNet classifier, and G
    learns from far fewer images); or `both`."""
    projected_weight: float = 1.0
    """With `both`: weight of the projected discriminator in G's loss."""
    projected_side: int = 128
    """Side in px at which the projected discriminator sees images: a power of two from 64 on."""
    precision: str = "float32"
    """`float32`, or `bf16` or `fp16` in the top resolutions; weights, σ and Adam stay float32."""
    low_precision_resolutions: int = 4
    """How many of the top resolutions compute in the lower precision."""
    accumulate: int = 1
    """Micro-batches that a process cuts its shard of a batch into: less memory, the same result."""
    compile: bool = False
    """Compile G and D with torch.compile; the two penalties stay as they are."""
    kid_images: int = 0
    """Measure KID every so many images, and keep the best snapshot; 0: never."""
    kid_samples: int = 5_000
    """Generated images that KID is measured on."""
    kid_reference: str = ""
    """Real images for KID: a zip, a folder, or features written by `evaluate --save-reference`."""
    seed: int = 0
    """Seed of weights, latents and data order."""
    snapshot_images: int = 5_000
    """Images between two snapshots (and sample grids)."""
    keep_snapshots: int = 2
    """Snapshots kept; older ones are deleted."""

    def __post_init__(self) -> None:
        _check(
            self,
            (*_COUNTS, "r1_interval", "path_length_interval", "accumulate", "kid_samples"),
            (
                *("lr", "r1_gamma", "path_length_weight", "style_mixing", "ema_rampup"),
                *("low_precision_resolutions", "kid_images", "projected_weight"),
            ),
        )
        if self.discriminator not in ("stylegan2", "projected", "both"):
            raise ValueError(f"discriminator {self.discriminator!r}: expected stylegan2, projected or both")
        if self.projected_side < 64 or self.projected_side.bit_count() != 1:
            raise ValueError(f"projected_side {self.projected_side}: expected a power of two from 64 on")
        if self.precision not in ("float32", "bf16", "fp16"):
            raise ValueError(f"precision {self.precision!r}: expected float32, bf16 or fp16")
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
    rosinality's script counts for each GPU)."""
    batch: int = 16
    """Images per step, over all processes (2 × 8)."""
    ema_images: int = 5_000
    """Half-life of the generator's moving average, in images (rosinality: 312.5 steps, here of 16)."""
    layers: str = "6"
    """Which styled convolutions become random: the last N (`6`), a range (`3-5`, `layers.3-5`), or
    names (`convs.6,convs.7`)."""
    initial_std: float = 1.0
    """σ at the start."""
    epsilon_per: str = "batch"
    """Draw ε once per `batch` (Algorithm 2) or once per `image`."""
    std_form: str = "raw"
    """What is trained of σ: σ itself, of either sign (`raw`, the paper's), or its inverse `softplus`
    or `log`, which keep it positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, (), ("initial_std",))
        if not self.layers.strip("0 "):
            raise ValueError(f"layers {self.layers}: expected 1 or more")
        if self.epsilon_per not in ("batch", "image"):
            raise ValueError(f"epsilon_per {self.epsilon_per!r}: expected batch or image")
        if self.std_form not in STD_FORMS:
            raise ValueError(f"std_form {self.std_form!r}: expected raw, softplus or log")


@dataclass(frozen=True)
class SensitivitySettings:
    """`train randomize --from sensitivity`."""

    probes: int = 2000
    """With --from sensitivity: generated images, one random probe each."""
    distortion: float = 0.1
    """With --from sensitivity: 2·L2 + perceptual distance, in the mean, between an image and
    its redraw with another ε."""
    floor: float = 0.01
    """With --from sensitivity: λ as a fraction of the mean sensitivity; a larger one makes σ more even."""
    exponent: float = 0.5
    """With --from sensitivity: σ is proportional to (F + λ) to the power of minus this. With 0.5 a redraw of
    each weight costs the same; with 1 weights that change the images little move further."""
    tie: str = "weight"
    """With --from sensitivity: one σ for each `weight`, each `filter` (output channel), each
    `layer`, or for `all` weights."""
    side: int = 256
    """With --from sensitivity: images are compared at this side in px, where they are larger."""
    epsilon_lr: float = 0.01
    """With --from sensitivity: learning rate of ε that the model names as suiting this σ."""

    def __post_init__(self) -> None:
        if self.probes < 1 or self.side < 16:
            raise ValueError("probes must be 1 or more and side 16 or more")
        if self.tie not in ("weight", "filter", "layer", "all"):
            raise ValueError(f"tie {self.tie!r}: expected weight, filter, layer or all")
        for name in ("distortion", "floor", "exponent", "epsilon_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")


@dataclass(frozen=True)
class EncoderSettings:
    """`train encoder`: photographs into W or W+, or into the generator's weights (--kind)."""

    kind: str = "w"
    """w: into W, anchored by images of known w. e4e: into W+ (Tov et al. 2021). restyle: the same in
    several passes (Alaluf et al. 2021). hyperstyle: offsets of the generator's weights (2022)."""
    images: int = 1_600_000
    """Train until this many real images were seen (e4e: 200,000 steps of 8); pairs, with --batch 0."""
    batch: int = 8
    """Real images per step; as many generated ones go with them. 0: none, which needs --pairs."""
    pair_batch: int = 8
    """With --pairs: pairs per step, in the place of images that are generated for it."""
    pair_augment: bool = True
    """Blur, noise, JPEG and small changes of colour for the images of pairs, which photographs have and they
    lack; what would change w is left out."""
    image_side: int = 256
    """Side in px of real images and of what is compared with them, where the model's is larger (256 as
    published); 0: the model's."""
    lr: float = 1e-4
    """Adam's learning rate, falling to a tenth over the last half by a cosine."""
    l2_weight: float = 1.0
    """Weight of the squared error of reconstructed real images on [-1, 1]."""
    perceptual_weight: float = 0.8
    """Weight of their perceptual distance."""
    w_weight: float | None = None
    """Weight of the squared error of w on generated images, in units of the variance of W. Unset: 1
    for kind w, 0 for e4e and restyle (as published); hyperstyle has no such term."""
    w_power: float = 0.0
    """An error of w along a principal direction of W counts by the variance there to this power. 0: the
    plain distance; 1: what varies much, and can be seen, counts most; -1: all directions count the same."""
    perceptual: str = ""
    """Perceptual distance; empty: the model's own."""
    widths: str = "64,128,256,512"
    """Feature maps of the encoder's stages: multiples of 8 (with others, strided 1×1 convolutions of
    torch 2.15 on the CPU write beyond their memory)."""
    blocks: str = ""
    """Residual blocks of the stages. Empty: 3,4,14,3 (IR-SE50), or 3,4,6,3 of a resnet (ResNet34)."""
    backbone: str = ""
    """ir-se; resnet (not for kind w); efficientnet-lite0 (its sizes are fixed). Empty: ir-se, and resnet for
    hyperstyle."""
    pretrained: bool = True
    """efficientnet-lite0 starts as a classifier of ImageNet (wrangan[projected] has its weights)."""
    input_side: int = 256
    """The encoder sees images of this side."""
    ema_images: int = 10_000
    """Half-life of the encoder's moving average, in images."""
    flip: bool = True
    """Mirror real images at random."""
    resize_filter: str = "box"
    """How larger images are reduced: box, bilinear, bicubic or lanczos; the filter alone moves FID."""
    seed: int = 0
    """Seed of weights, latents and data order."""
    snapshot_images: int = 5_000
    """Images between two snapshots (and sample grids)."""
    keep_snapshots: int = 2
    """Snapshots kept; older ones are deleted."""
    heads: str = ""
    """e4e, restyle: heads on a `pyramid` of three depths, all on the last one (`single`), or on 4×4 means of
    it with a hidden layer in common (`pooled`). Empty: pyramid for e4e, single for restyle, pooled with
    efficientnet-lite0."""
    deltas: bool = True
    """e4e, restyle: one w and an offset from it for each further latent (e4e), or latents of their
    own (pSp)."""
    head_width: int = 0
    """e4e, restyle: feature maps within a head (pooled: size of the hidden layer); 0: the length of w."""
    passes: int = 5
    """restyle, hyperstyle: how often the network is run on an image."""
    progressive_start: int = 160_000
    """e4e, restyle: images until the first delta is switched on (e4e: 20,000 steps of 8)."""
    progressive_every: int = 16_000
    """e4e, restyle: images between two deltas (e4e: 2,000 steps of 8)."""
    delta_weight: float = 2e-4
    """e4e, restyle: weight of the deltas' summed norms."""
    latent_weight: float = 0.1
    """e4e, restyle: weight of the latent discriminator's judgement; 0 leaves it out."""
    latent_lr: float = 2e-5
    """Adam's learning rate of the latent discriminator."""
    latent_r1_gamma: float = 10.0
    """Weight γ of its R1 gradient penalty (γ/2 · ‖∇D‖²)."""
    latent_r1_interval: int = 16
    """Steps between two of them."""
    latent_pool: int = 50
    """Codes of before, real and encoded, that it is shown again; 0: only the present ones."""
    shared_width: int = 512
    """hyperstyle: layers with as many input and output channels share a head; 0: none do."""
    shared_inner: int = 128
    """hyperstyle: feature maps in the refinement block of such a layer."""
    inner: int = 256
    """hyperstyle: the same for a layer with a head of its own."""
    features: int = 512
    """hyperstyle: numbers that a refinement block says of its layer."""
    separate: str = "separable"
    """hyperstyle: heads of their own are `separable` or, much larger, `linear`."""
    offset_rank: int = 1
    """hyperstyle: products that a separable head sums."""
    offset_kernel: int = 1
    """hyperstyle: 1: an offset for each kernel; 3: for each of its nine weights (the published files)."""

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
        if self.kind not in ENCODER_KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(ENCODER_KINDS)}")
        if self.w_weight is not None and not 0 <= self.w_weight < float("inf"):
            raise ValueError(f"w_weight {self.w_weight}: expected a number that is not negative")
        if not -1 <= self.w_power <= 1:
            raise ValueError(f"w_power {self.w_power}: expected a number from -1 to 1")
        if self.kind == "w" and self.backbone not in ("", "ir-se", "efficientnet-lite0"):
            raise ValueError(f"backbone {self.backbone!r}: kind w has ir-se and efficientnet-lite0")
        if self.kind != "w" and self.batch < 1:
            raise ValueError(f"batch {self.batch}: expected 1 or more, but for kind w with pairs")
