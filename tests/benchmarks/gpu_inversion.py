"""Time an inversion of 500 steps on the current GPU, in seconds per image, against PTI's published code.

    python -m tests.benchmarks.gpu_inversion [--pti PATH --nvidia PATH]

A 256 px generator of width 2 (six random layers, random weights) and LPIPS's AlexNet (random weights)
invert images rendered by the generator itself, in batches of several sizes: with ordinary steps
(eager), with a captured graph (graph), compiled (compile), and both. Our code and PTI's
(tests/benchmarks/gpu_pti.py, in a separate process; always one image, since it has no batches) take turns,
A B A B; printed are the medians, their ratio, and the peak memory. `off` is the final distortion divided by
that of float32 in the first mode, which shows the cost of a lower precision.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion import graph, wrangan
from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.learning_rates import rates_of_w_and_offsets
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.inversion.offsets import random_weights, small_offsets
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PerceptualDistance, with_fast_layout
from wrangan_cli.engine.models.precision import LowPrecision
from wrangan_cli.engine.models.randomized import draw_epsilon
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

MODES = ("eager", "graph", "compile", "compile+graph")
PRECISIONS = ("float32", "tf32", "bf16")


@dataclass(frozen=True)
class Way:
    """One configuration of the inversion."""

    batch: int
    mode: str
    precision: str


def main() -> None:
    """Measure and print a table."""
    options = arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: the inversion cannot be measured")
    ways = [
        Way(batch, mode, precision)
        for batch in options.batches
        for mode in options.modes
        for precision in options.precisions
    ]
    inverter = random_inverter(options, device)
    peer = Peer(options) if options.pti else None
    try:
        print(header(device, options, peer), flush=True)
        first: dict[int, float] = {}
        for way in ways:
            report(measured(way, inverter, options, peer), way, first, options)
    finally:
        if peer is not None:
            peer.close()


def arguments() -> argparse.Namespace:
    """The command-line options; batches, modes and precisions as lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pti", type=Path, help="a checkout of danielroich/PTI")
    parser.add_argument("--nvidia", type=Path, help="a checkout of NVlabs/stylegan2-ada-pytorch, for --pti")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--width", type=float, default=2.0, help="channel multiplier")
    parser.add_argument("--random-layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", default="1,2,4,8,16")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, not a table")
    options = parser.parse_args()
    if (options.pti is None) != (options.nvidia is None):
        parser.error("--pti and --nvidia (for the network in PTI's pickles) must be given together")
    options.batches = [int(part) for part in options.batches.split(",")]
    options.modes, options.precisions = options.modes.split(","), options.precisions.split(",")
    for given, known in ((options.modes, MODES), (options.precisions, PRECISIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if options.steps <= graph.WARM_UP or options.repeats < 1 or min(options.batches) < 1:
        parser.error(f"expected more than {graph.WARM_UP} steps, and at least 1 repeat and 1 image")
    if torch.device(options.device).type != "cuda" and options.modes != ["eager"]:
        parser.error("only --modes eager is supported on devices other than CUDA")
    return options


def random_inverter(options: argparse.Namespace, device: torch.device) -> Inverter:
    """An inverter with a randomly initialised model of this size, and LPIPS with a random AlexNet."""
    torch.manual_seed(0)
    sizes = [2**i for i in range(2, options.resolution.bit_length())]
    # NVIDIA's channel table, which for width 2 is also rosinality's.
    channels = {size: min(int(16384 * options.width) // size, 512) for size in sizes}
    config = StyleGAN2Config(options.resolution, channels, randomized_layers=options.random_layers)
    generator = StyleGAN2Generator(config).eval().requires_grad_(False)
    with torch.no_grad():
        for conv in generator.random_weights().values():
            assert conv.std is not None
            conv.std.fill_(0.1)
        w = generator.mapping(torch.randn(4096, config.style_dim))
    generator.to(device)
    mean, std = w.mean(dim=0).to(device), w.var(dim=0).sum().sqrt().item()
    model = Model("random", Path("random"), "0" * 64, generator, mean, std, "lpips-alex")
    settings = inversion_settings(steps=options.steps, init="mean", epsilon_lr=0.01)
    return Inverter(model, settings, None, with_fast_layout(random_alexnet().to(device)))


def random_alexnet() -> PerceptualDistance:
    """LPIPS's AlexNet with random weights, which is as fast as the trained one."""
    import lpips

    package = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    taps = nn.ModuleList(getattr(package.net, f"slice{index}") for index in range(1, 6))
    return PerceptualDistance("lpips-alex", taps, [torch.rand(n) for n in package.chns])


def measured(
    way: Way, inverter: Inverter, options: argparse.Namespace, peer: "Peer | None"
) -> dict[str, Any]:
    """Medians over the repeats, in which our code and the peer's take turns."""
    device = inverter.model.device
    with precision(way.precision, inverter.model.generator):
        images = targets(inverter.model, way.batch)
        run = inversion(way, inverter, images)
        run(graph.WARM_UP + 1)  # compiles, and lets libraries choose their algorithms
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ours, theirs, distortion = [], [], 0.0
        peak_of_peer = None
        for _ in range(options.repeats):
            seconds, distortion = run(options.steps)
            ours.append(seconds / way.batch)
            if peer is not None:
                answer = peer.take(options.steps)
                theirs.append(answer["seconds"])
                peak_of_peer = answer["peak_bytes"]
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "seconds": statistics.median(ours),
        "peer_seconds": statistics.median(theirs) if theirs else None,
        "peak_bytes": peak,
        "peer_peak_bytes": peak_of_peer,
        "distortion": distortion,
    }


class precision:
    """Within this block the generator and all matrix products use this precision."""

    def __init__(self, name: str, generator: StyleGAN2Generator) -> None:
        self.name, self.generator = name, generator

    def __enter__(self) -> None:
        self.before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        torch.set_float32_matmul_precision("highest" if self.name == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = self.name != "float32"
        if self.name == "bf16":
            self.generator.low_precision = LowPrecision(torch.bfloat16, 16)

    def __exit__(self, *error: object) -> None:
        torch.set_float32_matmul_precision(self.before[0])
        torch.backends.cudnn.allow_tf32 = self.before[1]
        self.generator.low_precision = None


@torch.no_grad()
def targets(model: Model, batch: int) -> Tensor:
    """Images that w and ε of the model can reproduce, the same for every configuration."""
    rng = random_generator(1)
    z = torch.randn(batch, model.generator.config.style_dim, generator=rng).to(model.device)
    epsilon = draw_epsilon(model.generator, batch, 0.1, rng)
    return model.generator.synthesis(model.generator.mapping(z), epsilon=epsilon)


def inversion(way: Way, inverter: Inverter, images: Tensor) -> Callable[[int], tuple[float, float]]:
    """A function from a number of steps to the seconds that they take, and the final mean squared error."""
    model, settings = inverter.model, replace(inverter.settings)

    def loss(fit: Fit, batch: Batch) -> Tensor:
        return wrangan.loss(fit, batch)[0]

    made = torch.compile(loss) if "compile" in way.mode else loss

    def run(count: int) -> tuple[float, float]:
        w = inverter.initial_w(images)
        variables = Variables(w, small_offsets(random_weights(model), w, settings))
        moved = rates_of_w_and_offsets(w, variables.epsilon, settings)
        for tensor in moved.free:
            tensor.requires_grad_(True)
        start = now(model.device)
        fit = inverter.fit(images, w)
        batch = Batch(variables, images, fit.target, torch.arange(len(images)), [])
        rates = [group["lr"] for group in moved.groups]
        optimizer = graph.capturable_adam(moved.groups, model.device)
        step = graph.gradient_step(optimizer, lambda: made(fit, batch))
        with (
            model.generator.cached_weights(),  # as in `Inverter.invert`
            graph.Steps(step, lambda: graph.changed_by(optimizer))
            if "graph" in way.mode
            else Plain(step) as take,
        ):
            for index in range(count):
                first, later = moved.factors(index / count)
                factors = [first, *[later] * (len(rates) - 1)]
                graph.set_rates(optimizer, [r * f for r, f in zip(rates, factors, strict=True)])
                take()
            seconds = now(model.device) - start
            if "graph" in way.mode and not take.replays:
                print("the step was not captured: its time is that of eager steps", file=sys.stderr)
        errors = [row["mse"] for row in fit.distortion(variables)]
        return seconds, statistics.mean(errors)

    return run


class Plain:
    """The interface of graph.Steps, without a graph."""

    replays = False

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step

    def __enter__(self) -> Callable[[], None]:
        return self.step

    def __exit__(self, *error: object) -> None:
        return None


def now(device: torch.device) -> float:
    """The time in seconds, once the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Peer:
    """PTI's code in a separate process."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.gpu_pti"]
        command += ["--pti", str(options.pti), "--nvidia", str(options.nvidia), "--device", options.device]
        base = str(int(16384 * options.width))
        command += ["--resolution", str(options.resolution), "--channel-base", base]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.nvidia_ops = bool(self._answer()["nvidia_ops"])
        self.commits = [commit(path) for path in (options.pti, options.nvidia)]

    def take(self, steps: int) -> dict[str, Any]:
        """Seconds and peak memory of this many steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("PTI's code ended without an answer; its error message is above")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def commit(path: Path) -> str:
    """The commit of a checkout, or `unknown`."""
    result = subprocess.run(["git", "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def header(device: torch.device, options: argparse.Namespace, peer: Peer | None) -> str:
    """The conditions of the measurement, and the head of the table."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    about: dict[str, Any] = {"device": name, "torch": torch.__version__, "steps": options.steps}
    about |= {"resolution": options.resolution, "width": options.width, "kernels": kernels_of(device)}
    if peer is not None:
        about |= {"pti": peer.commits[0], "nvidia": peer.commits[1], "nvidia_ops": peer.nvidia_ops}
    if options.json:
        return json.dumps(about)
    lines = [", ".join(f"{key} {value}" for key, value in about.items())]
    if peer is not None and not peer.nvidia_ops:
        lines.append(
            "NVIDIA's operations did not compile: PTI uses its slow reference, so the comparison is not fair"
        )
    lines += ["", "| batch | mode | precision | s/image | PTI, s | PTI / this | peak GB | PTI's | off |"]
    return "\n".join([*lines, "|---" * 9 + "|"])


def kernels_of(device: torch.device) -> str:
    """`compiled`, or why they are not in use."""
    from wrangan_kernels import loader

    return "compiled" if loader.ready(device.type) else loader.describe(device.type)


def report(found: dict[str, Any], way: Way, first: dict[int, float], options: argparse.Namespace) -> None:
    """Print one row of the table."""
    expected = first.setdefault(way.batch, found["distortion"])
    found = {**found, "off": found["distortion"] / expected}
    if options.json:
        print(
            json.dumps({"batch": way.batch, "mode": way.mode, "precision": way.precision, **found}),
            flush=True,
        )
        return
    peer = found["peer_seconds"]
    cells = [str(way.batch), way.mode, way.precision, f"{found['seconds']:.2f}"]
    cells += ["–", "–"] if peer is None else [f"{peer:.2f}", f"{peer / found['seconds']:.1f}"]
    cells += ["–" if n is None else f"{n / 1e9:.1f}" for n in (found["peak_bytes"], found["peer_peak_bytes"])]
    print("| " + " | ".join([*cells, f"{found['off']:.3f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
