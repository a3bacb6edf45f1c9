"""How often does a direction move its attribute on real photographs?

    python -m tests.benchmarks.direction_success --codes codes/ --photos photos/ --out edits.png

For each direction that was learned from an attribute, edit the codes whose photographs do
not show it (the attribute net's logit of the photograph is negative; for a direction that
lowers the attribute, positive) by `--strength` standard deviations, and count how often the
net's logit moves in the intended sense from the unedited reconstruction to the edited image. For
pose, use the yaw of the landmarks (`editing/pose.py`), and move all codes by `--strength` to either side.
`face` is the fraction of edited images in which the detector finds a face. Prints one JSON object per
direction, and writes a figure.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.editing.directions import Direction, Move, edit_code, load_directions
from wrangan_cli.engine.editing.pose import YawScorer
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.pairs import pair_by_stem
from wrangan_cli.engine.models.attributes import attribute_logits, load_attributes
from wrangan_cli.engine.models.codes import Code, load_code, render
from wrangan_cli.engine.models.folder import Model

SIDE = 256
"""Side in px at which images are scored and shown: the nets use no more."""


def rendered(model: Model, codes: Sequence[Code]) -> Tensor:
    """The images of many codes, rendered one by one."""
    return torch.cat([render(model, [code], side=min(SIDE, model.resolution)).clamp(-1, 1) for code in codes])


def main() -> None:
    """Print one JSON object per direction, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--strength", type=float, default=3.0)
    parser.add_argument("--limit", type=int, default=50, help="maximum number of codes per direction")
    parser.add_argument("--out", type=Path, required=True, help="figure (.png)")
    arguments = parser.parse_args()

    keep_freed_memory()
    model = load_model(arguments.model)
    net, faces = load_attributes(model), YawScorer()
    pairs, failures = pair_by_stem(arguments.photos, arguments.codes)
    assert not failures, failures
    codes = [load_code(pair.code, model) for pair in pairs]
    photos = torch.stack([load_image(pair.photo, min(SIDE, model.resolution)) for pair in pairs])
    photo_logits, before = attribute_logits(net, photos), rendered(model, codes)
    latents = model.generator.config.num_latents
    rows, titles = [], []

    def moved(
        direction: Direction, which: list[int], strength: float, score: Callable[[Tensor], Tensor]
    ) -> None:
        edited = [edit_code(codes[i], [Move(direction, strength)], latents) for i in which]
        after = rendered(model, edited)
        start, end = score(before[which]), score(after)
        gain = (end - start) * (1 if strength > 0 else -1)
        found = ~faces(after)[:, 0].isnan()
        known = gain[~gain.isnan()]
        record = {
            "direction": direction.name,
            "strength": strength,
            "photographs": len(which),
            "raised": (known > 0).float().mean().item(),
            "median_gain": known.median().item(),
            "face": found.float().mean().item(),
        }
        if direction.name != "pose":
            record["crossed_zero"] = (end > 0).float().mean().item()
        print(json.dumps(record), flush=True)
        rows.extend([photos[which[:10]], before[which[:10]], after[:10]])
        titles.extend(["photograph", "inverted", f"{direction.name} {strength:+g}"])

    for direction in load_directions(model).values():
        if direction.name == "pose":
            for strength in (arguments.strength, -arguments.strength):
                everyone = list(range(len(codes)))[: arguments.limit]
                moved(direction, everyone, strength, lambda images: faces(images)[:, 0])
            continue
        attribute = direction.source.get("attribute")
        if attribute is None:
            continue
        # `-Young`: the direction lowers the attribute.
        column = net.index(attribute.removeprefix("-"))
        sign = -1.0 if attribute.startswith("-") else 1.0

        def logit(images: Tensor, column: int = column, sign: float = sign) -> Tensor:
            return sign * attribute_logits(net, images)[:, column]

        lacking = [i for i in range(len(codes)) if sign * photo_logits[i, column] < 0]
        moved(direction, lacking[: arguments.limit], arguments.strength, logit)
    save_image(arguments.out, labelled_grid(rows, titles))


if __name__ == "__main__":
    main()
