"""Bundle a model whose weights are fetched: write only what its carrier does not have.

    python examples/bundle_fetched.py runs/r/model wrangan_cli/bundled/ffhq --carrier ffhq

Without a model, only update the digests in a folder after its `fitted.safetensors` or `config.json` has
changed. This changes the sha256 to which encoders, directions and codes refer, so do it before making those.

    python examples/bundle_fetched.py runs/s/model wrangan_cli/bundled/ffhq-256 --companions-of ffhq --half

A smaller form of a bundled model names that model, and uses its encoder, attribute net and directions.
"""

import argparse
import json
from pathlib import Path

import torch

from wrangan_cli.engine.base.carriers import CARRIERS
from wrangan_cli.engine.base.fetching import fetch_carrier
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors
from wrangan_cli.engine.checkpoints.fetched_models import READERS, STATISTICS, pin
from wrangan_cli.engine.models.folder import CONFIG, FITTED, WEIGHTS, read_config


def main() -> None:
    """Remove the carrier's tensors from the model, and record the digest that joining must give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--carrier", choices=sorted(READERS), default="ffhq")
    parser.add_argument(
        "--companions-of", help="bundled model whose encoder, attribute net and directions to use"
    )
    parser.add_argument(
        "--half", action="store_true", help="store all weights that are written in fp16, not only σ"
    )
    options = parser.parse_args()
    if options.model is not None:
        write(options.model, options.out, options.carrier, options.companions_of, options.half)
    print(options.out, pin(options.out))


def write(model: Path, out: Path, carrier: str, parent: str | None = None, half: bool = False) -> None:
    """Write `fitted.safetensors` and `config.json` of the model in `model` to `out`."""
    fetched = READERS[carrier](fetch_carrier(CARRIERS[carrier]))
    fitted = {}
    for name, tensor in read_tensors(model / WEIGHTS)[0].items():
        key = name.removeprefix("generator.")
        if key in STATISTICS or key not in fetched or not torch.equal(fetched[key], tensor.float()):
            # σ needs no more than three digits.
            rounded = key not in STATISTICS and (half or key.endswith(".std"))
            fitted[key] = tensor.half() if rounded else tensor
    record = {k: v for k, v in read_config(model).items() if k not in ("sha256", "fetched")}
    if parent is not None:
        record["companions_of"] = parent
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / FITTED, fitted, {"kind": "fitted"})
    (out / CONFIG).write_text(json.dumps({**record, "fetch": {"carrier": carrier}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
