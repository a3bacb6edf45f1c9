"""Measure the CPU rows of docs/benchmarks.md: this suite, with and without kernels, against other code.

    python -m tests.benchmarks.cpu_speed --rosinality PATH [--pti PATH --nvidia PATH]

PATH: checkouts of rosinality/stylegan2-pytorch, danielroich/PTI and NVlabs/stylegan2-ada-pytorch (the
network in PTI's pickles). Weights are random; shapes are the same for all. In each row the contestants
take turns, A B C A B C …; printed are the medians of wall time and of processor time, and their ratios
to the other code. PTI runs in a separate process, since its modules have the same names as rosinality's.
"""

import argparse
import contextlib
import inspect
import os
import re
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from wrangan_kernels import loader

from tests.benchmarks.conversion_parity import peer_modules
from tests.benchmarks.generator_speed import backward_step, convolution_step
from tests.benchmarks.gpu_inversion import Peer, commit, random_inverter
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.inversion import wrangan
from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.learning_rates import rates_of_w_and_offsets
from wrangan_cli.engine.inversion.offsets import random_weights, small_offsets
from wrangan_cli.engine.inversion.optimizers import make_optimizer
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator

BUNDLED = {4: 256, 8: 192, 16: 96, 32: 64, 64: 32}
"""Channels of faces-64."""
WIDTHS = {256: 2.0, 64: 0.125}
"""Channel multipliers of the inversion rows: published, and as narrow as faces-64."""
IN_A_ROW = {64: 8, 256: 2}
"""Number of inversion steps that each side takes in its turn."""
ROWS = ("generator-256", "generator-64", "training", "inversion-256", "inversion-64", "memory")
Step = Callable[[], tuple[float, float]]
"""One step; returns its seconds of wall and of processor time."""


def main() -> None:
    """Measure the requested rows, and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rosinality", type=Path, required=True)
    parser.add_argument("--pti", type=Path)
    parser.add_argument("--nvidia", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: torch's default")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to measure; default: %(default)s")
    parser.add_argument(
        "--peak-of", type=int, help="only invert this many images at 256 px, and print the peak memory"
    )
    options = parser.parse_args()
    keep_freed_memory()  # as the commands do; a peer in a separate process is not affected
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_of:
        ours_inverting(256, options.peak_of)()
        print(peak_mib(os.getpid()))
        return
    if not loader.ready("cpu"):
        sys.exit(f"no CPU kernels to measure: {loader.describe('cpu')}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {loader.describe('cpu')}")
    for peer in (options.rosinality, options.pti, options.nvidia):
        if peer is not None:
            print(f"{peer.name}: {commit(peer)}")
    rows = options.rows.split(",")
    if "generator-256" in rows:
        wide = StyleGAN2Config(256, rosinality_channels(256))
        report(
            "generator, forward + backward, 256 px, width 2, batch 1", rendering(options, wide, 1), options
        )
    if "generator-64" in rows:
        narrow = StyleGAN2Config(64, BUNDLED, style_dim=256, mapping_layers=4)
        report("the same, 64 px, sizes of faces-64, batch 8", rendering(options, narrow, 8), options)
    if "training" in rows:
        report("training step (G and D), 64 px, sizes of faces-64, batch 8", training(options), options)
    if options.pti is not None:
        for resolution in WIDTHS:
            if f"inversion-{resolution}" in rows:
                inversion_row(options, resolution)
        if "memory" in rows:
            memory_row(options)


def report(title: str, steps: dict[str, Step], options: Namespace) -> None:
    """Time the steps in turn, and print a table; the last one is the peer."""
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            times[name].append(step())
    print(f"\n{title}\n\n| | wall s | processor s | peer / this, wall | processor |\n|---|---|---|---|---|")
    medians = {name: [statistics.median(c) for c in zip(*t, strict=True)] for name, t in times.items()}
    peer = list(medians.values())[-1]
    for name, (wall, processor) in medians.items():
        ratios = f"{peer[0] / wall:.2f} | {peer[1] / processor:.2f}"
        print(f"| {name} | {wall:.3f} | {processor:.3f} | {ratios} |", flush=True)


def timed(work: Callable[[], Any]) -> Step:
    """A step that does `work` and returns its times; processor time is that of all threads."""

    def step() -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - processor

    return step


def without_kernels(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work with the PyTorch reference."""

    def reference() -> Any:
        with loader.reference():
            return work()

    return reference


@contextlib.contextmanager
def rosinality_classes(checkout: Path, channels: dict[int, int]) -> Iterator[Any]:
    """Rosinality's module `model`, with this table of channels in both networks."""
    with peer_modules(checkout):
        import model

        for name in ("StyleGAN2Generator", "Discriminator"):
            source = inspect.getsource(getattr(model, name))
            changed, count = re.subn(
                r"channels = \{.*?\n        \}", f"channels = {channels}", source, flags=re.S
            )
            if count != 1:
                sys.exit(f"rosinality's {name} has no table of channels where it is looked for")
            exec(changed, vars(model))
        yield model


def rendering(options: Namespace, config: StyleGAN2Config, batch: int) -> dict[str, Step]:
    """Render one image per row of w, with the gradient of its mean square in w and all parameters."""
    torch.manual_seed(0)
    ours = StyleGAN2Generator(config)
    with rosinality_classes(options.rosinality, config.channels) as model:
        theirs = model.Generator(config.resolution, config.style_dim, config.mapping_layers)
    theirs.load_state_dict(ours.state_dict())
    w = torch.randn(batch, config.style_dim)
    step = backward_step(lambda v: ours.synthesis(v), ours, w)
    peer = backward_step(lambda v: theirs([v], input_is_latent=True, randomize_noise=False)[0], theirs, w)
    difference = float((step() - peer()).abs().max())
    print(f"\nimages differ by at most {difference:.1e}")
    return {
        "wrangan, kernels": timed(step),
        "wrangan, reference": timed(without_kernels(step)),
        "bare convolutions": timed(convolution_step(config, batch)),
        "rosinality": timed(peer),
    }


def training(options: Namespace) -> dict[str, Step]:
    """A step of both networks with logistic losses and without regularisers, the same for both sides."""
    torch.manual_seed(0)
    config = StyleGAN2Config(64, BUNDLED, style_dim=256, mapping_layers=4)
    ours = StyleGAN2Generator(config), Discriminator(config)
    with rosinality_classes(options.rosinality, BUNDLED) as model:
        theirs = model.Generator(64, 256, 4), model.Discriminator(64)
    for our, their in zip(ours, theirs, strict=True):
        their.load_state_dict(our.state_dict())
    real, z = torch.rand(8, 3, 64, 64) * 2 - 1, torch.randn(8, 256)
    mine = adversarial(*ours, lambda: ours[0](z), real)
    return {
        "wrangan, kernels": timed(mine),
        "wrangan, reference": timed(without_kernels(mine)),
        "rosinality": timed(adversarial(*theirs, lambda: theirs[0]([z])[0], real)),
    }


def adversarial(g: Any, d: Any, generate: Callable[[], Tensor], real: Tensor) -> Callable[[], None]:
    """A training step with non-saturating logistic losses and Adam (0, 0.99)."""
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.99)) for network in (d, g)]

    def step() -> None:
        with torch.no_grad():
            fake = generate()
        g.requires_grad_(False)
        d.requires_grad_(True)
        optimizers[0].zero_grad(set_to_none=True)
        (F.softplus(d(fake)).mean() + F.softplus(-d(real)).mean()).backward()
        optimizers[0].step()
        g.requires_grad_(True)
        d.requires_grad_(False)
        optimizers[1].zero_grad(set_to_none=True)
        F.softplus(-d(generate())).mean().backward()
        optimizers[1].step()

    return step


def ours_inverting(resolution: int, batch: int) -> Callable[[], None]:
    """A step of method wrangan with the perceptual loss (AlexNet) and 6 random layers."""
    shape = Namespace(resolution=resolution, width=WIDTHS[resolution], random_layers=6, steps=500)
    inverter = random_inverter(shape, torch.device("cpu"))
    settings, model = replace(inverter.settings), inverter.model
    images = torch.rand(batch, 3, resolution, resolution) * 2 - 1
    fit = inverter.fit(images, inverter.initial_w(images))
    variables = Variables(fit.initial_w, small_offsets(random_weights(model), fit.initial_w, settings))
    rates = rates_of_w_and_offsets(variables.w, variables.epsilon, settings)
    for tensor in rates.free:
        tensor.requires_grad_(True)
    optimizer = make_optimizer(settings, rates.groups, images.clone)
    whole = Batch(variables, images, fit.target, torch.arange(batch), [])

    kept = ExitStack()  # for as long as the step exists
    kept.enter_context(model.generator.cached_weights())

    def step() -> None:
        optimizer.zero_grad()
        loss = wrangan.loss(fit, whole)[0]
        loss.sum().backward()
        optimizer.step(loss, (1.0, 1.0))

    step.kept = kept  # type: ignore[attr-defined]
    return step


def pti_process(options: Namespace, resolution: int) -> Peer:
    """PTI's code on the CPU, in a process with as many threads as this one."""
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    shape = {"resolution": resolution, "width": WIDTHS[resolution], "device": "cpu"}
    return Peer(Namespace(pti=options.pti, nvidia=options.nvidia, **shape))


def inversion_row(options: Namespace, resolution: int) -> None:
    """Our step, per image, against PTI's; each takes several steps in a row, as in an inversion."""
    row = IN_A_ROW[resolution]
    peer = pti_process(options, resolution)

    def theirs() -> tuple[float, float]:
        before = processor_seconds(peer.process.pid)
        wall = peer.take(row)["seconds"]
        return wall / row, (processor_seconds(peer.process.pid) - before) / row

    mine = repeated(ours_inverting(resolution, 1), row)
    steps = {
        "wrangan, kernels": per_part(timed(mine), row),
        "wrangan, reference": per_part(timed(without_kernels(mine)), row),
        "PTI": theirs,
    }
    if resolution == 64:
        eight = timed(repeated(ours_inverting(64, 8), row))
        steps = {"wrangan, kernels, of 8 images": per_part(eight, 8 * row), **steps}
    report(f"inversion step with perceptual loss, {resolution} px, per image", steps, options)
    peer.close()


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    """The step, repeated this many times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def per_part(step: Step, parts: int) -> Step:
    """The step with its times divided by the number of parts."""

    def part() -> tuple[float, float]:
        wall, processor = step()
        return wall / parts, processor / parts

    return part


def memory_row(options: Namespace) -> None:
    """Peak resident memory of whole processes: ours for 8 images, against 8 times PTI's for one."""
    command = [sys.executable, "-m", "tests.benchmarks.cpu_speed", "--rosinality", str(options.rosinality)]
    result = subprocess.run([*command, "--peak-of", "8"], capture_output=True, text=True, check=True)
    mine = int(result.stdout.split()[-1])
    peer = pti_process(options, 256)
    peer.take(1)
    theirs = peak_mib(peer.process.pid)
    peer.close()
    ratio = mine / (8 * theirs)
    print(f"\npeak memory at 256 px: 8 images {mine} MiB, PTI {theirs} MiB per image: ratio {ratio:.2f}")


def processor_seconds(pid: int) -> float:
    """Processor seconds of all threads of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> int:
    """Peak resident memory of a process since its start."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


if __name__ == "__main__":
    main()
