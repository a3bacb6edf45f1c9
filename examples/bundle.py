"""Bundle a trained model: fp16 weights, with the discriminator if there is one.

    python examples/bundle.py runs/r/model wrangan_cli/bundled/faces-64 --perceptual st-lpips-alex

Rounding changes the sha256 to which encoders, directions and codes refer, so do this
before making those.
"""

import argparse
from pathlib import Path

import torch

from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.folder import find_discriminator, read_config, save_model


def main() -> None:
    """Copy the model to the other folder in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--perceptual", required=True)
    options = parser.parse_args()
    model = load_model(str(options.model))
    save_model(
        options.out,
        model.generator,
        find_discriminator(model),
        perceptual=options.perceptual,
        source=read_config(options.model)["source"],
        dtype=torch.float16,
        inversion=model.inversion,
    )
    print(options.out)


if __name__ == "__main__":
    main()
