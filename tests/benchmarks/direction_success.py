"""How often does a direction raise its attribute on real photographs?

    python -m tests.benchmarks.direction_success --codes codes/ --photos photos/ --out edits.png

For each direction that was learned from an attribute, the codes whose photograph does
not show it (the attribute net's logit of the photograph is negative; for a direction that
lowers the attribute, positive) are edited by `--strength` standard deviations. Counted is
how often the net's logit of the edited image moves the wanted way against the unedited
reconstruction. Writes one JSON line per direction to stdout and a figure.
"""

import argparse
import json
from pathlib import Path

import torch

from wrangan_cli.engine.codes import Code, load_code, render
from wrangan_cli.engine.editing.directions import Move, edit_code, load_directions
from wrangan_cli.engine.images import labelled_grid, load_image, save_image
from wrangan_cli.engine.metrics.pairs import pair_by_stem
from wrangan_cli.engine.model_folder import Model, load_model
from wrangan_cli.engine.models.attributes import attribute_logits, load_attributes


def draw(model: Model, codes: list[Code]) -> torch.Tensor:
    """Images of many codes, 16 at a time."""
    return torch.cat([render(model, codes[i : i + 16]).clamp(-1, 1) for i in range(0, len(codes), 16)])


def main() -> None:
    """Print one JSON object a direction; write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--strength", type=float, default=3.0)
    parser.add_argument("--limit", type=int, default=50, help="codes per direction")
    parser.add_argument("--out", type=Path, required=True, help="figure (.png)")
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    net = load_attributes(model)
    pairs, failures = pair_by_stem(arguments.photos, arguments.codes)
    assert not failures, failures
    codes = [load_code(pair.code, model) for pair in pairs]
    photos = torch.stack([load_image(pair.photo, model.resolution) for pair in pairs])
    photo_logits = attribute_logits(net, photos)
    latents = model.generator.config.num_latents
    rows, titles = [], []
    for direction in load_directions(model).values():
        attribute = direction.source.get("attribute")
        if attribute is None:
            continue
        # `-Young`: the direction lowers the attribute.
        column = net.index(attribute.removeprefix("-"))
        sign = -1.0 if attribute.startswith("-") else 1.0
        lacking = [i for i in range(len(codes)) if sign * photo_logits[i, column] < 0][: arguments.limit]
        chosen = [codes[i] for i in lacking]
        edited = [edit_code(code, [Move(direction, arguments.strength)], latents) for code in chosen]
        before, after = draw(model, chosen), draw(model, edited)
        gain = sign * (attribute_logits(net, after) - attribute_logits(net, before))[:, column]
        flipped = sign * attribute_logits(net, after)[:, column] > 0
        record = {
            "direction": direction.name,
            "attribute": attribute,
            "strength": arguments.strength,
            "photographs": len(chosen),
            "raised": (gain > 0).float().mean().item(),
            "crossed_zero": flipped.float().mean().item(),
            "median_gain": gain.median().item(),
        }
        print(json.dumps(record), flush=True)
        rows += [photos[lacking[:10]], before[:10], after[:10]]
        titles += ["photograph", "inverted", f"{direction.name} +{arguments.strength:g}"]
    save_image(arguments.out, labelled_grid(rows, titles))


if __name__ == "__main__":
    main()
