"""A smaller form of a MobileStyleGAN: cut after one of its blocks, with a head of its own.

    python examples/fit_256.py runs/ffhq-256 --model ffhq --side 256 --seed 1
    python examples/fit_256.py runs/longer --start runs/ffhq-256 --seed 2 --lr 1e-3

What the whole generator does above 256 px, a photograph of that size does not see. Here it ends with the
block that draws at `--side`, and a modulated 1×1 convolution makes the image. The head comes first, by least
squares; then it and the last block learn by Adam to draw what the whole generator's image is when it is
reduced by area. All else is the whole generator's, W and the σ of the blocks that stay included. `--start`
goes on from an earlier fit.

What is frozen runs once for each w. Of what it gives, some small windows are kept (3.5 GB for 2,048 w), and
the whole generator draws these alone: a step sees many w at the price of less than one image. How well it
does on w that it has not seen: `--held-out` (pairs by `wrangan generate --pairs`).
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

from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.psnr import psnr
from wrangan_cli.engine.models.folder import read_config, sample_w, save_model
from wrangan_cli.engine.models.generator import random_names, reduced
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import Pairs, open_pairs

MARGIN = 4
"""Pixels inside a window's edge that see beyond it: two for the 3×3 convolutions of the last block, and in
the whole generator one for those of the next, a half for those after it …"""


@dataclass(frozen=True)
class FitSettings:
    """How the head and the last block are fitted."""

    samples: int = 2048
    """Random w of the descent."""
    head_samples: int = 32
    """Random w of the least squares."""
    windows: int = 8
    """Windows of each w."""
    window: int = 20
    """Side of a window in px of the feature maps, which have half the side of the image."""
    steps: int = 7000
    """Of the descent."""
    batch: int = 32
    """Windows of a step."""
    lr: float = 2e-3
    """Adam's learning rate at its height, as a share of each tensor's root mean square."""
    warmup: float = 0.03
    """Share of the steps over which it rises; then it falls along a cosine to 0."""
    average: float = 0.995
    """Decay of the running mean of the weights, which is what is kept."""
    seed: int = 0
    """Of w, of the windows' places and their order."""


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
def fit_head(whole: MobileStyleGANGenerator, generator: MobileStyleGANGenerator, w: Tensor) -> None:
    """Set the head's convolution and bias by least squares over every pixel of the images of w (N, dim)."""
    head = generator.to_img
    width = head.conv.weight.shape[1]
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    product = torch.zeros(width + 1, head.colours, dtype=torch.float64)
    for row in w.split(1):
        x = _entering(generator, head, row) * (head.modulation(row) * head.scale)[:, :, None, None]
        flat = x[0].flatten(1).T
        flat = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)
        image = whole.synthesis(row, side=generator.config.resolution)[0]
        gram += flat.T @ flat
        product += flat.T @ image.flatten(1).T
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
    """float16 (N, 3, 2s, 2s), not clipped."""
    corners: Tensor
    """int64 (N, 2): row and column of the upper left corner, in px of the feature maps."""
    w: Tensor
    """float32 (N, style_dim)."""


@torch.no_grad()
def draw_windows(
    whole: MobileStyleGANGenerator,
    generator: MobileStyleGANGenerator,
    settings: FitSettings,
    on_sample: Callable[[int], None] | None = None,
) -> Windows:
    """Windows at random places of the images of random w, those at the image's edges included."""
    rng = random_generator(settings.seed)
    w = whole.mapping(torch.randn(settings.samples, whole.config.style_dim, generator=rng))
    side, each = generator.config.resolution // 2, settings.windows
    size = min(settings.window, side)
    count, width = len(w) * each, generator.layers[-1].up.modulation.out_features
    x = torch.empty(count, width, size, size, dtype=torch.float16)
    images = torch.empty(count, whole.config.image_channels, 2 * size, 2 * size, dtype=torch.float16)
    # Drawn a little farther and pulled back: edges are as frequent as the middle.
    beyond = size // 4
    corners = torch.randint(-beyond, side - size + beyond + 1, (count, 2), generator=rng).clamp(
        0, side - size
    )
    first = generator.config.blocks - 1
    for n, row in enumerate(w.split(1)):
        found = _entering(generator, generator.layers[-1].up, row)[0]
        own = slice(n * each, (n + 1) * each)
        parts = [found[:, top : top + size, left : left + size] for top, left in corners[own].tolist()]
        x[own] = torch.stack(parts)
        images[own] = _drawn(whole, first, x[own].float(), row.expand(each, -1), corners[own])
        if on_sample:
            on_sample(n + 1)
    return Windows(x, images, corners, w.repeat_interleave(each, dim=0))


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
    settings: FitSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train `trained(generator)` in place. on_step is told the step and its mean squared error."""
    parameters = trained(generator)
    adam = torch.optim.Adam(_groups(generator, parameters, settings.lr), betas=(0.9, 0.99))
    rng = random_generator(settings.seed + 1)
    kept = copy.deepcopy(parameters)
    with _learning(parameters):
        for step in range(settings.steps):
            chosen = torch.randint(len(windows.w), (settings.batch,), generator=rng)
            loss = _loss(generator, windows, chosen)
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


def _loss(generator: MobileStyleGANGenerator, windows: Windows, chosen: Tensor) -> Tensor:
    """Mean squared error of these windows, where both generators see all that they see in the image."""
    image, corners = windows.images[chosen].float(), windows.corners[chosen]
    last = generator.config.blocks - 1
    drawn = _drawn(generator, last, windows.x[chosen].float(), windows.w[chosen], corners)
    inside = seen(corners, image.shape[-1], generator.config.resolution)
    return ((drawn - image).square() * inside).sum() / (inside.sum() * image.shape[1])


def seen(corners: Tensor, size: int, side: int) -> Tensor:
    """Which of a window's pixels see nothing beyond it but the image's own edge: bool (N, 1, size, size)."""
    at, first = torch.arange(size), 2 * corners[:, :, None]
    within = ((at >= MARGIN) | (first == 0)) & ((at < size - MARGIN) | (first + size == side))
    return (within[:, 0, :, None] & within[:, 1, None, :])[:, None]


def _drawn(generator: MobileStyleGANGenerator, first: int, x: Tensor, w: Tensor, corners: Tensor) -> Tensor:
    """Blocks from the first on and the head, on windows; reduced by area: x (B, C, s, s) → (B, 3, 2s, 2s)."""
    noises = list(generator.noise_inputs().values())
    side, y = 2 * x.shape[-1], x.contiguous(memory_format=torch.channels_last)
    for k in range(first, generator.config.blocks):
        block = generator.layers[k]
        y = block.up(y, w)
        size, scale = y.shape[-1], 2 ** (k - first + 1)
        for conv, noise in ((block.conv1, noises[2 * k + 1]), (block.conv2, noises[2 * k + 2])):
            maps = [noise.map[:, :, r : r + size, c : c + size] for r, c in (corners * scale).tolist()]
            y = conv(y, w, torch.cat(maps), dict.fromkeys(conv.parts, (None, None)))
    return reduced(generator.to_img(y, w, side), side)


def _entering(generator: MobileStyleGANGenerator, module: nn.Module, w: Tensor) -> Tensor:
    """The feature maps that enter a module while the image of w (1, style_dim) is drawn, which ends there."""
    found: list[Tensor] = []

    def end(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Reached

    hook = module.register_forward_pre_hook(end)
    try:
        generator.synthesis(w)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


class _Reached(Exception):
    pass


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
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ffhq", help="the whole generator")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--start", type=Path, help="an earlier fit to go on from")
    parser.add_argument("--held-out", type=Path, help="pairs of another seed, to measure on")
    for field in fields(FitSettings):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    options = parser.parse_args()
    settings = FitSettings(**{field.name: getattr(options, field.name) for field in fields(FitSettings)})
    keep_freed_memory()
    start = load_model(options.model)
    whole = start.generator
    if not isinstance(whole, MobileStyleGANGenerator):
        raise UsageError(f"model {start.name} is no MobileStyleGAN")
    held_out = open_pairs(options.held_out, whole) if options.held_out else None

    def say_psnr(what: str) -> None:
        if held_out is not None:
            found = measure(generator, held_out)
            say(
                f"{what}: PSNR {found.mean():.2f} dB on {len(found)} held-out pairs (least {found.min():.2f})"
            )

    source = {"fitted_by": "examples/fit_256.py", "of": start.sha256, "settings": asdict(settings)}
    generator = cut(whole, options.side)
    if options.start:
        earlier = load_model(str(options.start))
        generator.load_state_dict(earlier.generator.state_dict())
        source["start"] = read_config(options.start)["source"]
    else:
        fit_head(whole, generator, sample_w(whole, settings.head_samples, settings.seed + 1))
    say_psnr("before the descent")
    windows = draw_windows(whole, generator, settings, lambda n: say(f"{n} w") if n % 256 == 0 else None)
    recent: list[float] = []

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        if len(recent) == 100:
            say(f"step {step + 1}: squared error {sum(recent) / len(recent):.5f}")
            recent.clear()

    fit(generator, windows, settings, on_step)
    say_psnr("fitted")
    save_model(
        options.out, generator, None, start.w_mean, start.perceptual, source, inversion=start.inversion
    )
    print(options.out)


def say(line: str) -> None:
    """To stderr, at once."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
