"""Compare kinds of σ: by sensitivity, one per weight, filter or layer or a single one, and trained.

    python -m tests.benchmarks.std_kinds --model runs/g/model --photos photos/ --out kinds.csv \
        --also adversarial=runs/r/model

Every kind is scaled so that sampling ε causes the same distortion (`--distortion`); a model given by `--also`
keeps its σ. The photographs are inverted with the same settings, starting from the encoder of `--model`.
Distortion, corruption and the time to compute σ are written, one row per kind.
"""

import time

from tests.benchmarks.study import Study, read_rows, say, study_arguments, write_rows
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity
from wrangan_cli.engine.training.settings import SensitivitySettings


def main() -> None:
    """Write the table."""
    parser = study_arguments(__doc__, samples=1000)
    parser.add_argument("--also", action="append", default=[], help="NAME=MODEL")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--epsilon-lr", type=float, default=0.01)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--distortion", type=float, default=0.2)
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    study = Study(model, arguments.photos, arguments.limit, arguments.batch, arguments.corruption)
    rows: list[dict] = list(read_rows(arguments.out))
    others = dict(text.split("=", 1) for text in arguments.also)
    fitted = inversion_settings(steps=arguments.steps, epsilon_lr=arguments.epsilon_lr)
    tuned = inversion_settings("weight-tuning", steps=arguments.steps, epsilon_lr=arguments.epsilon_lr)
    for kind in ("untuned", "weight", "filter", "layer", "all", *others, "weight-tuning"):
        if any(row["kind"] == kind for row in rows):
            continue
        started = time.perf_counter()
        generator = model.generator
        if kind in others:
            generator = load_model(others[kind]).generator
        elif kind in ("weight", "filter", "layer", "all"):
            wanted = SensitivitySettings(arguments.probes, arguments.distortion, tie=kind)
            generator = randomize_by_sensitivity(generator, study.perceptual, arguments.layers, wanted)
        making = time.perf_counter() - started
        if kind == "untuned":
            measured = study.untuned()
        else:
            measured = study.measure(generator, tuned if kind == "weight-tuning" else fitted)
        rows.append({"kind": kind, "seconds to make": making, **measured})
        say(rows[-1:])
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
