"""A smaller form of a MobileStyleGAN: cut after one of its blocks, with a head of its own.

    wrangan generate --model ffhq --pairs pairs/ --samples 1536 --side 256 --seed 5
    wrangan generate --model ffhq --pairs held-out/ --samples 128 --side 256 --seed 77
    python examples/fit_256.py pairs/ runs/ffhq-256 --model ffhq --held-out held-out/

The whole generator spends half of its time above 256 px. Here it ends with the block that draws at the side
of the pairs, and a modulated 1×1 convolution makes the image. The head comes first, by least squares; then it
and the last block learn by Adam to draw what the whole generator's image is when it is reduced by area. All
else is the whole generator's, W and the σ of the blocks that stay included.

What is frozen runs once for each pair. Of what it gives, some small windows are kept (2 GB for 1,536 pairs),
so that a step sees many w at the price of less than one image.
"""

import argparse
import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.freed_memory import keep_freed_memory
from wrangan_cli.engine.metrics.psnr import psnr
from wrangan_cli.engine.model_folder import load_model, save_model
from wrangan_cli.engine.models.generator import random_names
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANGenerator
from wrangan_cli.engine.runtime import random_generator
from wrangan_cli.engine.training.pairs import Pairs, open_pairs

MARGIN = 2
"""Pixels inside a window's edge that see beyond it: one for each 3×3 convolution of a block."""


@dataclass(frozen=True)
class FitSettings:
    """How the head and the last block are fitted."""

    head_pairs: int = 32
    """Pairs of the least squares."""
    windows: int = 8
    """Windows of each pair."""
    window: int = 18
    """Side of a window in px of the feature maps, which have half the side of the image."""
    steps: int = 5000
    """Of the descent."""
    batch: int = 32
    """Windows of a step."""
    lr: float = 1e-3
    """Adam's learning rate at its height, as a share of each tensor's root mean square."""
    warmup: float = 0.03
    """Share of the steps over which it rises; then it falls along a cosine to 0."""
    average: float = 0.995
    """Decay of the running mean of the weights, which is what is kept."""
    seed: int = 0
    """Of the windows' places and order."""


def cut(whole: MobileStyleGANGenerator, side: int) -> MobileStyleGANGenerator:
    """The generator up to its convolutions at `side` px, with an unfitted plain head.

    The head is modulated by the row of W+ that modulates the same feature maps in `whole` on their way into
    the next block; it begins without modulation. The number of rows stays. UsageError where `whole` has no
    such block and one after it.
    """
    config = whole.config
    if side not in config.channels or side in (4, max(config.channels)):
        raise UsageError(f"cut at {side} px: there are blocks of {sorted(config.channels)[1:]} px")
    channels = {at: width for at, width in config.channels.items() if at <= side}
    smaller = replace(config, channels=channels, head="plain", randomized_layers=0)
    random = random_names(config.randomized_layers, config.weight_layers)
    kept = tuple(name for name in smaller.weight_layers if name in random)
    with torch.random.fork_rng(devices=[]):
        generator = MobileStyleGANGenerator(replace(smaller, randomized_layers=kept))
    theirs = whole.state_dict()
    names = [name for name in generator.state_dict() if not name.startswith("to_img.")]
    generator.load_state_dict({name: theirs[name] for name in names}, strict=False)
    head = generator.to_img
    with torch.no_grad():
        head.modulation.weight.zero_()
        head.modulation.bias.fill_(1 / head.scale)
        head.conv.weight.zero_()
    return generator.eval().requires_grad_(False)


@torch.no_grad()
def fit_head(generator: MobileStyleGANGenerator, pairs: Pairs, rows: range) -> None:
    """Set the head's convolution and bias by least squares over every pixel of these pairs."""
    head = generator.to_img
    width = head.conv.weight.shape[1]
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    product = torch.zeros(width + 1, head.colours, dtype=torch.float64)
    for row in rows:
        w = pairs.w[row : row + 1]
        x = _entering(generator, head, w) * (head.modulation(w) * head.scale)[:, :, None, None]
        flat = x[0].flatten(1).T
        flat = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
        gram += flat.T @ flat
        product += flat.T @ pairs.images(range(row, row + 1))[0].flatten(1).T
    # A ridge: without it the weights are large and cancel each other, and the descent goes astray.
    gram += torch.eye(width + 1, dtype=gram.dtype) * gram.diagonal().mean() * 1e-2
    solved = torch.linalg.solve(gram, product).float()
    head.conv.weight.copy_(solved[:-1].T[:, :, None, None])
    head.bias.copy_(solved[-1])


@dataclass(frozen=True)
class Windows:
    """Small parts of what enters the last block, and of the images that should come of them."""

    x: Tensor
    """float16 (N, C, s, s)."""
    images: Tensor
    """float16 (N, 3, 2s, 2s) in [-1, 1]."""
    corners: Tensor
    """int64 (N, 2): row and column of the upper left corner, in px of the feature maps."""
    pair: Tensor
    """int64 (N,): which pair each is of."""


@torch.no_grad()
def take_windows(
    generator: MobileStyleGANGenerator,
    pairs: Pairs,
    settings: FitSettings,
    on_pair: Callable[[int], None] | None = None,
) -> Windows:
    """Windows at random places of every pair, those at the image's edges included."""
    rng = random_generator(settings.seed)
    size = min(settings.window, pairs.side // 2)
    last = pairs.side // 2 - size
    count, width = len(pairs) * settings.windows, generator.layers[-1].up.modulation.out_features
    x = torch.empty(count, width, size, size, dtype=torch.float16)
    images = torch.empty(count, 3, 2 * size, 2 * size, dtype=torch.float16)
    # Drawn a little farther and pulled back: edges are as frequent as the middle.
    beyond = size // 4
    corners = torch.randint(-beyond, last + beyond + 1, (count, 2), generator=rng).clamp(0, last)
    pair = torch.arange(len(pairs)).repeat_interleave(settings.windows)
    for row in range(len(pairs)):
        found = _entering(generator, generator.layers[-1], pairs.w[row : row + 1])[0]
        image = pairs.images(range(row, row + 1))[0]
        for n in range(row * settings.windows, (row + 1) * settings.windows):
            top, left = corners[n].tolist()
            x[n] = found[:, top : top + size, left : left + size]
            images[n] = image[:, 2 * top : 2 * (top + size), 2 * left : 2 * (left + size)]
        if on_pair:
            on_pair(row + 1)
    return Windows(x, images, corners, pair)


def trained(generator: MobileStyleGANGenerator) -> dict[str, nn.Parameter]:
    """What is fitted, by name: all of the head and of the last block, but for σ and the strength of noise."""
    last = f"layers.{generator.config.blocks - 1}."
    return {
        name: parameter
        for name, parameter in generator.named_parameters()
        if name.startswith(("to_img.", last)) and not name.endswith((".std", ".noise.weight"))
    }


def fit(
    generator: MobileStyleGANGenerator,
    windows: Windows,
    w: Tensor,
    settings: FitSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train `trained(generator)` on windows of the pairs of w (N, style_dim), in place.

    on_step is told the step and its mean squared error.
    """
    parameters = trained(generator)
    adam = torch.optim.Adam(_groups(generator, parameters, settings.lr), betas=(0.9, 0.99))
    rng = random_generator(settings.seed + 1)
    kept = copy.deepcopy(parameters)
    with _learning(parameters):
        for step in range(settings.steps):
            chosen = torch.randint(len(windows.pair), (settings.batch,), generator=rng)
            loss = _loss(generator, windows, w, chosen)
            adam.zero_grad()
            loss.backward()
            share = _share(step / settings.steps, settings.warmup)
            for group in adam.param_groups:
                group["lr"] = group["height"] * share
            adam.step()
            with torch.no_grad():
                # Early on the mean of few.
                decay = min(settings.average, (step + 1) / (step + 10))
                for name, parameter in parameters.items():
                    kept[name].lerp_(parameter, 1 - decay)
            if on_step:
                on_step(step, float(loss.detach()))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])


@torch.no_grad()
def measure(generator: MobileStyleGANGenerator, pairs: Pairs) -> Tensor:
    """PSNR in dB of each pair's image as it is drawn, clipped to [-1, 1] as the pair's is: (N,)."""
    found = []
    for row in range(len(pairs)):
        drawn = generator.synthesis(pairs.w[row : row + 1]).clamp(-1, 1)
        found.append(psnr(drawn, pairs.images(range(row, row + 1))))
    return torch.cat(found)


def _loss(generator: MobileStyleGANGenerator, windows: Windows, w: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared error of these windows, where the block sees all that it would see in the image."""
    image, corners = windows.images[chosen].float(), windows.corners[chosen]
    drawn = _drawn(generator, windows.x[chosen].float(), w[windows.pair[chosen]], corners)
    # An image of pairs is clipped to [-1, 1]: there, farther out is right too.
    drawn = torch.where(image.abs() < 1, drawn, drawn.clamp(-1, 1))
    size, side = image.shape[-1], generator.config.resolution
    inside = []
    for axis in (0, 1):
        at = torch.arange(size)
        first = 2 * corners[:, axis, None]
        seen = ((at >= MARGIN) | (first == 0)) & ((at < size - MARGIN) | (first + size == side))
        inside.append(seen)
    mask = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    return ((drawn - image).square() * mask).sum() / (mask.sum() * image.shape[1])


def _drawn(generator: MobileStyleGANGenerator, x: Tensor, w: Tensor, corners: Tensor) -> Tensor:
    """The last block and the head on windows: x (B, C, s, s), w (B, style_dim) → (B, 3, 2s, 2s)."""
    block = generator.layers[-1]
    y = block.up(x.contiguous(memory_format=torch.channels_last), w)
    noises = list(generator.noise_inputs().values())[-2:]
    for conv, noise in zip((block.conv1, block.conv2), noises, strict=True):
        size = y.shape[-1]
        cut_out = [noise.map[:, :, 2 * r : 2 * r + size, 2 * c : 2 * c + size] for r, c in corners.tolist()]
        y = conv(y, w, torch.cat(cut_out), dict.fromkeys(conv.parts, (None, None)))
    return generator.to_img(y, w, half=False)


def _entering(generator: MobileStyleGANGenerator, module: nn.Module, w: Tensor) -> Tensor:
    """The feature maps that enter a module while the image of w (1, style_dim) is drawn."""
    seen: list[Tensor] = []
    where = module.up if module is generator.layers[-1] else module
    with where.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        generator.synthesis(w)
    return seen[0]


def _groups(
    generator: MobileStyleGANGenerator, parameters: dict[str, nn.Parameter], lr: float
) -> list[dict[str, object]]:
    """Adam's groups: biases, styles and convolutions differ in size by orders of magnitude."""
    size = {name: float(p.detach().square().mean().sqrt()) for name, p in parameters.items()}
    # What begins at 0 has no size: a modulation then gets that of its block's, in the head's units.
    up = f"layers.{generator.config.blocks - 1}.up.modulation.weight"
    head = generator.to_img
    size["to_img.modulation.weight"] = size["to_img.modulation.weight"] or size[up] / head.scale
    return [{"params": [p], "height": lr * (size[name] or 1.0)} for name, p in parameters.items()]


def _share(progress: float, warmup: float) -> float:
    """Of the height of the learning rate, where `progress` of the steps is done."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@contextmanager
def _learning(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False).grad = None


def main() -> None:
    """Cut, fit, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ffhq")
    parser.add_argument("--held-out", type=Path, help="pairs of another seed, to measure on")
    for field in fields(FitSettings):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    options = parser.parse_args()
    settings = FitSettings(**{field.name: getattr(options, field.name) for field in fields(FitSettings)})
    keep_freed_memory()
    start = load_model(options.model)
    if not isinstance(start.generator, MobileStyleGANGenerator):
        raise UsageError(f"model {start.name} is no MobileStyleGAN")
    pairs = open_pairs(options.pairs, start.generator)
    held_out = open_pairs(options.held_out, start.generator) if options.held_out else None

    def say_psnr(what: str) -> None:
        if held_out is not None:
            found = measure(generator, held_out)
            say(
                f"{what}: PSNR {found.mean():.2f} dB on {len(found)} held-out pairs (least {found.min():.2f})"
            )

    generator = cut(start.generator, pairs.side)
    fit_head(generator, pairs, range(min(settings.head_pairs, len(pairs))))
    say_psnr("head alone, by least squares")
    windows = take_windows(
        generator, pairs, settings, lambda done: say(f"windows of {done} pairs") if done % 256 == 0 else None
    )
    recent: list[float] = []

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        if len(recent) == 100:
            say(f"step {step + 1}: squared error {sum(recent) / len(recent):.5f}")
            recent.clear()

    fit(generator, windows, pairs.w, settings, on_step)
    say_psnr("fitted")
    source = {
        "fitted_by": "examples/fit_256.py",
        "of": start.sha256,
        "pairs": len(pairs),
        "settings": asdict(settings),
    }
    save_model(
        options.out, generator, None, start.w_mean, start.perceptual, source, inversion=start.inversion
    )
    print(options.out)


def say(line: str) -> None:
    """To stderr, at once."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
