"""Compare settings for the frames of a clip, on one clip with the same shared ε (docs/video.md).

python -m tests.benchmarks.clip_trial made.mp4 --frames 0-11 --steps 60 --out trial/
"""

import argparse
import dataclasses
import json
from itertools import pairwise
from pathlib import Path

from wrangan_cli.engine.faces.detection import FaceDetector
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.video.flicker import change, flicker
from wrangan_cli.engine.video.invert import ClipRun, load_clip_inverter
from wrangan_cli.engine.video.settings import ClipSettings

VARIANTS = (
    {"frame_epsilon": 1, "frame_lr": 0.01, "frame_steps": 10},
    {"frame_epsilon": 0, "frame_lr": 0.01, "frame_steps": 10},
    {"frame_epsilon": 1, "frame_lr": 0.03, "frame_steps": 10},
    {"frame_epsilon": 1, "frame_lr": 0.01, "frame_steps": 20},
    {"frame_epsilon": 1, "frame_lr": 0.03, "frame_steps": 20},
    {"frame_epsilon": 1, "frame_lr": 0.01, "frame_steps": 10, "frame_alpha": 0.1},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", default="ffhq-256")
    parser.add_argument("--frames", default="0-11")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--key-frames", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = load_model(given.model)
    settings = ClipSettings(steps=given.steps, key_frames=given.key_frames)
    run = ClipRun(given.clip, given.out, model, settings, given.frames)
    run.find_face(lambda: FaceDetector().detect, lambda *_: None)
    shared = run.fit_key_frames(load_clip_inverter(model, settings), lambda *_: None)
    images = [image for _, image in run.crops(run.record.numbers)]
    shapes = {name: value.shape for name, value in shared.epsilon.items()}
    for variant in VARIANTS:
        inverter = load_clip_inverter(model, dataclasses.replace(settings, **variant))
        w, factors, rendered, fits = shared.w[0], inverter.initial_factors(shapes), [], []
        for image in images:
            fit = inverter.fit_frame(image, shared.epsilon, w, factors, lambda _: None)
            w, factors = fit.w, fit.factors
            fits.append(fit.distortion)
            rendered.append(inverter.rendered(w, shared.epsilon, factors, run.record.side))
        mean = {name: sum(fit[name] for fit in fits) / len(fits) for name in fits[0]}
        inputs = [change(a, b) for a, b in pairwise(images)]
        outputs = [change(a, b) for a, b in pairwise(rendered)]
        print(json.dumps({**variant, **mean, **flicker(inputs, outputs)}), flush=True)


if __name__ == "__main__":
    main()
