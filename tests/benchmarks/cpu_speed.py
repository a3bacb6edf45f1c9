"""The CPU rows of docs/benchmarks.md: this suite against the peers' code, and with and without kernels.

    python -m tests.benchmarks.cpu_speed --rosinality PATH [--pti PATH --nvidia PATH]

PATH: checkouts of rosinality/stylegan2-pytorch, danielroich/PTI and NVlabs/stylegan2-ada-pytorch (the
network that PTI's pickles are of). Weights are random, shapes the same on both sides. In each row the
sides take turns, A B C A B C …; medians of wall time and of processor time, and the ratios of both to
the peer. PTI runs in a process of its own, since its modules and rosinality's have the same names.
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
"""Steps of an inversion that each side takes in its turn."""
ROWS = ("generator-256", "generator-64", "training", "inversion-256", "inversion-64", "memory")
Step = Callable[[], tuple[float, float]]
"""One step; returns its seconds of wall and of processor time."""


def main() -> None:
    """Measure the rows that are asked for and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rosinality", type=Path, required=True)
    parser.add_argument("--pti", type=Path)
    parser.add_argument("--nvidia", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: what torch chooses")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of: %(default)s")
    parser.add_argument(
        "--peak-of", type=int, help="only invert that many images at 256 px, and say the peak"
    )
    options = parser.parse_args()
    keep_freed_memory()  # as the commands do; what a peer has in a process of its own is left alone
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
        report("generator, forward + backward, 256 px, width 2, batch 1", drawing(options, wide, 1), options)
    if "generator-64" in rows:
        narrow = StyleGAN2Config(64, BUNDLED, style_dim=256, mapping_layers=4)
        report("the same, 64 px, sizes of faces-64, batch 8", drawing(options, narrow, 8), options)
    if "training" in rows:
        report("training step (G and D), 64 px, sizes of faces-64, batch 8", training(options), options)
    if options.pti is not None:
        for resolution in WIDTHS:
            if f"inversion-{resolution}" in rows:
                inversion_row(options, resolution)
        if "memory" in rows:
            memory_row(options)


def report(title: str, steps: dict[str, Step], options: Namespace) -> None:
    """The sides in turn, and a table; the last one is the peer."""
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
    """`work` with its times; processor time is that of all threads."""

    def step() -> tuple[float, float]:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - processor

    return step


def without_kernels(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same with the PyTorch reference."""

    def reference() -> Any:
        with loader.reference():
            return work()

    return reference


@contextlib.contextmanager
def rosinality_classes(checkout: Path, channels: dict[int, int]) -> Iterator[Any]:
    """His module `model`, with another table of channels in both networks."""
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


def drawing(options: Namespace, config: StyleGAN2Config, batch: int) -> dict[str, Step]:
    """One image a row of w, and the gradient of its mean square in w and all parameters."""
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
    """A step of both networks with the logistic losses, without regularisers, the same for both sides."""
    torch.manual_seed(0)
    config = StyleGAN2Config(64, BUNDLED, style_dim=256, mapping_layers=4)
    ours = StyleGAN2Generator(config), Discriminator(config)
    with rosinality_classes(options.rosinality, BUNDLED) as model:
        theirs = model.Generator(64, 256, 4), model.Discriminator(64)
    for network, his in zip(ours, theirs, strict=True):
        his.load_state_dict(network.state_dict())
    real, z = torch.rand(8, 3, 64, 64) * 2 - 1, torch.randn(8, 256)
    mine = adversarial(*ours, lambda: ours[0](z), real)
    return {
        "wrangan, kernels": timed(mine),
        "wrangan, reference": timed(without_kernels(mine)),
        "rosinality": timed(adversarial(*theirs, lambda: theirs[0]([z])[0], real)),
    }


def adversarial(g: Any, d: Any, draw: Callable[[], Tensor], real: Tensor) -> Callable[[], None]:
    """Non-saturating logistic losses, Adam (0, 0.99)."""
    optimizers = [torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.99)) for network in (d, g)]

    def step() -> None:
        with torch.no_grad():
            fake = draw()
        g.requires_grad_(False)
        d.requires_grad_(True)
        optimizers[0].zero_grad(set_to_none=True)
        (F.softplus(d(fake)).mean() + F.softplus(-d(real)).mean()).backward()
        optimizers[0].step()
        g.requires_grad_(True)
        d.requires_grad_(False)
        optimizers[1].zero_grad(set_to_none=True)
        F.softplus(-d(draw())).mean().backward()
        optimizers[1].step()

    return step


def ours_inverting(resolution: int, batch: int) -> Callable[[], None]:
    """A step of method wrangan with the perceptual loss (AlexNet), 6 random layers."""
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

    kept = ExitStack()  # as long as there is a step
    kept.enter_context(model.generator.cached_weights())

    def step() -> None:
        optimizer.zero_grad()
        loss = wrangan.loss(fit, whole)[0]
        loss.sum().backward()
        optimizer.step(loss, (1.0, 1.0))

    step.kept = kept  # type: ignore[attr-defined]
    return step


def pti_process(options: Namespace, resolution: int) -> Peer:
    """PTI's coach on the CPU, in a process with as many threads as this one."""
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    shape = {"resolution": resolution, "width": WIDTHS[resolution], "device": "cpu"}
    return Peer(Namespace(pti=options.pti, nvidia=options.nvidia, **shape))


def inversion_row(options: Namespace, resolution: int) -> None:
    """A step of ours, per image, against one of PTI's; each takes several in a row, as an inversion does."""
    row = IN_A_ROW[resolution]
    peer = pti_process(options, resolution)

    def theirs() -> tuple[float, float]:
        before = processor_seconds(peer.process.pid)
        wall = peer.take(row)["seconds"]
        return wall / row, (processor_seconds(peer.process.pid) - before) / row

    mine = repeated(ours_inverting(resolution, 1), row)
    steps = {
        "wrangan, kernels": shared(timed(mine), row),
        "wrangan, reference": shared(timed(without_kernels(mine)), row),
        "PTI": theirs,
    }
    if resolution == 64:
        eight = timed(repeated(ours_inverting(64, 8), row))
        steps = {"wrangan, kernels, of 8 images": shared(eight, 8 * row), **steps}
    report(f"inversion step with perceptual loss, {resolution} px, per image", steps, options)
    peer.close()


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    """The step so many times."""

    def steps() -> None:
        for _ in range(times):
            step()

    return steps


def shared(step: Step, parts: int) -> Step:
    """The times of one of so many parts."""

    def part() -> tuple[float, float]:
        wall, processor = step()
        return wall / parts, processor / parts

    return part


def memory_row(options: Namespace) -> None:
    """Peak resident memory of whole processes: 8 images of ours, and one of PTI's 8 times."""
    command = [sys.executable, "-m", "tests.benchmarks.cpu_speed", "--rosinality", str(options.rosinality)]
    told = subprocess.run([*command, "--peak-of", "8"], capture_output=True, text=True, check=True)
    mine = int(told.stdout.split()[-1])
    peer = pti_process(options, 256)
    peer.take(1)
    theirs = peak_mib(peer.process.pid)
    peer.close()
    share = mine / (8 * theirs)
    print(f"\npeak memory at 256 px: 8 images {mine} MiB, PTI {theirs} MiB: {share:.2f} of 8 times that")


def processor_seconds(pid: int) -> float:
    """Of all threads of a process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> int:
    """Largest resident memory of a process in its life."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


if __name__ == "__main__":
    main()
