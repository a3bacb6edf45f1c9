"""The cost of perceptual networks on the CPU, with one thread: the gradient of the image by filter rows and
by PyTorch, and LPIPS's VGG (random weights) with its convolutions by the kernels and by PyTorch.

python -m tests.benchmarks.image_conv
"""

import statistics
import time
from collections.abc import Callable

import lpips
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wrangan_kernels import loader

from wrangan_cli.engine.models.perceptual import PerceptualDistance, with_fast_layout
from wrangan_cli.engine.ops.image_conv import ImageConv2d

SHAPES = ((11, 2, 8, 64), (11, 2, 1, 64), (3, 1, 8, 64))
"""Filter, padding, batch, side: the first layers of shift-tolerant AlexNet and VGG."""


def seconds(call: Callable[[Tensor], Tensor], batch: int, side: int) -> float:
    """Seconds per image for forward and backward: the median of 15."""
    taken = []
    for _ in range(17):
        x = torch.randn(batch, 3, side, side, requires_grad=True)
        start = time.perf_counter()
        y = call(x)
        between = time.perf_counter()
        grad = torch.randn_like(y)
        again = time.perf_counter()
        y.backward(grad)
        taken.append((time.perf_counter() - again + between - start) / batch)
    return statistics.median(taken[2:])


def main() -> None:
    """Print one line per shape."""
    torch.set_num_threads(1)
    for filter_side, padding, batch, side in SHAPES:
        conv = ImageConv2d(3, 64, filter_side, padding).requires_grad_(False)

        def plain(x: Tensor, conv: ImageConv2d = conv, padding: int = padding) -> Tensor:
            return F.conv2d(x, conv.weight, conv.bias, padding=padding)

        rows, theirs = seconds(conv, batch, side), seconds(plain, batch, side)
        shape = f"{filter_side}×{filter_side}, {batch} × 3 × {side}²"
        print(f"{shape}: by rows {rows * 1e3:.1f} ms/image, PyTorch {theirs * 1e3:.1f} ms/image")
    package = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    taps = nn.ModuleList(getattr(package.net, f"slice{index}") for index in range(1, 6))
    vgg = with_fast_layout(PerceptualDistance("lpips-vgg", taps, [torch.rand(n) for n in package.chns]))
    target = [features.detach() for features in vgg.features(torch.rand(1, 3, 256, 256))]

    def distance(x: Tensor) -> Tensor:
        return vgg.distance(vgg.features(x), target)

    kernels = seconds(distance, 1, 256)
    with loader.reference():
        theirs = seconds(distance, 1, 256)
    print(f"LPIPS-VGG, 1 × 3 × 256²: kernels {kernels * 1e3:.0f} ms, PyTorch {theirs * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
