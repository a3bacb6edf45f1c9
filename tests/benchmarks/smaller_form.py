"""How well a smaller form of a model reproduces the images of the whole one, reduced by area, and how fast.

    wrangan generate --model ffhq --pairs held-out/ --samples 128 --side 256 --seed 77
    python -m tests.benchmarks.smaller_form held-out/ --model ffhq-256 --whole ffhq

Prints the PSNR of images clipped to [-1, 1] (peak-to-peak 2): on the pairs, whose w are not truncated; and on
new images whose w is truncated, or moved in random directions. Then the processor time in seconds: the median
over single images, with one thread, the models in turn. `--pictures FILE` shows some pairs.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.psnr import psnr
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.pairs import open_pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="ffhq-256")
    parser.add_argument("--whole", default="ffhq")
    parser.add_argument("--images", type=int, default=32, help="number of images for each other kind of w")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    small, whole = load_model(options.model), load_model(options.whole)
    pairs = open_pairs(options.pairs, whole.generator)
    report("pairs", [psnr(draw(small, w[None]), pairs.images([n])) for n, w in enumerate(pairs.w)])
    w = pairs.w[: options.images]
    moves = torch.randn(w.shape, generator=random_generator(0))
    moves /= moves.norm(dim=1, keepdim=True)
    kinds = {"truncation 0.7": whole.w_mean.lerp(w, 0.7), "moved by 4": w + 4 * moves}
    kinds[f"moved by the size of W, {whole.w_std:.1f}"] = w + whole.w_std * moves
    for name, rows in kinds.items():
        report(name, [psnr(draw(small, row), draw(whole, row, pairs.side)) for row in rows.split(1)])
    if options.pictures:
        rows = [[pairs.images([n])[0], draw(small, pairs.w[n][None])[0]] for n in range(4)]
        save_image(
            options.pictures, labelled_grid(rows, [str(n) for n in range(4)], [whole.name, small.name])
        )
    forms = {"whole": (whole, None), "whole, at their side": (whole, pairs.side), "small": (small, None)}
    for what, step in (("forward", forward), ("forward and backward in w and ε", both)):
        seconds = in_turn([partial(step, *form) for form in forms.values()], options.repeats)
        line = ", ".join(f"{name} {found:.3f} s" for name, found in zip(forms, seconds, strict=True))
        print(f"{what}: {line}", flush=True)


def report(name: str, found: list[Tensor]) -> None:
    values = torch.cat(found)
    print(f"{name}: PSNR {values.mean():.2f} dB, min {values.min():.2f}, {len(values)} images", flush=True)


@torch.no_grad()
def draw(model: Model, w: Tensor, side: int | None = None) -> Tensor:
    return model.generator.synthesis(w, side=side).clamp(-1, 1)


def forward(model: Model, side: int | None) -> None:
    draw(model, model.w_mean[None], side)


def both(model: Model, side: int | None) -> None:
    w = model.w_mean[None].clone().requires_grad_()
    random = model.generator.random_weights()
    epsilon = {name: torch.zeros(1, *weight.shape, requires_grad=True) for name, weight in random.items()}
    model.generator.synthesis(w, epsilon=epsilon, side=side).square().mean().backward()


def in_turn(steps: list[Callable[[], None]], repeats: int) -> list[float]:
    found: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for step, seconds in zip(steps, found, strict=True):
            start = time.process_time()
            step()
            if repeat:
                seconds.append(time.process_time() - start)
    return [median(seconds) for seconds in found]


if __name__ == "__main__":
    main()
