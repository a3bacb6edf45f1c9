"""Fit a smaller form of a MobileStyleGAN: cut off after one of its blocks, with a new image head.

    python examples/fit_256.py runs/ffhq-256 --model ffhq --side 256 --seed 1
    python examples/fit_256.py runs/longer --start runs/ffhq-256 --seed 2 --lr 1e-3

Detail that the whole generator adds above 256 px is not visible in a photograph of that size. The smaller
form ends with the block whose side is `--side`, and a modulated 1×1 convolution makes the image. First the
head is fitted by least squares. Then the head and the last block are trained with Adam to reproduce the image
of the whole generator, reduced by area averaging. Everything else is copied from the whole generator,
including W and the σ of the blocks that remain. `--start` continues from an earlier fit.

The frozen part runs once for each w. Only small windows of its output are kept (3.5 GB for 2,048 w), and of
the whole generator only these are rendered, so that a step uses many w at less than the cost of one image.
`--held-out` (pairs from `wrangan generate --pairs`) measures the quality on w that were not used.
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
"""Width in px of the border of a window that depends on pixels outside of it: two for the 3×3 convolutions
of the last block and, in the whole generator, one for those of the next block, half a pixel for the one after
that …"""


@dataclass(frozen=True)
class FitSettings:
    """How the head and the last block are fitted."""

    samples: int = 2048
    """Number of random w for training."""
    head_samples: int = 32
    """Number of random w for the least squares."""
    windows: int = 8
    """Number of windows per w."""
    window: int = 20
    """Side of a window in px of the feature maps, which have half the side of the image."""
    steps: int = 7000
    """Number of training steps."""
    batch: int = 32
    """Number of windows per step."""
    lr: float = 2e-3
    """Adam's peak learning rate, as a fraction of the root mean square of each tensor."""
    warmup: float = 0.03
    """Fraction of the steps over which the rate rises; then it falls to 0 along a cosine."""
    average: float = 0.995
    """Decay of the moving average of the weights, which is the result."""
    seed: int = 0
    """Seed of w, and of the positions and the order of the windows."""


def cut(whole: MobileStyleGANGenerator, side: int) -> MobileStyleGANGenerator:
    """The generator up to its convolutions at `side` px, with an unfitted plain head.

    The head is modulated by the row of W+ that in `whole` modulates the same feature maps as the input of
    the next block; initially it has no modulation. The number of rows is unchanged. UsageError if `whole` has
    no such block, or none after it.
    """
    config = whole.config
    if side not in config.channels or side in (4, max(config.channels)):
        raise UsageError(f"cannot cut at {side} px: the blocks have {sorted(config.channels)[1:]} px")
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
    # Ridge regression: otherwise the weights are large and cancel each other, and training diverges.
    gram += torch.eye(width + 1, dtype=gram.dtype) * gram.diagonal().mean() * 1e-2
    solved = torch.linalg.solve(gram, product).float()
    head.conv.weight.copy_(solved[:-1].T[:, :, None, None])
    head.bias.copy_(solved[-1])


@dataclass(frozen=True)
class Windows:
    """Windows of the input of the last block, and of the images to reproduce."""

    x: Tensor
    """float16 (N, C, s, s)."""
    images: Tensor
    """float16 (N, 3, 2s, 2s), not clipped."""
    corners: Tensor
    """int64 (N, 2): row and column of the upper left corner, in px of the feature maps."""
    w: Tensor
    """float32 (N, style_dim)."""


@torch.no_grad()
def render_windows(
    whole: MobileStyleGANGenerator,
    generator: MobileStyleGANGenerator,
    settings: FitSettings,
    on_sample: Callable[[int], None] | None = None,
) -> Windows:
    """Windows at random positions in the images of random w, including the edges of the images."""
    rng = random_generator(settings.seed)
    w = whole.mapping(torch.randn(settings.samples, whole.config.style_dim, generator=rng))
    side, each = generator.config.resolution // 2, settings.windows
    size = min(settings.window, side)
    count, width = len(w) * each, generator.layers[-1].up.modulation.out_features
    x = torch.empty(count, width, size, size, dtype=torch.float16)
    images = torch.empty(count, whole.config.image_channels, 2 * size, 2 * size, dtype=torch.float16)
    # Sampled from a larger range and clamped, so that edges are as frequent as the middle.
    beyond = size // 4
    corners = torch.randint(-beyond, side - size + beyond + 1, (count, 2), generator=rng).clamp(
        0, side - size
    )
    first = generator.config.blocks - 1
    for n, row in enumerate(w.split(1)):
        found = _entering(generator, generator.layers[-1].up, row)[0]
        rows = slice(n * each, (n + 1) * each)
        parts = [found[:, top : top + size, left : left + size] for top, left in corners[rows].tolist()]
        x[rows] = torch.stack(parts)
        images[rows] = _rendered(whole, first, x[rows].float(), row.expand(each, -1), corners[rows])
        if on_sample:
            on_sample(n + 1)
    return Windows(x, images, corners, w.repeat_interleave(each, dim=0))


def trained(generator: MobileStyleGANGenerator) -> dict[str, nn.Parameter]:
    """The trained parameters by name: those of the head and the last block, except σ and noise strengths."""
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
    """Train `trained(generator)` in place. on_step gets the step and its mean squared error."""
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
            factor = _lr_factor(step / settings.steps, settings.warmup)
            for group in adam.param_groups:
                group["lr"] = group["peak"] * factor
            adam.step()
            with torch.no_grad():
                # Early on, the average covers only few steps.
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
    """PSNR in dB of the image of each pair's w, clipped to [-1, 1] like the image of the pair: (N,)."""
    found = []
    for row in range(len(pairs)):
        image = generator.synthesis(pairs.w[row : row + 1]).clamp(-1, 1)
        found.append(psnr(image, pairs.images(range(row, row + 1))))
    return torch.cat(found)


def _loss(generator: MobileStyleGANGenerator, windows: Windows, chosen: Tensor) -> Tensor:
    """Mean squared error of these windows, over the pixels that depend on nothing outside of a window."""
    image, corners = windows.images[chosen].float(), windows.corners[chosen]
    last = generator.config.blocks - 1
    rendered = _rendered(generator, last, windows.x[chosen].float(), windows.w[chosen], corners)
    inside = inner_pixels(corners, image.shape[-1], generator.config.resolution)
    return ((rendered - image).square() * inside).sum() / (inside.sum() * image.shape[1])


def inner_pixels(corners: Tensor, size: int, side: int) -> Tensor:
    """Which pixels of a window depend on nothing outside of it: bool (N, 1, size, size). At the edge of the
    image there is nothing outside."""
    at, first = torch.arange(size), 2 * corners[:, :, None]
    within = ((at >= MARGIN) | (first == 0)) & ((at < size - MARGIN) | (first + size == side))
    return (within[:, 0, :, None] & within[:, 1, None, :])[:, None]


def _rendered(
    generator: MobileStyleGANGenerator, first: int, x: Tensor, w: Tensor, corners: Tensor
) -> Tensor:
    """Apply the blocks from number `first` on and the head to windows, and reduce the result by area
    averaging: x (B, C, s, s) → (B, 3, 2s, 2s)."""
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
    """The input feature maps of a module for w (1, style_dim); rendering stops there."""
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
    """Adam's parameter groups: biases, styles and convolutions differ in size by orders of magnitude."""
    size = {name: float(p.detach().square().mean().sqrt()) for name, p in parameters.items()}
    # A modulation that starts at 0 has no size: use that of its block's modulation, in the head's units.
    up = f"layers.{generator.config.blocks - 1}.up.modulation.weight"
    head = generator.to_img
    size["to_img.modulation.weight"] = size["to_img.modulation.weight"] or size[up] / head.scale
    return [{"params": [p], "peak": lr * (size[name] or 1.0)} for name, p in parameters.items()]


def _lr_factor(progress: float, warmup: float) -> float:
    """The learning rate as a fraction of its peak; `progress`: the fraction of the steps done."""
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
    """Cut off, fit, measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="ffhq", help="the whole generator")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--start", type=Path, help="an earlier fit to continue from")
    parser.add_argument("--held-out", type=Path, help="pairs with another seed, to measure the quality on")
    for field in fields(FitSettings):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default)
    options = parser.parse_args()
    settings = FitSettings(**{field.name: getattr(options, field.name) for field in fields(FitSettings)})
    keep_freed_memory()
    start = load_model(options.model)
    whole = start.generator
    if not isinstance(whole, MobileStyleGANGenerator):
        raise UsageError(f"model {start.name} is not a MobileStyleGAN")
    held_out = open_pairs(options.held_out, whole) if options.held_out else None

    def say_psnr(what: str) -> None:
        if held_out is not None:
            found = measure(generator, held_out)
            say(f"{what}: PSNR {found.mean():.2f} dB on {len(found)} held-out pairs (min {found.min():.2f})")

    source = {"fitted_by": "examples/fit_256.py", "of": start.sha256, "settings": asdict(settings)}
    generator = cut(whole, options.side)
    if options.start:
        earlier = load_model(str(options.start))
        generator.load_state_dict(earlier.generator.state_dict())
        source["start"] = read_config(options.start)["source"]
    else:
        fit_head(whole, generator, sample_w(whole, settings.head_samples, settings.seed + 1))
    say_psnr("before training")
    windows = render_windows(whole, generator, settings, lambda n: say(f"{n} w") if n % 256 == 0 else None)
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
    """Print to stderr, unbuffered."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
