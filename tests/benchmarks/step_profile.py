"""Profile a step of an inversion, operation by operation.

    python -m tests.benchmarks.step_profile [--model faces-64] [--batch 1] [--threads 1] [--optimizer lbfgs]
    python -m tests.benchmarks.step_profile --model ffhq --side 256 --steps 9 --rows 0 [--set loss_side=128]
    python -m tests.benchmarks.step_profile --random [--channels-last]

--random: the 64 px model of cpu_speed and LPIPS's AlexNet, with random weights.
Prints the milliseconds per step and image (random images), as the median without the profiler, and the peak
memory of the process until then. Then the most expensive operations under the profiler, their fraction of the
time, and how often a step calls them; --rows 0: without the profiler.
"""

import argparse
import itertools
import statistics
import time
from argparse import Namespace
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.cpu_speed import WIDTHS
from tests.benchmarks.gpu_inversion import random_inverter
from tests.benchmarks.schedules import parsed
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.base.peak_memory import peak_memory
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.library import load_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--random", action="store_true", help="use a 64 px model with random weights")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="side of the images in px")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="number of threads; 0: torch's default")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument(
        "--set", action="append", default=[], help="another setting of the inversion, NAME=VALUE; repeatable"
    )
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument(
        "--channels-last", action="store_true", help="use channels_last for photographs and loss"
    )
    options = parser.parse_args()
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    inverter = chosen_inverter(options)
    images = torch.rand(options.batch, 3, options.side, options.side, generator=random_generator(0)) * 2 - 1
    if options.channels_last:
        images = images.to(memory_format=torch.channels_last)
        if inverter.perceptual is not None:
            inverter.perceptual.to(memory_format=torch.channels_last)
    stamps: list[float] = []
    inverter.invert(images, lambda _: stamps.append(time.perf_counter()))
    passed = [after - before for before, after in itertools.pairwise(stamps[3:])]
    each = 1000 / options.batch
    peak = peak_memory(torch.device("cpu"), fresh=False)
    took = f"{statistics.median(passed) * each:.1f} ms per step and image"
    print(f"{took}, {torch.get_num_threads()} threads, {peak.get('peak_memory_mib')} MiB")
    if not options.rows:
        return
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        inverter.invert(images)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[: options.rows]:
        milliseconds = event.self_cpu_time_total / 1000 / options.steps / options.batch
        percent = 100 * event.self_cpu_time_total / total
        print(f"{milliseconds:7.2f} ms {percent:5.1f} % {event.count / options.steps:7.1f} × {event.key}")
    print(f"{sum(event.count for event in events) / options.steps:.0f} operations per step")


def chosen_inverter(options: Namespace) -> Inverter:
    """The inverter of the model, or with --random that of cpu_speed."""
    if not options.random:
        words = [f"steps={options.steps}", f"optimizer={options.optimizer}", *options.set]
        return Inverter.load(load_model(options.model), parsed(",".join(words)).settings)
    sizes = Namespace(resolution=64, width=WIDTHS[64], random_layers=6, steps=options.steps)
    inverter = random_inverter(sizes, torch.device("cpu"))
    return replace(inverter, settings=replace(inverter.settings, optimizer=options.optimizer))


if __name__ == "__main__":
    main()
