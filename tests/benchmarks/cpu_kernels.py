"""Compare each CPU kernel with the PyTorch operations that it replaces, by shape (docs/kernels.md).

    python -m tests.benchmarks.cpu_kernels

Kernel and PyTorch are timed alternately; printed are the medians of wall time and their ratio. Run it on an
otherwise idle machine.
"""

# ruff: noqa: B023  (each pair is called before its loop continues: `main` takes them one by one)
import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels import loader

from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.ops.bias_act import bias_act
from wrangan_cli.engine.ops.fir import fir_kernel, upfirdn2d
from wrangan_cli.engine.ops.modulated_conv import styled_conv2d
from wrangan_cli.engine.ops.separable import modulated_pointwise, modulated_separable, styled_upsample

SAME = [(1, 128, 256), (1, 256, 128), (1, 512, 64), (1, 512, 32), (1, 512, 16), (8, 32, 64), (8, 64, 32)]
SAME += [
    (8, 96, 16),
    (8, 192, 8),
    (1, 64, 32),
    (1, 96, 16),
    (1, 256, 8),
    (1, 512, 4),
    (8, 512, 4),
    (1, 256, 3),
]
UP = [(1, 256, 128, 128), (1, 512, 256, 64), (1, 512, 512, 32), (1, 512, 512, 16), (8, 64, 32, 32)]
UP += [
    (8, 96, 64, 16),
    (8, 192, 96, 8),
    (1, 64, 32, 32),
    (1, 256, 128, 8),
    (1, 512, 256, 4),
    (8, 512, 256, 4),
]
PLANES = [(1, 128, 256), (1, 512, 64), (8, 32, 64), (8, 96, 16), (8, 192, 8)]
LAYERS = [(1, 128, 16), (1, 32, 64), (8, 128, 16), (8, 32, 64)]
SEPARABLE = [(512, 512, 32), (128, 512, 64), (512, 512, 64), (128, 256, 128), (256, 256, 128)]
SEPARABLE += [(64, 128, 256), (128, 128, 256), (32, 64, 512), (64, 64, 512)]
"""Layers of ffhq: (inputs, outputs, side)."""
SHORT = 0.5
"""Minimum total seconds of measurement, reached by up to eight times the repeats."""
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def main() -> None:
    """Print a table with one row per shape and kernel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: torch's default")
    parser.add_argument("--only", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not loader.ready("cpu"):
        sys.exit(f"no CPU kernels to measure: {loader.describe('cpu')}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| shape | kernel | kernel ms | PyTorch ms | ratio |\n|---|---|---|---|---|")
    for shape, name, pair in itertools.chain(same(), up(), whole_layers(), filters(), separable()):
        if options.only not in name:
            continue
        mine, theirs = (1e3 * t for t in medians(pair, options.repeats))
        print(f"| {shape} | {name} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.2f} |", flush=True)


def medians(pair: Pair, repeats: int) -> list[float]:
    """Median wall seconds of both, timed alternately; short operations are repeated more often."""
    times: list[list[float]] = [[], []]
    repeat = 0
    while repeat <= repeats or (repeat <= 8 * repeats and sum(map(sum, times)) < SHORT):
        for work, seconds in zip(pair, times, strict=True):
            start = time.perf_counter()
            work()
            if repeat:
                seconds.append(time.perf_counter() - start)
        repeat += 1
    return [statistics.median(seconds) for seconds in times]


def backward(x: Tensor, g: Tensor, w: Tensor, stride: int, up: bool, of_weight: bool) -> Callable[[], Any]:
    """PyTorch's gradient of a 3×3 convolution with respect to x, or to the weight."""
    pad, mask = (1 - int(stride == 2)), [not of_weight, of_weight, False]
    convolution = torch.ops.aten.convolution_backward
    numbers = ([stride] * 2, [pad] * 2, [1, 1], up, [0, 0], 1, mask)
    return lambda: convolution(g, x, w, None, *numbers)


def same() -> Iterator[tuple[str, str, Pair]]:
    """3×3 convolutions of stride 1 with equally many input and output channels: (batch, channels, side)."""
    ops = torch.ops.wrangan
    for batch, channels, side in SAME:
        x, g = torch.randn(2, batch, channels, side, side)
        w = torch.randn(channels, channels, 3, 3)
        shape = f"{batch} × {channels} × {side}²"
        yield (
            shape,
            "conv3x3",
            (lambda: ops.conv3x3(x, w, None, None, False), lambda: F.conv2d(x, w, padding=1)),
        )
        back = (lambda: ops.conv3x3(g, w, None, None, True), backward(x, g, w, 1, False, False))
        yield shape, "conv3x3, in x", back
        back = (lambda: ops.conv3x3_weight_grad(x, g, None, None, False), backward(x, g, w, 1, False, True))
        yield shape, "conv3x3, in the weight", back


def up() -> Iterator[tuple[str, str, Pair]]:
    """Transposed convolutions of stride 2: (batch, inputs, outputs, side)."""
    ops = torch.ops.wrangan
    for batch, inputs, outputs, side in UP:
        x, g = torch.randn(batch, inputs, side, side), torch.randn(batch, outputs, 2 * side + 1, 2 * side + 1)
        w = torch.randn(outputs, inputs, 3, 3)
        t = w.transpose(0, 1).contiguous()
        shape = f"{batch} × {inputs} → {outputs} × {side}²"
        pair = (lambda: ops.conv3x3_up(x, w, None, None, False), lambda: F.conv_transpose2d(x, t, stride=2))
        yield shape, "conv3x3_up", pair
        back = (lambda: ops.conv3x3_up(g, w, None, None, True), backward(x, g, t, 2, True, False))
        yield shape, "conv3x3_up, in x", back
        back = (lambda: ops.conv3x3_up_weight_grad(x, g, None, None, False), backward(x, g, t, 2, True, True))
        yield shape, "conv3x3_up, in the weight", back


def whole_layers() -> Iterator[tuple[str, str, Pair]]:
    """A styled layer with separate weights for each image, forward from ε and backward to ε and the style,
    and its toRGB layer: (batch, channels, side)."""
    for batch, channels, side in LAYERS:
        mu, std = torch.randn(channels, channels, 3, 3), torch.rand(channels, channels, 3, 3)
        given = [torch.randn(batch, channels, side, side), torch.rand(batch, channels) + 0.5]
        given += [torch.randn(batch, channels, channels, 3, 3)]
        x, style, epsilon = (tensor.requires_grad_() for tensor in given)
        bias, noise, strength = torch.randn(channels), torch.randn(1, 1, side, side), torch.rand(1)
        rows = torch.randn(3, channels)

        def layer() -> None:
            weight, energy = torch.ops.wrangan.random_weight(mu, std, epsilon)
            numbers = (None, 0, 0, 0.2, 1.4, -1.0)
            layer = (x, weight, energy, style, noise, strength, bias, *numbers)
            torch.ops.wrangan.styled_conv(*layer)[0].sum().backward()

        def parts() -> None:
            styled_conv2d(x, mu + std * epsilon, style, noise, strength, bias).sum().backward()

        def image() -> None:
            torch.ops.wrangan.to_rgb(x, rows, style, bias[:3], None, None, -1.0).sum().backward()

        def product() -> None:
            (torch.bmm(rows * style[:, None], x.flatten(2)) + bias[:3, None]).sum().backward()

        shape = f"{batch} × {channels} × {side}²"
        yield shape, "random_weight, styled_conv", (layer, reference(parts))
        yield shape, "to_rgb", (image, product)


def filters() -> Iterator[tuple[str, str, Pair]]:
    """FIR filters and the end of a layer, forward and backward: (batch, channels, side)."""
    kernel = fir_kernel(gain=4.0)
    for batch, channels, side in PLANES:
        x = torch.randn(batch, channels, side + 1, side + 1, requires_grad=True)
        bias, noise, strength = torch.randn(channels), torch.randn(1, 1, side, side), torch.rand(1)
        scale = torch.rand(batch, channels) + 0.5

        def blurred() -> None:
            upfirdn2d(x, kernel, pad=(1, 1)).sum().backward()

        def layer() -> None:
            numbers = (noise, strength, scale, bias, 0.2, 1.4, -1.0)
            torch.ops.wrangan.fir_act(x, kernel, 1, 1, *numbers).sum().backward()

        def parts() -> None:
            y = upfirdn2d(x * scale[:, :, None, None], kernel, pad=(1, 1)) + strength * noise
            bias_act(y, bias).sum().backward()

        def activated() -> None:
            bias_act(x, bias).sum().backward()

        shape = f"{batch} × {channels} × {side}²"
        yield shape, "upfirdn2d", (blurred, reference(blurred))
        yield shape, "fir_act", (layer, reference(parts))
        yield shape, "fir_act, no filter", (activated, reference(activated))


def separable() -> Iterator[tuple[str, str, Pair]]:
    """The layers of MobileStyleGAN for one image, channels_last: forward, and with all gradients of an
    inversion. The copies have as many bytes as must be moved: every plane is read or written once."""

    def plane(*shape: int) -> Tensor:
        return torch.randn(1, *shape).contiguous(memory_format=torch.channels_last).requires_grad_()

    def pair(work: Callable[[], Tensor], gradients: bool, leaves: list[Tensor]) -> Pair:
        def run() -> None:
            with torch.set_grad_enabled(gradients):
                y = work()
            if gradients:
                torch.autograd.grad(y, leaves, pull)

        pull = torch.randn_like(work())
        return run, reference(run)

    def copies(name: str, floats: int) -> tuple[str, str, Pair]:
        a = torch.randn(floats // 2)
        b = torch.empty_like(a)
        return shape, f"{name}: a copy of its bytes", (lambda: b.copy_(a), lambda: b.copy_(a))

    for inputs, outputs, side in SEPARABLE:
        x, style = plane(inputs, side, side), torch.randn(1, inputs).requires_grad_()
        depthwise = torch.randn(1, inputs, 1, 3, 3).requires_grad_()
        mixing = torch.randn(1, outputs, inputs, 1, 1).requires_grad_()
        noise, bias = torch.randn(1, 1, side, side), torch.randn(outputs)

        def layer() -> Tensor:
            return modulated_separable(x, style, depthwise, mixing, noise, bias)

        shape = f"{inputs} → {outputs} × {side}²"
        yield shape, "separable_conv", pair(layer, False, [])
        yield copies("separable_conv", (inputs + outputs) * side * side)
        yield shape, "separable_conv and gradients", pair(layer, True, [x, style, depthwise, mixing])
        # Forward x and y; backward y and its gradient, x and its gradient.
        yield copies("separable_conv and gradients", 3 * (inputs + outputs) * side * side)
    for channels, side in ((512, 64), (256, 128), (128, 256)):
        x, style = plane(channels, side, side), torch.randn(1, channels).requires_grad_()
        shape = f"{channels} × {side}²"
        yield shape, "haar_up", pair(lambda: styled_upsample(x, style), False, [])
        yield copies("haar_up", 2 * channels * side * side)
        yield shape, "haar_up and gradients", pair(lambda: styled_upsample(x, style), True, [x, style])
        yield copies("haar_up and gradients", 5 * channels * side * side)
    x, style = plane(64, 512, 512), torch.randn(1, 64).requires_grad_()
    rows, bias, shape = torch.randn(3, 64), torch.randn(3), "64 → 3 × 512², at 256²"

    def image() -> Tensor:
        return modulated_pointwise(x, style, rows, bias, 2)

    yield shape, "pooled_pointwise", pair(image, False, [])
    yield copies("pooled_pointwise", 64 * 512 * 512)
    yield shape, "pooled_pointwise and gradients", pair(image, True, [x, style])
    yield copies("pooled_pointwise and gradients", 3 * 64 * 512 * 512)


def reference(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work without kernels."""

    def run() -> None:
        with loader.reference():
            work()

    return run


if __name__ == "__main__":
    main()
