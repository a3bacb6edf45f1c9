"""Compare images and seconds of MobileStyleGAN with OpenVINO running the same files.

    pip install openvino
    wrangan fetch ffhq
    python -m tests.benchmarks.openvino_parity [--threads 1]

Both render eight z in turn, at 1024 px in float32 (OpenVINO would use bfloat16 if the CPU supports it).
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch

from wrangan_cli.engine.base.carriers import CARRIERS
from wrangan_cli.engine.base.fetching import fetch_carrier
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.library import load_model

LIMIT = 1e-3
"""Largest accepted difference, as a fraction of the images' range."""


def main() -> None:
    """Print the largest differences and the median seconds; exit with 1 if images differ above LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=8)
    options = parser.parse_args()
    import openvino

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    generator = load_model("ffhq").generator
    files = fetch_carrier(CARRIERS["ffhq"])
    settings = {"INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    mapping, synthesis = (
        core.compile_model(core.read_model(files[f"{name}Network.xml"]), "CPU", settings)
        for name in ("Mapping", "Synthesis")
    )
    worst, seconds = (
        {"w": 0.0, "image": 0.0},
        {"OpenVINO": [], "wrangan": [], "wrangan, forward and backward": []},
    )
    for z in torch.randn(options.images, 512, generator=random_generator(0)).split(1):
        theirs_w = np.array(mapping([z.numpy()])[0])
        started = time.perf_counter()
        theirs = np.array(synthesis([theirs_w])[0])
        seconds["OpenVINO"].append(time.perf_counter() - started)
        w = generator.mapping(z)
        started = time.perf_counter()
        with torch.no_grad():
            ours = generator.synthesis(w)
        seconds["wrangan"].append(time.perf_counter() - started)
        free = w.clone().requires_grad_(True)
        started = time.perf_counter()
        generator.synthesis(free).square().sum().backward()
        seconds["wrangan, forward and backward"].append(time.perf_counter() - started)
        worst["w"] = max(worst["w"], float(np.abs(theirs_w - w.numpy()).max()))
        worst["image"] = max(worst["image"], float(np.abs(theirs - ours.numpy()).max()) / 2)
    for name, value in worst.items():
        print(f"{name}: largest difference {value:.1e}" + (" of the range" if name == "image" else ""))
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values):.2f} s/image, median of {len(values)}")
    sys.exit(worst["image"] > LIMIT)


if __name__ == "__main__":
    main()
