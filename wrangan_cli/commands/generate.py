"""`wrangan generate`: images from random latents, and pairs of w and image for training."""

from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.shell import AsJson, Null, Results, one_image, progress_with_rate
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError

MAX_SEEDS = 100_000
"""Maximum number of images per call."""

PairsOption = Annotated[
    Path | None,
    typer.Option(help="Instead, render pairs of w and image into this folder, for training."),
]


def generate(
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0-15 or 1,4,9; one image per seed.")] = "0-15",
    out: Annotated[Path, typer.Option(help="A .png grid, or a folder for one image per seed.")] = Path(
        "grid.png"
    ),
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = DEFAULT_MODEL,
    truncation: Annotated[
        float, typer.Option(help="Truncation of w towards its mean: 1 leaves w unchanged, 0 gives the mean.")
    ] = 1.0,
    epsilon: Annotated[
        float, typer.Option(help="Scale of the random ε ~ N(0, 1); 0: the mean weights.")
    ] = 0.0,
    pairs: PairsOption = None,
    samples: Annotated[
        int, typer.Option(help="With --pairs: number of pairs; a larger number adds to existing ones.")
    ] = 10_000,
    side: Annotated[
        int, typer.Option(help="With --pairs: reduce images by area averaging to this side in px.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="With --pairs: seed of the latents.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Generate images from random latents, as a grid or one file per seed.

    With --pairs: write w and images for `directions learn` and `train`; an interrupted run continues
    where it stopped.
    """
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.data.image_writing import save_image
    from wrangan_cli.engine.data.images import image_grid
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.seeds import check_sampling, image_of_seed

    if pairs is not None:
        if epsilon:
            raise UsageError("--pairs are rendered with the mean weights: leave --epsilon out")
        if truncation != 1:
            raise UsageError("--pairs are not truncated: leave --truncation out")
        _generate_pairs(pairs, model, samples, side, seed, device, Results(as_json, null))
        return
    numbers = parse_seeds(seeds)
    check_sampling(truncation, epsilon)
    one_file = one_image(out)
    loaded = load_model(model, resolve_device(device))
    results = Results(as_json, null)
    images = (image_of_seed(loaded, seed, truncation, epsilon) for seed in numbers)
    if one_file:
        save_image(out, image_grid(list(images)))
        results.wrote(out, seeds=numbers)
    else:
        for seed, image in zip(numbers, images, strict=True):
            path = out / f"seed-{seed}.png"
            save_image(path, image)
            results.wrote(path, seed=seed)


def _generate_pairs(
    folder: Path, model: str, samples: int, side: int, seed: int, device: str, results: Results
) -> None:
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.pairs import render_pairs

    loaded = load_model(model, resolve_device(device))
    with progress_with_rate("rendering pairs", samples) as advance:
        rendered = render_pairs(loaded, folder, samples, side, seed, advance)
    results.wrote(folder, pairs=len(rendered), side=rendered.side)


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` → [0, 1, 2, 3, 7]; UsageError for anything else."""
    from wrangan_cli.engine.base.number_lists import parse_numbers

    example = "64-bit numbers and ranges such as 0-15 or 1,4,9"
    return parse_numbers(text, "seeds", 0, 2**64 - 1, MAX_SEEDS, example)
