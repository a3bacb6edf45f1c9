"""Figures made with matplotlib: histograms, bars, curves. Each is written as .png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.base.installation import install_line

BINS = 80
SOLID, DASHED = "-o", "--s"

Curve = tuple[str, str, Sequence[tuple[float, float]]]
"""Label, matplotlib format string, points (x, y)."""


def require_matplotlib() -> None:
    """Select a backend without a display; WranganError that names the extra if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise WranganError(f"a report needs matplotlib: {install_line('report')}") from error
    matplotlib.use("Agg")


def histograms(path: Path, values: Mapping[str, Tensor], what: str) -> None:
    """A histogram of each tensor, with its mean and standard deviation, as .png."""
    from matplotlib.figure import Figure as Canvas

    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    canvas = Canvas(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(values) :]:
        axis.set_axis_off()
    for axis, (name, tensor) in zip(axes, values.items(), strict=False):
        numbers = tensor.double().cpu().numpy()
        axis.hist(numbers, bins=BINS, histtype="stepfilled")
        axis.set_yscale("log")
        axis.set_title(f"{name}: {what} mean {numbers.mean():.3g}, std {numbers.std():.3g}", fontsize=8)
        axis.tick_params(which="both", labelsize=7)
        axis.yaxis.set_minor_formatter("")
    save_canvas(path, canvas)


def save_canvas(path: Path, canvas: object) -> None:
    """Write a matplotlib figure as .png, atomically and without metadata that varies."""
    from matplotlib.figure import Figure as Canvas

    assert isinstance(canvas, Canvas)
    with replaced_atomically(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def bars(path: Path, rows: Mapping[str, Sequence[float]], across: str, up: str) -> None:
    """One row of bars per title, all on the same scale."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 2 * len(rows) + 0.5), layout="constrained")
    axes = canvas.subplots(len(rows), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, (title, heights) in zip(axes, rows.items(), strict=True):
        axis.bar(range(len(heights)), heights)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel(up)
    axes[-1].set_xlabel(across)
    save_canvas(path, canvas)


def curves(
    path: Path,
    panels: Mapping[str, Sequence[Curve]],
    across: str,
    up: str = "",
    log: bool = False,
    fractions: bool = False,
) -> None:
    """One panel per title, four in a row, with curves through their points in order. log: logarithmic
    horizontal axis; fractions: both axes from 0 to 1."""
    from matplotlib.figure import Figure as Canvas

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        for label, style, points in lines:
            axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        if log:
            axis.set_xscale("log")
        if fractions:
            axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    # Outside the panels, where it does not hide any points.
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    save_canvas(path, canvas)


def coloured(values: Tensor, top: float) -> Tensor:
    """(…, H, W) in 0…top → (…, 3, H, W) in [-1, 1], purple to yellow (viridis)."""
    from matplotlib import colormaps

    rgb = torch.from_numpy(colormaps["viridis"]((values / top).clamp(0, 1).numpy())[..., :3])
    return rgb.movedim(-1, -3).float() * 2 - 1
