"""Converted networks draw what the peers' own code draws (numbers stored by it)."""

import numpy as np
import pytest
import torch

from tests.fixtures.checkpoint_files import CASES, OUTPUTS, SHAPES, inputs, weights, write_case
from wrangan_cli.engine.checkpoints.convert import build
from wrangan_cli.engine.checkpoints.detect import read_checkpoint


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_the_peers_outputs(name, tmp_path):
    # Weights: seeds 11 (G), 12 (D), 13 (G_ema), in sorted order of the file's tensor
    # names; inputs: seeds 100 and 101 (tests/fixtures/checkpoint_files.py). Stored by
    # tests/benchmarks/conversion_parity.py.
    case = CASES[name]
    stored = np.load(OUTPUTS)
    checkpoint = read_checkpoint(write_case(tmp_path / "file", case))
    generator, discriminator = build(checkpoint)
    z, images = inputs(case)
    w = generator.mapping(z)
    for key, value in (
        ("w", w),
        ("image", generator.synthesis(w)),
        ("logits", discriminator(images)),
    ):
        expected = torch.from_numpy(stored[f"{name}/{key}"])
        assert expected.std() > 0.01
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_settings_come_from_the_file(name, tmp_path):
    case = CASES[name]
    config = read_checkpoint(write_case(tmp_path / "file", case)).config
    assert config.resolution == case.resolution
    assert config.channels == case.channels
    assert (config.style_dim, config.mapping_layers) == (case.style_dim, case.depth)
    assert (config.conv_clamp, config.stddev_group) == (case.clamp, case.group)
    assert config.mapping_lr_multiplier == 0.01
    assert config.fir_taps == (1.0, 3.0, 3.0, 1.0)


@pytest.mark.parametrize("name", ["ada", "sg3", "tf"])
def test_mean_of_w_is_the_files(name, tmp_path):
    case = CASES[name]
    checkpoint = read_checkpoint(write_case(tmp_path / "file", case))
    given = weights(case)["G_ema"]
    assert torch.equal(checkpoint.w_mean, given["dlatent_avg" if name == "tf" else "mapping.w_avg"])


@pytest.mark.parametrize("name", ["rosinality", "ada", "tf"])
def test_raw_generator_on_request(name, tmp_path):
    case = CASES[name]
    path = write_case(tmp_path / "file", case)
    ema, raw = read_checkpoint(path), read_checkpoint(path, raw=True)
    given = weights(case)
    const = {"rosinality": "input.input", "ada": "synthesis.b4.const", "tf": "synthesis/4x4/Const/const"}
    for checkpoint, network in ((ema, "G_ema"), (raw, "G")):
        expected = given[network][const[name]].reshape(1, -1, 4, 4)
        assert torch.equal(checkpoint.generator["input.input"], expected)


def test_every_tensor_of_the_file_is_used():
    for case in CASES.values():
        count = sum(len(SHAPES[case.peer](case, network)) for network in ("G_ema", "D"))
        assert count > 60
