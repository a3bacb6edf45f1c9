"""`wrangan directions`: list, learn, pca, import."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.shell import AsJson, Results, progress_with_rate, say, settings_options
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.settings import LearnSettings

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Direction
    from wrangan_cli.engine.models.folder import Model

app = typer.Typer(
    no_args_is_help=True, help="List a model's directions in W, learn new ones, or import them."
)

ModelOption = Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")]
OutOption = Annotated[Path | None, typer.Option(help="File to add them to; default: the model's directions.")]


@app.command("list")
def list_directions(
    model: ModelOption = DEFAULT_MODEL,
    directions: Annotated[
        Path | None, typer.Option(help="File of directions; default: those of the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the name, sensible strengths, size and origin of each direction."""
    from wrangan_cli.engine.editing.directions import load_directions
    from wrangan_cli.engine.library import load_model

    loaded = load_model(model)
    results = Results(as_json)
    found = load_directions(loaded, directions)
    if not found:
        say(f"wrangan: {loaded.name} has no directions: make some with `wrangan directions learn` or `… pca`")
    for item in found.values():
        low, high = item.range
        layers = "all layers" if item.layers is None else "layers " + ",".join(map(str, item.layers))
        layers += ", one vector each" if item.per_row else ""
        text = f"{item.name}\t{low:g}…{high:g}\tstd {item.std:.3g}\t{layers}\t{_origin(item)}"
        results.record(text, **_record(item))


@app.command("learn")
@settings_options(LearnSettings)
def learn(
    settings: LearnSettings,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names of the directions; smile, eyeglasses, gender, age, mouth-open, pose and brightness "
            "need no --attribute."
        ),
    ],
    attribute: Annotated[
        str | None,
        typer.Option(
            help="Attribute of the net that positive strengths increase; with a leading -, decrease."
        ),
    ] = None,
    orthogonal_to: Annotated[
        list[str] | None, typer.Option(help="Direction along which the new one must not move; repeatable.")
    ] = None,
    others: Annotated[
        Path | None,
        typer.Option(help="File that holds the directions of --orthogonal-to; default: the output file."),
    ] = None,
    layers: Annotated[str, typer.Option(help="Rows of w to move: all, or numbers such as 0-5.")] = "all",
    net: Annotated[Path | None, typer.Option(help="Attribute net; default: the model's.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="Score the images of this folder, made by `generate --pairs`, instead of rendering new ones."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    device: DeviceOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Learn directions from samples of W whose images are scored (InterFaceGAN).

    Positive strengths of gender are more male, of age older, of pose turned to the viewer's right.
    pose is learnt from landmarks and brightness from the luminance of the middle of the face, the
    others from the attribute net. --orthogonal-to brightness keeps a direction from changing the brightness.
    """
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.editing import directions as engine
    from wrangan_cli.engine.editing.learning import learn_directions, wanted_directions
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.attributes import load_attributes
    from wrangan_cli.engine.models.pairs import open_pairs

    if others and not orthogonal_to:
        raise UsageError("--others needs --orthogonal-to")
    wanted = wanted_directions(names, attribute)
    where = resolve_device(device)
    loaded = load_model(model, where)
    rows = engine.parse_layers(layers, loaded.generator.config.num_latents)
    attributes = [item.attribute for item in wanted if item.attribute]
    scorer = load_attributes(net or loaded, where) if attributes else None
    if scorer:
        for known in attributes:
            scorer.index(known)
    target = out or engine.directions_file(loaded)
    known_from = others or out
    existing = engine.load_directions(loaded, known_from) if others or out is None or out.exists() else {}
    orthogonal = orthogonal_to or []
    for name in orthogonal:
        if name not in [item.name for item in wanted]:
            engine.find_direction(existing, name, known_from or target)
    given = open_pairs(pairs, loaded.generator) if pairs else None
    count = settings.samples if given is None else min(settings.samples, len(given))
    with progress_with_rate("scoring images", count) as advance:
        learnt = learn_directions(
            loaded, wanted, scorer, settings, orthogonal, existing, rows, given, advance
        )
    for direction in learnt:
        say(f"{direction.name}: {_origin(direction)}")
    _store(target, loaded, learnt, as_json)


@app.command("pca")
def pca(
    components: Annotated[int, typer.Option(help="Number of components, largest variance first.")] = 10,
    samples: Annotated[
        int, typer.Option(help="Number of random w to estimate the covariance from.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the latents.")] = 0,
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    device: DeviceOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Make directions pca-0, pca-1 … from the principal components of W (GANSpace)."""
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.editing.directions import directions_file
    from wrangan_cli.engine.editing.pca import pca_directions
    from wrangan_cli.engine.library import load_model

    loaded = load_model(model, resolve_device(device))
    with progress_with_rate("sampling w", samples) as advance:
        found = pca_directions(loaded, components, samples, seed, advance)
    _store(out or directions_file(loaded), loaded, found, as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .npy, .npz or .pt file of vectors, or a GANSpace file.")],
    name: Annotated[
        str, typer.Option(help="Name of the direction; the prefix of the names if the file holds several.")
    ],
    key: Annotated[
        str | None, typer.Option(help="Import only this array (or, by number, this GANSpace component).")
    ] = None,
    layers: Annotated[str, typer.Option(help="Rows of w to move: all, or numbers such as 0-7.")] = "all",
    components: Annotated[int, typer.Option(help="Number of components to take from a GANSpace file.")] = 10,
    model: ModelOption = DEFAULT_MODEL,
    out: OutOption = None,
    as_json: AsJson = False,
) -> None:
    """Import published directions: arrays (512,), (1, 512), (18, 512) or (1, 18, 512), or a dict of them.

    The vector is scaled to length 1 and the spread of the model's w along it is measured, so that
    --strength 3 means the same for every direction; `directions list --json` gives the strength that
    corresponds to the original vector. Rows of (18, 512) that are zero are not moved.
    """
    from wrangan_cli.engine.editing.directions import directions_file
    from wrangan_cli.engine.editing.imports import import_directions
    from wrangan_cli.engine.library import load_model

    loaded = load_model(model)
    found = import_directions(loaded, file, name, key, layers, components)
    _store(out or directions_file(loaded), loaded, found, as_json)


def _store(path: Path, model: "Model", found: "Iterable[Direction]", as_json: bool) -> None:
    from wrangan_cli.engine.editing.directions import add_directions

    new = list(found)
    add_directions(path, model, new)
    Results(as_json).wrote(path, directions=[_record(item) for item in new])


def _record(item: "Direction") -> dict[str, object]:
    return {
        "name": item.name,
        "std": item.std,
        "range": list(item.range),
        "layers": None if item.layers is None else list(item.layers),
        "per_row": item.per_row,
        "source": item.source,
    }


def _origin(item: "Direction") -> str:
    """The origin of a direction, in a few words."""
    source = item.source
    words = [str(source.get("method", "origin unknown"))]
    if source.get("attribute"):
        words.append(f"of {source['attribute']}")
    if source.get("file"):
        words.append(f"of {source['file']}")
        words.append(f"(original vector: strength {source['strength_of_file_unit']:.3g})")
    if "accuracy_test" in source:
        words.append(f"(SVM correct on {source['accuracy_test']:.1%} of the held-out extremes)")
    if "correlation_test" in source:
        left_out = f", {source['without_face']} images without a face" if source["without_face"] else ""
        words.append(f"(correlation {source['correlation_test']:.3f} on held-out faces{left_out})")
    if "variance_share" in source:
        words.append(f"({source['variance_share']:.1%} of the variance)")
    return " ".join(words)
