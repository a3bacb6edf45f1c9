"""Training of the attribute net on photographs with labels from a CSV."""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError, cause_of
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.image_sets import ImageSet, batch_indices
from wrangan_cli.engine.models.attributes import (
    FILE_NAME,
    AttributeNet,
    attribute_logits,
    load_attributes,
    save_attributes,
)
from wrangan_cli.engine.training.attribute_settings import AttributeSettings
from wrangan_cli.engine.training.run import Report, train

YOUNG = "Young"
AGE_COLUMN = "age"


@dataclass(frozen=True)
class Labels:
    """The known attributes of an image set.

    names: the attributes. values: float32 (N, len(names)), 1 yes, 0 no, NaN unknown.
    """

    names: tuple[str, ...]
    values: np.ndarray


def read_labels(
    path: Path,
    images: Sequence[str],
    settings: AttributeSettings,
) -> Labels:
    """Labels of the images with the given names, from a CSV with a column `file`.

    Cells are 1 or 0 (-1 also counts as no), or empty where unknown. An image is found
    by its whole name or, failing that, by its last part; all labels of images without a row
    are unknown. Raises FileError for an unreadable file, a missing column, a
    cell with any other content, or when no image has a label.
    """
    names = settings.config().names
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, f"not readable as CSV ({cause_of(error)})") from error
    if not rows:
        raise FileError(path, "a CSV without rows")
    for column in ("file", *names):
        if column not in rows[0]:
            raise FileError(path, f"has no column {column!r}")
    by_name = {Path(row["file"]).name: row for row in rows} | {row["file"]: row for row in rows}
    values = np.full((len(images), len(names)), np.nan, dtype=np.float32)
    for index, image in enumerate(images):
        row = by_name.get(image) or by_name.get(Path(image).name)
        if row is not None:
            values[index] = [_cell(path, row, name, settings) for name in names]
    if np.isnan(values).all():
        raise FileError(path, "has no label for any of the images (its column `file` holds their names)")
    return Labels(names, values)


def _cell(path: Path, row: Mapping[str, str], name: str, settings: AttributeSettings) -> float:
    text = (row[name] or "").strip()
    by_age = name == YOUNG and settings.use_ages
    try:
        if text:
            return {1.0: 1.0, 0.0: 0.0, -1.0: 0.0}[float(text)]
        age = float(row.get(AGE_COLUMN) or "nan") if by_age else math.nan
    except (ValueError, KeyError) as error:
        raise FileError(path, f"{row['file']}: {name} is {text!r}, expected 1, 0 or nothing") from error
    if age <= settings.young_until:
        return 1.0
    return 0.0 if age >= settings.old_from else math.nan


def train_attributes(
    settings: AttributeSettings,
    images: ImageSet,
    labels: Labels,
    run: Path,
    on_step: Callable[[int, dict[str, float]], None],
    held_out: tuple[ImageSet, Labels] | None = None,
    device: torch.device | str = "cpu",
    warn: Callable[[str], None] = lambda _: None,
) -> AttributeNet:
    """Train until `settings.images`, continuing from the newest snapshot in `run`.

    on_step gets the images seen and `loss`, `lr`, `images_per_second` of every step; warn
    gets a message about a snapshot that cannot be read.
    An interrupted training saves a snapshot first. At the end `run/attributes.safetensors`
    holds the net, with its accuracy on `held_out` in the record. Returns the net as
    stored. Raises WranganError when an attribute has only one kind of label, or
    the loss is no longer finite.
    """
    trainer = _Trainer(settings, labels, torch.device(device))

    def stream(start: int) -> Iterator[tuple[Tensor, np.ndarray, int]]:
        while True:
            indices = batch_indices(len(images), settings.batch, settings.seed, start)
            yield images.batch(indices), indices, start
            start += settings.batch

    train(trainer, stream, run, lambda trainer, report: on_step(trainer.images, report), lambda _: None, warn)
    net = trainer.net.eval().requires_grad_(False)
    record: dict[str, Any] = {"images_seen": trainer.images, "settings": asdict(settings)}
    if held_out is not None:
        record["held_out"] = evaluate_attributes(net, *held_out)
    save_attributes(run / FILE_NAME, net, record)
    return load_attributes(run / FILE_NAME, device)


class _Trainer:
    """The net, its optimiser and the position in the stream of images."""

    def __init__(self, settings: AttributeSettings, labels: Labels, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.values = torch.from_numpy(labels.values)
        self.weights = _label_weights(labels, settings.balance).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.net = AttributeNet(settings.config())
        self.net.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.images = 0

    def step(self, batch: tuple[Tensor, np.ndarray, int]) -> Report:
        settings = self.settings
        images, indices, seen = batch
        # All randomness is a function of seed and position, so resuming needs no state.
        rng = random_generator(settings.seed * 1_000_003 + seen)
        block = augment_photos(images, settings.augment, settings.flip, rng)
        lr = settings.lr * _schedule(seen, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        target = self.values[torch.from_numpy(indices)].to(self.device)
        loss = masked_loss(self.net(block.to(self.device)), target, self.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.images += settings.batch
        value = loss.item()
        if not math.isfinite(value):
            raise WranganError(f"training of the attribute net diverged at image {self.images}")
        return {"loss": value, "lr": lr}

    def state(self) -> dict[str, Any]:
        return {
            "config": self.net.config.to_json(),
            "images": self.images,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("config") != self.net.config.to_json():
            raise UsageError(
                "the run's snapshot has another net: choose another --out, or the run's settings"
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images = state["images"]


def _schedule(seen: int, settings: AttributeSettings) -> float:
    warm_up = min(1.0, (seen + settings.batch) / (20 * settings.batch))
    return warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, seen / settings.images)))


def _label_weights(labels: Labels, balance: bool) -> Tensor:
    """(2, K): weights of no and yes, whose mean over the labels of an attribute is 1."""
    yes, no = (labels.values == 1).sum(axis=0), (labels.values == 0).sum(axis=0)
    for name, *counts in zip(labels.names, no, yes, strict=True):
        if min(counts) == 0:
            raise WranganError(f"attribute {name}: the images have only one kind of label")
    if not balance:
        return torch.ones(2, len(labels.names))
    total = (yes + no) / 2
    return torch.tensor(np.stack([total / no, total / yes]), dtype=torch.float32)


def masked_loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Weighted binary cross-entropy, averaged over the known labels; a scalar.

    logits: (B, K). target: (B, K) of 1, 0 and NaN (unknown). weights: (2, K), see above.
    """
    known = ~target.isnan()
    filled = target.nan_to_num(0.0)
    weight = torch.where(filled > 0.5, weights[1], weights[0]) * known
    loss = F.binary_cross_entropy_with_logits(logits, filled, reduction="none")
    return (loss * weight).sum() / known.sum().clamp(min=1)


def augment_photos(images: Tensor, strength: float, flip: bool, rng: torch.Generator) -> Tensor:
    """Mirrored, moved, recoloured, blurred and noisy copies of photographs, as float32 (B, 3, R, R).

    images: (B, 3, R, R) in [-1, 1], on the CPU. Generated images are softer and less
    well centred than photographs: the net has to tolerate that.
    """
    count = images.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=rng) * 2 - 1

    mirror = torch.where(uniform() < 0, -1.0, 1.0) if flip else torch.ones(count)
    if strength == 0:
        return torch.where(mirror[:, None, None, None] < 0, images.flip(3), images)
    scale = 1 + 0.1 * strength * uniform()
    turn = 0.1 * strength * uniform()
    shift = 0.12 * strength * uniform(2)
    matrix = torch.stack(
        [
            torch.stack([mirror * scale * turn.cos(), -scale * turn.sin(), shift[:, 0]], dim=1),
            torch.stack([mirror * scale * turn.sin(), scale * turn.cos(), shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    soft = F.interpolate(F.avg_pool2d(moved, 2), size=images.shape[2:], mode="bilinear", align_corners=False)
    # A third of the images stay sharp; the rest are blurred to a random degree.
    blur = (0.9 * strength * uniform() + 0.3 * strength).clamp(0, 1)[:, None, None, None]
    x = torch.lerp(moved, soft, blur)
    grey = x.mean(dim=1, keepdim=True)
    x = torch.lerp(grey, x, 1 + 0.3 * strength * uniform(1, 1, 1))
    x = x * (1 + 0.25 * strength * uniform(1, 1, 1)) + 0.15 * strength * uniform(3, 1, 1)
    noise = torch.randn(x.shape, generator=rng) * (0.05 * strength * uniform(1, 1, 1).clamp(min=0))
    return (x + noise).clamp(-1, 1)


def evaluate_attributes(net: AttributeNet, images: ImageSet, labels: Labels) -> dict[str, dict[str, float]]:
    """By attribute: `accuracy`, `balanced_accuracy` (mean over yes and no), `auc`, all in
    0…1 at a threshold of 0, and the counts `yes` and `no`.

    Unknown labels do not count. Undefined values (no yes, or no no) are left out.
    """
    logits = torch.cat(
        [
            attribute_logits(net, images.batch(np.arange(start, min(start + 256, len(images))))).cpu()
            for start in range(0, len(images), 256)
        ]
    ).numpy()
    result = {}
    for column, name in enumerate(labels.names):
        truth, score = labels.values[:, column], logits[:, net.index(name)]
        result[name] = _rates(score[truth == 1], score[truth == 0])
    return result


def _rates(yes: np.ndarray, no: np.ndarray) -> dict[str, float]:
    result: dict[str, float] = {"yes": len(yes), "no": len(no)}
    if len(yes) + len(no):
        result["accuracy"] = float(((yes > 0).sum() + (no <= 0).sum()) / (len(yes) + len(no)))
    if len(yes) and len(no):
        result["balanced_accuracy"] = float(((yes > 0).mean() + (no <= 0).mean()) / 2)
        # Fraction of the pairs (yes, no) in the right order; ties count half.
        below = np.searchsorted(np.sort(no), yes, side="left")
        up_to = np.searchsorted(np.sort(no), yes, side="right")
        result["auc"] = float((below + up_to).mean() / 2 / len(no))
    return result
