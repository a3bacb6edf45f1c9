"""Codes of the tiny model, and the pictures that they give."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.conftest import TINY
from wrangan_cli.engine.data.images import image_grid, to_uint8
from wrangan_cli.engine.models.codes import Code, save_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.randomized import draw_epsilon

LATENTS = TINY.num_latents


def make_code(model: Model, seed: int = 0, w_plus: bool = False, epsilon: bool = True) -> Code:
    rng = torch.Generator().manual_seed(seed)
    w = torch.randn((LATENTS, 16) if w_plus else (16,), generator=rng)
    offsets = draw_epsilon(model.generator, rng=rng) if epsilon else {}
    info = {"model": model.name, "model_sha256": model.sha256, "distortion": {"after": {"mse": 0.1}}}
    return Code(w=w, epsilon={k: v.half().float() for k, v in offsets.items()}, info=info)


def write_codes(folder: Path, model: Model) -> Path:
    """a.st, b.st (without ε) and c.st (in W+)."""
    save_code(folder / "a.st", make_code(model, 0))
    save_code(folder / "b.st", make_code(model, 1, epsilon=False))
    save_code(folder / "c.st", make_code(model, 2, w_plus=True))
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def expected_pixels(images: torch.Tensor) -> np.ndarray:
    return to_uint8(image_grid(images, columns=len(images))).permute(1, 2, 0).numpy()
