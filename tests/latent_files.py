"""Files of latents as other tools write them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.conftest import TINY

ROWS, DIM = TINY.num_latents, TINY.style_dim
SIDES = [4, 8, 8, 16, 16]
"""Of the noise maps of TINY, as rosinality's `make_noise` has them."""


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    else:
        torch.save(content, path)
    return path


def nvidia(folder: Path, w: np.ndarray) -> Path:
    """projector.py: one w, repeated for each layer, (1, L, C) under the key `w`."""
    return written(folder / "projected_w.npz", {"w": np.tile(w, (1, ROWS, 1))})


def rosinality(path: Path, latents: dict[str, np.ndarray], sides: list[int] = SIDES) -> Path:
    """projector.py: by the path of each input, slices of the batch that was optimised, no leaves."""
    batch = torch.from_numpy(np.stack(list(latents.values()))).requires_grad_()
    noises = [torch.from_numpy(numbers(len(batch), 1, s, s, seed=s + i)) for i, s in enumerate(sides)]
    images = torch.zeros(len(batch), 3, 16, 16)
    content = {
        name: {
            "img": images[i],
            "latent": batch[i],
            "noise": [noise.requires_grad_()[i : i + 1] for noise in noises],
        }
        for i, name in enumerate(latents)
    }
    return written(path, content)


def noise_of(path: Path, name: str) -> list[Tensor]:
    return [noise.detach() for noise in torch.load(path)[name]["noise"]]


def restyle(path: Path, latents: dict[str, np.ndarray], passes: int = 5) -> Path:
    """inference_iterative.py: by the image's name, the W+ of every pass; the last one is the result."""
    rng = np.random.default_rng(9)
    earlier = [rng.standard_normal((ROWS, DIM)).astype(np.float32) for _ in range(passes - 1)]
    return written(path, {name: [*earlier, latent] for name, latent in latents.items()})


def old_numpy(path: Path, content: Any) -> Path:
    """An array of one object as NumPy 1 wrote it: protocol 3, and modules by their former names."""
    array = np.array(content, dtype=object)
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|O", "fortran_order": False, "shape": array.shape}
        )
        stream.write(pickle.dumps(array, protocol=3).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    return path
