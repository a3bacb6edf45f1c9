"""Settings of `train attributes`, from which its options are made."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wrangan_cli.engine.base.choices import ResizeFilter, check_choices

if TYPE_CHECKING:
    from wrangan_cli.engine.models.attributes import AttributeConfig


@dataclass(frozen=True)
class AttributeSettings:
    """`train attributes`: one small net for several yes/no attributes."""

    attributes: str = "Smiling,Eyeglasses,Male,Young,Mouth_Slightly_Open"
    """Columns of the CSV to learn, separated by commas."""
    resolution: int = 64
    """Side in px at which the net sees images."""
    widths: str = "24,32,64,96,128"
    """Feature maps of the layers, multiples of 8; each layer halves the side."""
    images: int = 300_000
    """Train until the net has seen this many images."""
    batch: int = 64
    """Images per step."""
    lr: float = 0.002
    """AdamW's learning rate after a short warm-up; it falls to 0 along a cosine."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    balance: bool = True
    """Weight yes and no equally, even if one of them is rare (eyeglasses)."""
    flip: bool = True
    """Mirror images at random."""
    resize_filter: ResizeFilter = "box"
    """Filter that reduces larger images; the choice alone changes FID."""
    augment: float = 0.6
    """Strength of the shifts, scales, colour changes, blur and noise; 0 turns them off."""
    use_ages: bool = False
    """Derive a missing label `Young` from the age in the CSV, by young_until and old_from."""
    young_until: int = 30
    """Up to this age in years a face counts as young."""
    old_from: int = 45
    """From this age in years a face counts as not young; between young_until and this, as unknown."""
    seed: int = 0
    """Seed of weights, data order and augmentation."""
    snapshot_images: int = 50_000
    """Images between two snapshots."""
    keep_snapshots: int = 1
    """Number of snapshots to keep; older ones are deleted."""

    def __post_init__(self) -> None:
        check_choices(self)
        self.config()
        if self.images < 1 or self.batch < 1 or self.snapshot_images < 1 or self.keep_snapshots < 1:
            raise ValueError("images, batch, snapshot_images and keep_snapshots must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed {self.seed}: expected 0 or more")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr {self.lr}: expected a number above 0")
        if not 0 <= self.augment <= 2:
            raise ValueError(f"augment {self.augment}: expected a number in 0…2")

    def config(self) -> "AttributeConfig":
        """Shape of the net; ValueError if a setting is not usable."""
        from wrangan_cli.engine.models.attributes import AttributeConfig

        names = tuple(name.strip() for name in self.attributes.split(",") if name.strip())
        return AttributeConfig(names, self.resolution, tuple(int(width) for width in self.widths.split(",")))
