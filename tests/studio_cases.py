"""The tiny model as the studio's tests have it: with directions, inverted without a perceptual distance."""

import json
from pathlib import Path

import torch

from wrangan_cli.engine.editing.directions import Direction, directions_file, save_directions, unit
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.folder import CONFIG, Model

NAMES = ("smile", "age", "pose", "pca-0")
STEPS = 12


def studio_model(folder: Path, steps: int = STEPS) -> Model:
    """The model of this folder, with directions and a short inversion of its own."""
    config = json.loads((folder / CONFIG).read_text())
    config["inversion"] = {"steps": steps, "perceptual_weight": 0.0, "lr": 0.02}
    (folder / CONFIG).write_text(json.dumps(config))
    model = load_model(str(folder))
    rng = torch.Generator().manual_seed(4)
    vectors = torch.randn(len(NAMES), model.generator.config.style_dim, generator=rng)
    made = [Direction(name, unit(vector), 1.5) for name, vector in zip(NAMES, vectors, strict=True)]
    save_directions(directions_file(model), model, made)
    return model
