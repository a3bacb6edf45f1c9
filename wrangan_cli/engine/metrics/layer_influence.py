"""How much one layer's random weights move the image (the paper's Table 7).

Protocol: for random w, MSE on [-1, 1] between the image of the mean weights and the image with ε ~
N(0, 1) only in this layer's weight, sampled for each image; mean over the images. The last row,
`all`, is the MSE when every random weight is sampled.
"""

import torch

from wrangan_cli.engine.metrics.base import LayerMetric
from wrangan_cli.engine.metrics.samples import epsilon_of_images
from wrangan_cli.engine.models.folder import Model, sample_w

ALL = "all"


@torch.no_grad()
def layer_influence(model: Model, samples: int = 64, seed: int = 0, batch: int = 16) -> dict[str, float]:
    """Name of the weight (and `all`) → mean squared error on [-1, 1]; it does not depend on `batch`."""
    totals: dict[str, float] = {}
    whole = sample_w(model.generator, samples, seed)
    for start in range(0, samples, batch):
        w = whole[start : start + batch]
        epsilon = epsilon_of_images(model, range(start, start + len(w)), seed)
        still = model.generator.synthesis(w)
        for name in [*epsilon, ALL]:
            drawn = epsilon if name == ALL else {name: epsilon[name]}
            moved = model.generator.synthesis(w, epsilon=drawn)
            error = (moved - still).square().mean(dim=(1, 2, 3)).sum().item()
            totals[name] = totals.get(name, 0.0) + error
    return {name: total / samples for name, total in totals.items()}


METRIC = LayerMetric(
    "layer-influence", "MSE on [-1, 1] when only one layer's ε is sampled, per image", True, layer_influence
)
