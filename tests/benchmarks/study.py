"""Common parts of the studies of σ and of settings: fit photographs, measure distortion, drift, corruption.

`wrangan invert` and `wrangan evaluate` do the same for one model and one configuration; a study varies these.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.data.photo_files import find_images
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics import kid
from wrangan_cli.engine.metrics.corruption import mean_over_codes, moved_images
from wrangan_cli.engine.metrics.drift import drift_images
from wrangan_cli.engine.metrics.inception import extract_features, load_inception
from wrangan_cli.engine.metrics.pairs import measured
from wrangan_cli.engine.metrics.registry import PAIR_METRICS
from wrangan_cli.engine.metrics.samples import model_reference
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.perceptual import for_loss, load_perceptual

Row = dict[str, Any]
DIRECTIONS = 4
"""Number of directions in which drift moves w."""


class Study:
    """Photographs, loss and reference of one model, whose generator may be replaced."""

    def __init__(self, model: Model, photos: Path, limit: int, batch: int, samples: int) -> None:
        """samples: number of moved images for corruption, over all photographs; 0: no corruption."""
        keep_freed_memory()  # otherwise half of the time is spent on page faults
        self.model, self.batch, self.samples = model, batch, samples
        self.paths = find_images([photos])[:limit]
        self.perceptual = load_perceptual(model.perceptual, model.device)
        self._encoders: dict[tuple[Path, str], CachedEncoder] = {}

    def measure(self, generator: Generator, settings: InversionSettings, directions: int = 0) -> Row:
        """The `summary` of all photographs, and corruption.

        `generator` has the mapping and the mean weights of the model's, so the model's encoder can be used.
        """
        model = dataclasses.replace(self.model, generator=generator)
        fitted = list(self.fitted(model, settings, self.paths, directions))
        return summary([row for row, _ in fitted]) | self.corruption(model, [code for _, code in fitted])

    def fitted(
        self, model: Model, settings: InversionSettings, paths: Sequence[Path], directions: int = 0
    ) -> Iterator[tuple[Row, Code]]:
        """The numbers and the code of each photograph, at its own side, as soon as its batch is done.

        Numbers are MSE, MS-SSIM, the perceptual distance (at 256 px if the photograph is larger), the
        standard deviation of the offsets, seconds and, with `directions`, drift. Photographs that cannot be
        fitted are reported.
        """
        inverter = Inverter.load(model, settings)
        if inverter.encoder is not None:
            key = (model.path, settings.start)
            known = self._encoders.setdefault(key, CachedEncoder(inverter.encoder))
            inverter = dataclasses.replace(inverter, encoder=known)
        measures = {
            "mse": PAIR_METRICS["mse"].load(model.device),
            "ms-ssim": PAIR_METRICS["ms-ssim"].load(model.device),
            self.perceptual.name: self._distance,
        }
        for start in range(0, len(paths), self.batch):
            some = paths[start : start + self.batch]
            photos = [inverter.load_photo(path) for path in some]
            started = time.perf_counter()
            found = inverter.invert_each(photos)
            seconds = (time.perf_counter() - started) / len(some)
            for path, photo, code in zip(some, photos, found, strict=True):
                if isinstance(code, WranganError):
                    print(f"{path}: {code}", file=sys.stderr)
                    continue
                row: Row = {"photo": path.name, **measured(model, [photo], [code], measures)[0]}
                parts = [v.float().flatten() for v in [*code.epsilon.values(), *code.delta.values()]]
                row["std of offsets"] = torch.cat(parts).std().item() if parts else 0.0
                if directions:
                    row |= self.drift(model, code, directions)
                yield row | {"seconds": seconds}, code

    @torch.no_grad()
    def drift(self, model: Model, code: Code, directions: int = DIRECTIONS) -> dict[str, float]:
        """The metric `drift` over the first `directions` directions, and the perceptual distance of the same
        images."""
        after, before = drift_images(model, code, directions)
        return {
            "drift": (after - before).square().mean().item(),
            f"drift {self.perceptual.name}": self._distance(after, before).mean().item(),
        }

    def untuned(self) -> Row:
        """Corruption of the initial w without offsets: the effect of moving w alone."""
        inverter = Inverter.load(self.model, inversion_settings("encoder", perceptual_weight=0.0))
        codes = inverter.invert_each([inverter.load_photo(path) for path in self.paths])
        return self.corruption(self.model, [code for code in codes if isinstance(code, Code)])

    def corruption(self, model: Model, codes: list[Code]) -> Row:
        """KID of moved images and its standard error; empty if not requested."""
        if not self.samples or not codes:
            return {}
        images = moved_images(model, codes, range(self.samples))
        features = extract_features(self._inception, images)
        found = mean_over_codes(kid.METRIC, features, self._reference, len(codes))
        return {"corruption-kid": found.value, "± corruption-kid": found.standard_error or 0.0}

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            return self.perceptual(for_loss(one), for_loss(other))

    @cached_property
    def _inception(self) -> Callable[[Tensor], Tensor]:
        return load_inception(self.model.device, wanted_by="corruption-kid")

    @cached_property
    def _reference(self) -> Tensor:
        return model_reference(self.model).features


class CachedEncoder:
    """An encoder that encodes each image only once, however many configurations start from its w."""

    def __init__(self, encoder: Callable[[Tensor], Tensor]) -> None:
        self.encoder = encoder
        self.known: dict[str, Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        keys = [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in images]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        if new:
            self.known |= {keys[place]: w for place, w in zip(new, self.encoder(images[new]), strict=True)}
        return torch.stack([self.known[key] for key in keys])


def summary(rows: Sequence[Row]) -> Row:
    """The number of photographs, and the mean of each number that all of them have."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in KEYS]
    there = [name for name in names if all(row.get(name, "") != "" for row in rows)]
    means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in there}
    return {"photographs": len(rows), **means}


KEYS = ("model", "settings", "photo")
"""Columns of a photograph's row that are not numbers."""


def study_arguments(description: str | None, samples: int) -> argparse.ArgumentParser:
    """The options of all studies. samples: default number of images for corruption."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="CSV; existing rows are not computed again")
    parser.add_argument("--limit", type=int, default=8, help="maximum number of photographs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--corruption",
        type=int,
        default=samples,
        metavar="IMAGES",
        help="number of moved images for corruption (KID); 0: no corruption",
    )
    return parser


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows so far as CSV, so that a study that is stopped keeps them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows that an earlier run has written; empty if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def say(rows: Iterable[Row]) -> None:
    """Print one JSON object per line."""
    for row in rows:
        print(json.dumps(row), flush=True)
