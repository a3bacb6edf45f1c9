"""Compare the bandwidth of each CUDA kernel with that of a copy, on the current GPU.

    WRANGAN_KERNELS=require python -m tests.benchmarks.gpu_kernels

The bytes of a kernel are those of all its tensors, each read or written once, which is the minimum.
The copy is that of one large tensor to another by PyTorch, counting reads and writes. Times are medians over
repeated series of calls between two CUDA events; the tensors are larger than the L2 cache. A second
table compares ways of convolving with a separate weight for each image.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels import loader

from wrangan_cli.engine.ops.separable import modulated_separable

ACTIVATION = (0.2, 2**0.5, 256.0)
DTYPES = {"float32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALAR_TYPES = {"float32": 6, "fp16": 5, "bf16": 15}
TARGET = 0.7
SEPARABLE = ((32, 64, 512), (64, 64, 512), (128, 128, 256), (512, 512, 64))
"""Layers of `ffhq`: (input channels, output channels, side)."""
ops: Any = torch.ops.wrangan


@dataclass(frozen=True)
class Case:
    """One call of a kernel."""

    kernel: str
    shape: str
    dtype: str
    layout: str
    call: Callable[[], Any]
    inputs: tuple[Tensor | None, ...]

    def bytes(self, results: Any) -> int:
        """The bytes of all tensors, each counted once."""
        outputs = results if isinstance(results, tuple) else (results,)
        tensors = [t for t in (*self.inputs, *outputs) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", default="float32,bf16,fp16", help="some of float32, bf16, fp16")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--calls", type=int, default=10, help="number of calls between two events")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, not tables")
    options = parser.parse_args()
    names = options.dtypes.split(",")
    if unknown := set(names) - set(DTYPES):
        parser.error(f"--dtypes: unknown {', '.join(sorted(unknown))}; choose from {', '.join(DTYPES)}")
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: the bandwidth of the kernels cannot be measured")
    if not loader.ready("cuda"):
        sys.exit(f"no CUDA kernels: {loader.describe('cuda')}")

    def timed(call: Callable[[], Any]) -> float:
        return median_seconds(call, options.repeats, options.calls)

    bandwidth = copy_bandwidth(timed)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_s": bandwidth / 1e9}
    print(json.dumps(about) if options.json else header(about))
    for case in cases(torch.device("cuda"), options.batch, names):
        seconds = timed(case.call)
        fraction = case.bytes(case.call()) / seconds / bandwidth
        print(row(case, seconds, fraction, options.json), flush=True)
    if not options.json:
        print("\n| a weight for each image | shape | type | ms |\n|---|---|---|---|")
    for way, shape, name, call in convolutions(torch.device("cuda"), options.batch, names):
        ms = timed(call) * 1e3
        record = {"way": way, "shape": shape, "dtype": name, "ms": ms}
        print(json.dumps(record) if options.json else f"| {way} | {shape} | {name} | {ms:.3f} |", flush=True)


def header(about: dict[str, Any]) -> str:
    """The device, and the head of the first table."""
    return (
        f"{about['device']}, torch {about['torch']}; a copy moves {about['copy_gb_s']:.0f} GB/s\n\n"
        "| kernel | shape | type | layout | µs | of the copy's bandwidth | ≥ 70 % |\n" + "|---" * 7 + "|"
    )


def row(case: Case, seconds: float, fraction: float, as_json: bool) -> str:
    """One row of the first table."""
    if as_json:
        record = {name: getattr(case, name) for name in ("kernel", "shape", "dtype", "layout")}
        return json.dumps({**record, "us": seconds * 1e6, "fraction": fraction})
    verdict = "yes" if fraction >= TARGET else "no"
    cells = (
        case.kernel,
        case.shape,
        case.dtype,
        case.layout,
        f"{seconds * 1e6:.1f}",
        f"{fraction:.0%}",
        verdict,
    )
    return "| " + " | ".join(cells) + " |"


def median_seconds(call: Callable[[], Any], repeats: int, calls: int) -> float:
    """Seconds per call: the median over `repeats` series of `calls` calls, after a warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times)


def copy_bandwidth(timed: Callable[[Callable[[], Any]], float]) -> float:
    """Bytes per second, counting reads and writes."""
    x = torch.zeros(2**28, device="cuda")
    y = torch.empty_like(x)
    return 2 * x.numel() * x.element_size() / timed(lambda: y.copy_(x))


def cases(device: torch.device, batch: int, dtypes: list[str]) -> Iterator[Case]:
    """The kernels at the shapes of a 256 px generator of width 2, and of the layers of `ffhq`."""
    import wrangan_kernels.operators  # noqa: F401

    line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device)
    taps4 = torch.outer(line, line) / 16
    long = torch.arange(1.0, 9.0, device=device)
    taps8 = torch.outer(long, long) / 1296
    for name in dtypes:
        for last in (False, True):
            yield from _fir_cases(device, batch, name, last, taps4, taps8)
        yield from _weight_cases(device, batch, name)
        yield from _separable_cases(device, batch, name)
        yield from _haar_and_image_cases(device, batch, name)


def _fir_cases(
    device: torch.device, batch: int, name: str, last: bool, taps4: Tensor, taps8: Tensor
) -> Iterator[Case]:
    layout = torch.channels_last if last else torch.contiguous_format
    layout_name = "channels_last" if last else "NCHW"

    def maps(channels: int, side: int) -> Tensor:
        made = torch.randn(batch, channels, side, side, device=device, dtype=DTYPES[name])
        return made.contiguous(memory_format=layout)

    def case(kernel: str, x: Tensor, call: Callable[[], Any], *others: Tensor | None) -> Case:
        shape = f"{batch}×{x.shape[1]}×{x.shape[2]}²"
        return Case(kernel, shape, name, layout_name, call, (x, *others))

    x = maps(128, 256)
    yield case("upfirdn2d, 4 taps", x, lambda: ops.upfirdn2d(x, taps4, 1, 1, 2, 1))
    yield case("upfirdn2d, 8 taps", x, lambda: ops.upfirdn2d(x, taps8, 1, 1, 4, 3))
    yield case("upfirdn2d, down 2", x, lambda: ops.upfirdn2d(x, taps4, 1, 2, 1, 1))
    half = maps(128, 128)
    yield case("upfirdn2d, up 2", half, lambda: ops.upfirdn2d(half, taps4, 2, 1, 2, 1))
    for channels, side in ((128, 256), (512, 64)):
        wide = maps(channels, side + 1)
        noise = torch.randn(1, 1, side, side, device=device)
        strength = torch.ones(1, device=device)
        scale = torch.rand(batch, channels, device=device)
        bias = torch.randn(channels, device=device)
        end = (noise, strength, scale, bias)

        def forward(wide: Tensor = wide, end: tuple[Tensor, ...] = end) -> Tensor:
            return ops.fir_act(wide, taps4, 1, 1, *end, *ACTIVATION)

        yield case("fir_act", wide, forward, *end)
        y, grad = maps(channels, side), maps(channels, side)

        def backward(grad: Tensor = grad, y: Tensor = y, scale: Tensor = scale, side: int = side) -> Any:
            return ops.fir_act_backward(grad, y, taps4, 1, 1, scale, *ACTIVATION, side + 1, side + 1)

        yield case("fir_act_backward", grad, backward, y, scale)

        def pointwise(y: Tensor = y, end: tuple[Tensor, ...] = end) -> Tensor:
            return ops.fir_act(y, None, 0, 0, *end, *ACTIVATION)

        yield case("fir_act without FIR", y, pointwise, *end)

        def pointwise_backward(grad: Tensor = grad, y: Tensor = y, side: int = side) -> Any:
            return ops.fir_act_backward(grad, y, None, 0, 0, None, *ACTIVATION, side, side)

        yield case("fir_act_backward without FIR", grad, pointwise_backward, y)
    skip, image = (torch.randn(32 * batch, 3, s, s, device=device, dtype=DTYPES[name]) for s in (128, 256))
    skip, image = (t.contiguous(memory_format=layout) for t in (skip, image))
    shape = f"{32 * batch}×3×256²"
    call = lambda: ops.add_upsampled(image, skip, taps4 * 4)  # noqa: E731
    yield Case("add_upsampled", shape, name, layout_name, call, (image, skip))


def _weight_cases(device: torch.device, batch: int, name: str) -> Iterator[Case]:
    shape = (512, 512, 3, 3)
    mu, std = (torch.randn(shape, device=device) for _ in range(2))
    epsilon = torch.randn(batch, *shape, device=device)
    style = torch.randn(batch, 512, device=device)
    shape_name = f"{batch}×512×512×3²"
    code = SCALAR_TYPES[name]
    yield Case(
        "modulated_weight", shape_name, name, "OIkk",
        lambda: ops.modulated_weight(mu, std, epsilon, style, 0.01, True, code), (mu, std, epsilon, style),
    )  # fmt: skip
    grad = torch.randn(batch, *shape, device=device, dtype=DTYPES[name])
    demod = torch.rand(batch, 512, device=device)
    for what, needed in (
        ("ε, style", (False, False, True, True)),
        ("μ, σ, style", (True, True, False, True)),
    ):

        def backward(needed: tuple[bool, ...] = needed) -> Any:
            return ops.modulated_weight_backward(grad, mu, std, epsilon, style, demod, 0.01, list(needed))

        given = (grad, mu, std, epsilon, style, demod)
        yield Case(f"modulated_weight_backward ({what})", shape_name, name, "OIkk", backward, given)


def _separable_cases(device: torch.device, batch: int, name: str) -> Iterator[Case]:
    """Whole layers, by the kernel and by PyTorch. They pass over their maps more than once, but the bytes are
    those of a single pass."""
    like: Any = {"device": device, "dtype": DTYPES[name]}
    for inputs, outputs, side in SEPARABLE:
        x, y, grad = (
            torch.randn(batch, c, side, side, **like).contiguous(memory_format=torch.channels_last)
            for c in (inputs, outputs, outputs)
        )
        depthwise, mixing = (
            torch.randn(batch, inputs, 3, 3, **like),
            torch.randn(batch, outputs, inputs, **like),
        )
        noise, bias = torch.randn(1, 1, side, side, **like), torch.randn(outputs, **like)
        style = torch.ones(batch, inputs, **like)
        free = [t.requires_grad_() for t in (x, depthwise, mixing)]
        shape = f"{batch}×{inputs}→{outputs}×{side}²"

        def ours(x: Tensor = x, parts: Any = (depthwise, mixing, noise, bias)) -> Tensor:
            with torch.no_grad():
                return ops.separable_conv(x, *parts, 0.2)

        def back(
            grad: Tensor = grad, y: Tensor = y, x: Tensor = x, weights: Any = (depthwise, mixing)
        ) -> tuple[Tensor, ...]:
            with torch.no_grad():
                found = ops.separable_conv_backward(grad, y, x, *weights, 1, 0.2, [True] * 3 + [False] * 2)
            return tuple(found[:3])

        def theirs(
            x: Tensor = x, style: Tensor = style, parts: Any = (depthwise, mixing, noise, bias)
        ) -> Tensor:
            depthwise, mixing, *others = parts
            with loader.reference():
                return modulated_separable(x, style, depthwise[:, :, None], mixing[..., None, None], *others)

        made = theirs()

        def their_back(
            made: Tensor = made, free: list[Tensor] = free, grad: Tensor = grad
        ) -> tuple[Tensor, ...]:
            return torch.autograd.grad(made, free, grad, retain_graph=True)

        given = (x, depthwise, mixing, noise, bias)
        yield Case("separable_conv", shape, name, "channels_last", ours, given)
        yield Case("the same by PyTorch", shape, name, "channels_last", without_graph(theirs), given)
        given = (grad, y, x, depthwise, mixing)
        yield Case("separable_conv_backward", shape, name, "channels_last", back, given)
        yield Case("the same by PyTorch", shape, name, "channels_last", their_back, given)


def without_graph(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call without recording gradients."""
    return torch.no_grad()(call)


def _haar_and_image_cases(device: torch.device, batch: int, name: str) -> Iterator[Case]:
    like: Any = {"device": device, "dtype": DTYPES[name]}

    def maps(channels: int, side: int) -> Tensor:
        made = torch.randn(batch, channels, side, side, **like)
        return made.contiguous(memory_format=torch.channels_last)

    for channels, side in ((512, 64), (256, 128), (128, 256)):
        x, grad, style = (
            maps(channels, side),
            maps(channels // 4, 2 * side),
            torch.randn(batch, channels, **like),
        )
        shape = f"{batch}×{channels}×{side}²"

        def up(x: Tensor = x, style: Tensor = style) -> Tensor:
            return ops.haar_up(x, style)

        def back(grad: Tensor = grad, x: Tensor = x, style: Tensor = style) -> Any:
            return ops.haar_up_backward(grad, x, style, [True, True])

        yield Case("haar_up", shape, name, "channels_last", up, (x, style))
        yield Case("haar_up_backward", shape, name, "channels_last", back, (grad, x, style))
    x, rows, bias = maps(64, 512), torch.randn(batch, 3, 64, **like), torch.randn(3, **like)
    grad = torch.randn(batch, 3, 256, 256, **like)
    shape = f"{batch}×64→3×512², at 256²"

    def image() -> Tensor:
        return ops.pooled_pointwise(x, rows, bias, 2)

    def image_back() -> Any:
        return ops.pooled_pointwise_backward(grad, x, rows, 2, [True, True, False])[:2]

    yield Case("pooled_pointwise", shape, name, "channels_last", image, (x, rows, bias))
    yield Case("pooled_pointwise_backward", shape, name, "channels_last", image_back, (grad, x, rows))


def convolutions(
    device: torch.device, batch: int, dtypes: list[str]
) -> Iterator[tuple[str, str, str, Callable[[], Tensor]]]:
    """(way, shape, type, call): 3×3 convolutions with a weight for each image, forward and backward."""
    for name in dtypes:
        for channels, side in ((512, 32), (256, 128), (128, 256)):
            shape = f"{batch}×{channels}×{side}²"
            x = torch.randn(batch, channels, side, side, device=device, dtype=DTYPES[name])
            weight = torch.randn(batch, channels, channels, 3, 3, device=device, dtype=DTYPES[name])
            for way, call in _ways(x.requires_grad_(), weight.requires_grad_()).items():
                yield way, shape, name, call


def _ways(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Tensor]]:
    batch, channels = x.shape[:2]

    def backward(y: Tensor) -> Tensor:
        return torch.autograd.grad(y.sum(), [x, weight])[1]

    def grouped(layout: torch.memory_format) -> Tensor:
        rows = x.reshape(1, -1, *x.shape[2:]).contiguous(memory_format=layout)
        kernels = weight.reshape(-1, channels, 3, 3).contiguous(memory_format=layout)
        return F.conv2d(rows, kernels, padding=1, groups=batch)

    def one_by_one(layout: torch.memory_format) -> Tensor:
        pairs = zip(x, weight, strict=True)
        return torch.cat(
            [
                F.conv2d(
                    a[None].contiguous(memory_format=layout), b.contiguous(memory_format=layout), padding=1
                )
                for a, b in pairs
            ]
        )

    def columns() -> Tensor:
        return weight.reshape(batch, channels, -1) @ F.unfold(x, 3, padding=1)

    nchw, last = torch.contiguous_format, torch.channels_last
    return {
        "grouped, NCHW": lambda: backward(grouped(nchw)),
        "grouped, channels_last": lambda: backward(grouped(last)),
        "one by one, NCHW": lambda: backward(one_by_one(nchw)),
        "one by one, channels_last": lambda: backward(one_by_one(last)),
        "columns and batched GEMM": lambda: backward(columns()),
        "shared weight (the floor)": lambda: backward(F.conv2d(x, weight[0], padding=1)),
    }


if __name__ == "__main__":
    main()
