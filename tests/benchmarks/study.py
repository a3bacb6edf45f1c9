"""What the studies of σ share: fit photographs, measure distortion and corruption.

wrangan invert / wrangan evaluate do the same for one model; a study varies the model.
"""

import argparse
import csv
import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.codes import Code, render
from wrangan_cli.engine.files import replaced_atomically
from wrangan_cli.engine.images import load_image
from wrangan_cli.engine.inversion.loop import Inverter, resolved
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics.corruption import moved_images
from wrangan_cli.engine.metrics.inception import extract_features, load_inception
from wrangan_cli.engine.metrics.kid import kid
from wrangan_cli.engine.metrics.samples import model_reference
from wrangan_cli.engine.model_folder import Model
from wrangan_cli.engine.models.encoders import load_encoder
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator
from wrangan_cli.engine.perceptual import load_perceptual
from wrangan_cli.engine.photo_files import find_images


class Study:
    """Photographs, encoder, loss and reference of one model, whose generator may be exchanged."""

    def __init__(self, model: Model, photos: Path, limit: int, batch: int, samples: int) -> None:
        self.model, self.batch, self.samples = model, batch, samples
        paths = find_images([photos])[:limit]
        self.photos = torch.stack([load_image(path, model.resolution) for path in paths])
        self.encoder = load_encoder(model)
        self.perceptual = load_perceptual(model.perceptual, model.device)
        self.inception = load_inception(model.device, wanted_by="corruption-kid")
        self.reference = model_reference(model).features

    def measure(self, generator: StyleGAN2Generator, settings: InversionSettings) -> dict[str, float]:
        """MSE and perceptual distance of the fits, corruption, spread of ε, seconds a photograph.

        `generator` has the mapping and the means of the model's, so its encoder serves.
        """
        model = dataclasses.replace(self.model, generator=generator)
        inverter = Inverter(model, resolved(settings, model), self.encoder, self.perceptual)
        started = time.perf_counter()
        codes: list[Code] = []
        for part in self.photos.split(self.batch):
            for code in inverter.invert(part):
                if not isinstance(code, Code):
                    raise code
                codes.append(code)
        seconds = (time.perf_counter() - started) / len(self.photos)
        drawn = self._drawn(model, codes)
        offsets = torch.cat(
            [v.float().flatten() for c in codes for v in [*c.epsilon.values(), *c.delta.values()]]
        )
        row = {
            "mse": (drawn - self.photos).square().mean().item(),
            self.perceptual.name: self._perceptual(drawn).mean().item(),
            "std of offsets": offsets.std().item() if len(offsets) else 0.0,
            "seconds": seconds,
        }
        return row | self._corruption(model, codes)

    def untuned(self) -> dict[str, float]:
        """Corruption of the same starts without offsets: what moving w alone costs."""
        with torch.no_grad():
            codes = [Code(w) for w in self.encoder(self.photos)]
        return self._corruption(self.model, codes)

    def _drawn(self, model: Model, codes: list[Code]) -> Tensor:
        parts = [render(model, codes[i : i + self.batch]) for i in range(0, len(codes), self.batch)]
        return torch.cat(parts).clamp(-1, 1)

    @torch.no_grad()
    def _perceptual(self, drawn: Tensor) -> Tensor:
        pairs = zip(drawn.split(self.batch), self.photos.split(self.batch), strict=True)
        return torch.cat([self.perceptual(one, other) for one, other in pairs])

    def _corruption(self, model: Model, codes: list[Code]) -> dict[str, float]:
        if not self.samples:
            return {}
        images = moved_images(model, codes, range(self.samples))
        found = kid(extract_features(self.inception, images), self.reference)
        return {"corruption-kid": found.value, "± corruption-kid": found.standard_error or 0.0}


def study_arguments(description: str | None, samples: int) -> argparse.ArgumentParser:
    """The options that all studies have. samples: the default count of images for corruption."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="CSV; what stands in it is not done again")
    parser.add_argument("--limit", type=int, default=8, help="photographs")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--epsilon-lr", type=float, default=0.01)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--distortion", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=samples, help="images for corruption; 0: none")
    return parser


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows so far as CSV: a study that is stopped keeps what it has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replaced_atomically(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """What an earlier run has written; nothing where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def say(rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    for row in rows:
        print(json.dumps(row), flush=True)
