"""Distortion and corruption over the weight of the penalty and N (the paper's Figure 3).

    python -m tests.benchmarks.alpha_sweep --photos photos/ --out sweep.csv --figure sweep.png

For each N, σ is made by sensitivity; for each reduction and α the photographs are inverted.
`weight-tuning` is swept over the same α with its plain penalty on the weights.
"""

from pathlib import Path

from tests.benchmarks.study import Study, read_rows, say, study_arguments, write_rows
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.model_folder import load_model
from wrangan_cli.engine.models.stylegan2 import Generator
from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity
from wrangan_cli.engine.training.settings import SensitivitySettings


def main() -> None:
    """Write the table and the figure."""
    parser = study_arguments(__doc__, samples=500)
    parser.add_argument("--figure", type=Path, help="PNG (needs matplotlib)")
    parser.add_argument("--layers", type=int, nargs="*", default=[4, 6, 8])
    parser.add_argument("--alpha", type=float, nargs="*", default=[1e-4, 1e-2, 1e-1, 1.0, 10.0])
    parser.add_argument("--penalty", nargs="*", default=["mean"])
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    study = Study(model, arguments.photos, arguments.limit, arguments.batch, arguments.samples)
    rows: list[dict] = list(read_rows(arguments.out))
    random: dict[int, Generator] = {}
    for method in ("wrangan", "weight-tuning"):
        for layers in arguments.layers:
            for penalty in arguments.penalty:
                for alpha in arguments.alpha:
                    key = {"method": method, "layers": layers, "penalty": penalty, "alpha": alpha}
                    if any(all(row[k] == str(v) or row[k] == v for k, v in key.items()) for row in rows):
                        continue
                    if layers not in random:
                        wanted = SensitivitySettings(arguments.probes, arguments.distortion)
                        random[layers] = randomize_by_sensitivity(
                            model.generator, study.perceptual, layers, wanted
                        )
                    settings = InversionSettings(
                        method,
                        steps=arguments.steps,
                        epsilon_lr=arguments.epsilon_lr,
                        alpha=alpha,
                        penalty=penalty,
                    )
                    rows.append(key | study.measure(random[layers], settings))
                    say(rows[-1:])
                    write_rows(arguments.out, rows)
    if arguments.figure:
        draw(rows, arguments.figure)


def draw(rows: list[dict], path: Path) -> None:
    """Two panels: MSE and corruption over α, a line for each method and N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = [name for name in ("mse", "corruption-kid") if name in rows[0]]
    figure, panels = pyplot.subplots(1, len(columns), figsize=(5 * len(columns), 4), squeeze=False)
    lines = sorted({(row["method"], int(row["layers"]), row["penalty"]) for row in rows})
    for panel, column in zip(panels[0], columns, strict=True):
        for line in lines:
            points = sorted(
                (float(row["alpha"]), float(row[column]))
                for row in rows
                if (row["method"], int(row["layers"]), row["penalty"]) == line
            )
            style = "-o" if line[0] == "wrangan" else "--s"
            label = f"{line[0]}, N = {line[1]}" + ("" if line[2] == "mean" else f", {line[2]}")
            panel.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        panel.set_xscale("log")
        panel.set_xlabel("α")
        panel.set_ylabel({"mse": "MSE on [-1, 1]"}.get(column, column))
        panel.grid(alpha=0.3)
    panels[0][0].set_yscale("log")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
