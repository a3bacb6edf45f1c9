"""Write a model as it ships whose weights are fetched: only what its carrier has not.

    python examples/bundle_fetched.py runs/r/model wrangan_cli/bundled/ffhq --carrier ffhq

Without a model, only pin a folder anew after its `fitted.safetensors` or `config.json` was changed.
The sha256 that encoders, directions and codes refer to changes with it, so this comes before they
are made.

    python examples/bundle_fetched.py runs/s/model wrangan_cli/bundled/ffhq-256 --companions-of ffhq --half

A smaller form of a bundled model names it: encoder, attribute net and directions are that one's then.
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
    """Take the carrier's tensors out of the model, and pin what joining must give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("out", type=Path)
    parser.add_argument("--carrier", choices=sorted(READERS), default="ffhq")
    parser.add_argument(
        "--companions-of", help="bundled model whose encoder, attribute net and directions serve"
    )
    parser.add_argument(
        "--half", action="store_true", help="all of the model's own weights in fp16, not σ alone"
    )
    options = parser.parse_args()
    if options.model is not None:
        write(options.model, options.out, options.carrier, options.companions_of, options.half)
    print(options.out, pin(options.out))


def write(model: Path, out: Path, carrier: str, parent: str | None = None, half: bool = False) -> None:
    """`fitted.safetensors` and `config.json` in `out`, of the model in `model`."""
    fetched = READERS[carrier](fetch_carrier(CARRIERS[carrier]))
    fitted = {}
    for name, tensor in read_tensors(model / WEIGHTS)[0].items():
        own = name.removeprefix("generator.")
        if own in STATISTICS or own not in fetched or not torch.equal(fetched[own], tensor.float()):
            # σ needs no more than three digits.
            rounded = own not in STATISTICS and (half or own.endswith(".std"))
            fitted[own] = tensor.half() if rounded else tensor
    record = {k: v for k, v in read_config(model).items() if k not in ("sha256", "fetched")}
    if parent is not None:
        record["companions_of"] = parent
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / FITTED, fitted, {"kind": "fitted"})
    (out / CONFIG).write_text(json.dumps({**record, "fetch": {"carrier": carrier}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
