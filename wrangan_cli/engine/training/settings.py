"""Settings of the adversarial trainings; the command line's options are made from them."""

from dataclasses import dataclass
from typing import Any


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


STD_FORMS = ("raw", "softplus", "log")
_COUNTS = ("images", "batch", "snapshot_images", "keep_snapshots", "ema_images")


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
    """The half-life is at most this share of the images seen; 0 turns the ramp off."""
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
    """Micro-batches that a process cuts its share of a step into: less memory, the same result."""
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

    images: int = 1_600_000
    """Train until D has seen this many real images (paper: 200,000 steps of 8)."""
    batch: int = 8
    """Images per step."""
    layers: int = 6
    """N: how many of the last styled convolutions become random."""
    initial_std: float = 1.0
    """σ at the start."""
    epsilon_per: str = "batch"
    """Draw ε once per `batch` (Algorithm 2) or once per `image`."""
    std_form: str = "raw"
    """What is trained of σ: σ itself, of either sign (`raw`, the paper's), or its inverse `softplus`
    or `log`, which keep it positive."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, ("layers",), ("initial_std",))
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
    """With --from sensitivity: λ as a share of the mean sensitivity; a larger one makes σ more even."""
    tie: str = "weight"
    """With --from sensitivity: one σ for each `weight`, each `filter` (output channel), each
    `layer`, or for `all` weights."""
    epsilon_lr: float = 0.01
    """With --from sensitivity: learning rate of ε that the model names as suiting this σ."""

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes {self.probes}: expected 1 or more")
        if self.tie not in ("weight", "filter", "layer", "all"):
            raise ValueError(f"tie {self.tie!r}: expected weight, filter, layer or all")
        for name in ("distortion", "floor", "epsilon_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")


@dataclass(frozen=True)
class EncoderSettings:
    """`train encoder`: photographs into W (e4e's losses, anchored by generated images)."""

    images: int = 1_600_000
    """Train until this many real images were seen (e4e: 200,000 steps of 8)."""
    batch: int = 8
    """Real images per step; as many generated ones go with them."""
    lr: float = 1e-4
    """Adam's learning rate, falling to a tenth over the last half by a cosine."""
    l2_weight: float = 1.0
    """Weight of the squared error of reconstructed real images on [-1, 1]."""
    perceptual_weight: float = 0.8
    """Weight of their perceptual distance."""
    w_weight: float = 1.0
    """Weight of the squared error of w on generated images, in units of the variance of W."""
    perceptual: str = ""
    """Perceptual distance; empty: the model's own."""
    widths: str = "64,128,256,512"
    """Feature maps of the encoder's stages."""
    blocks: str = "3,4,14,3"
    """Residual blocks of the stages (IR-SE50: 3,4,14,3)."""
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

    def __post_init__(self) -> None:
        _check(self, (*_COUNTS, "input_side"), ("lr", "l2_weight", "perceptual_weight", "w_weight"))
