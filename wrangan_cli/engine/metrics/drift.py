"""Drift: how far the offsets of one code change the generator's other images.

Corruption compares two sets of images, and so needs thousands of them. Drift compares pairs: an image by the
tuned generator (with the code's offsets of the weights and its noise), and the image of the same w by the
original generator. w is moved as for corruption, by the size of W in random directions that are the same for
every code and method. A fit that reproduces the photograph and changes nothing else has a drift near 0; so do
methods that only search for w, however badly they reproduce it. Read drift together with distortion.
"""

from dataclasses import replace

import torch
from torch import Tensor

from wrangan_cli.engine.metrics.corruption import random_direction
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model

NAME = "drift"
DIRECTIONS = 4
"""Number of directions in which w moves."""
PROTOCOL = (
    f"w moved by the size of W in {DIRECTIONS} random directions; MSE on [-1, 1] between the images with and "
    "without the code's offsets, at 256 px at most"
)


@torch.no_grad()
def drift_images(
    model: Model, code: Code, directions: int = DIRECTIONS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images at moved w with the code's offsets, and without: (directions, 3, S, S) in [-1, 1], twice.

    S is the model's `sample_side`; the directions are the first of the corruption protocol.
    """
    moves = [random_direction(seed, index, model) * model.w_std for index in range(directions)]
    tuned = [replace(code, w=code.w + move) for move in moves]
    untuned = [Code(moved.w) for moved in tuned]
    after, before = (render(model, codes, model.sample_side).clamp(-1, 1) for codes in (tuned, untuned))
    return after, before


def drift(model: Model, code: Code, seed: int = 0) -> float:
    """The drift of one code; see PROTOCOL."""
    tuned, untuned = drift_images(model, code, seed=seed)
    return (tuned - untuned).square().mean().item()
