"""Time forward and backward passes of the 256 px generator on the CPU: ours against rosinality's.

    python -m tests.benchmarks.generator_speed --rosinality PATH

PATH: a checkout of rosinality/stylegan2-pytorch, of which the CPU path is run (with stubs for its
compiled operations). Both render one image from the same w with the stored noise, and compute
the gradient of its mean square with respect to w and all parameters. The two alternate in
one process, so that both run under the same conditions. Printed are the medians of wall time and of
processor time (over all threads; steadier on a busy machine) and their ratios, and the
same for the bare convolutions of these shapes, a lower bound for every implementation that
uses them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.benchmarks.conversion_parity import peer_modules
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

Step = Callable[[], Any]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rosinality", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: torch's default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = StyleGAN2Config(options.resolution, rosinality_channels(options.resolution))
    ours = StyleGAN2Generator(config)
    theirs = rosinality_generator(options.rosinality, ours)
    w = torch.randn(options.batch, config.style_dim)
    steps = {
        "wrangan": backward_step(lambda v: ours.synthesis(v), ours, w),
        "rosinality": backward_step(
            lambda v: theirs([v], input_is_latent=True, randomize_noise=False)[0], theirs, w
        ),
        "bare convolutions": convolution_step(config, options.batch),
    }
    difference = float((steps["wrangan"]() - steps["rosinality"]()).abs().max())
    print(f"{options.resolution} px, batch {options.batch}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}; images differ by at most {difference:.1e}")  # fmt: skip
    times = alternate(steps, options.repeats)
    print("| forward + backward | wall s | processor s | rosinality / this, wall | processor |")
    print("|---|---|---|---|---|")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    for name, (wall, processor) in medians.items():
        ratios = f"{medians['rosinality'][0] / wall:.2f} | {medians['rosinality'][1] / processor:.2f}"
        print(f"| {name} | {wall:.2f} | {processor:.2f} | {ratios} |")
    pairs = [their[0] / our[0] for their, our in zip(times["rosinality"], times["wrangan"], strict=True)]
    print(f"median of the {len(pairs)} wall ratios of consecutive steps: {statistics.median(pairs):.2f}")


def rosinality_generator(checkout: Path, ours: StyleGAN2Generator) -> Any:
    """Rosinality's class with our weights (the keys are the same)."""
    with peer_modules(checkout):
        import model

        config = ours.config
        theirs = model.Generator(config.resolution, config.style_dim, config.mapping_layers)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def backward_step(render: Callable[[Tensor], Tensor], network: torch.nn.Module, w: Tensor) -> Step:
    """One forward and backward pass, with gradients of w and all parameters; returns the image."""
    leaf = w.clone().requires_grad_()

    def step() -> Tensor:
        network.zero_grad(set_to_none=True)
        leaf.grad = None
        image = render(leaf)
        image.square().mean().backward()
        return image.detach()

    return step


def convolution_step(config: StyleGAN2Config, batch: int) -> Step:
    """The generator's 3×3 convolutions alone, forward and backward, contiguous float32."""
    widths = config.channels
    layers: list[tuple[Tensor, Tensor, bool]] = []
    for size in config.resolutions:
        shapes = [(widths[size], size, False)]
        if size > 4:
            shapes.insert(0, (widths[size // 2], size // 2, True))
        for inputs, side, up in shapes:
            x = torch.randn(batch, inputs, side, side, requires_grad=True)
            weight = torch.randn(widths[size], inputs, 3, 3, requires_grad=True)
            layers.append((x, weight, up))

    def step() -> None:
        for x, weight, up in layers:
            x.grad = weight.grad = None
            if up:
                y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            else:
                y = F.conv2d(x, weight, padding=1)
            y.backward(torch.ones_like(y))

    return step


def alternate(steps: dict[str, Step], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of the steps, taken in turn, A B C A B C …, after a warm-up of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return times


if __name__ == "__main__":
    main()
