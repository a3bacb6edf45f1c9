"""Whole generators, however wrapped: the same model, bit for bit, as of the file without wrapping."""

import argparse
import collections
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from tests.fixtures.checkpoint_files import (
    CASES,
    module_tree,
    nvidia_modules,
    tensorflow_classes,
    tf_state,
    weights,
    write_case,
)
from tests.fixtures.published_encoders import encoder_state, write_published
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.checkpoints.convert import build, convert_to_model, draw
from wrangan_cli.engine.checkpoints.detect import read_checkpoint
from wrangan_cli.engine.checkpoints.encoders import install_published
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.folder import w_statistics

ROSINALITY, ADA = CASES["rosinality"], CASES["ada"]
SIDE = ROSINALITY.style_dim
MEAN = torch.linspace(-1, 1, SIDE)


def refusal(path, **options):
    with pytest.raises(FileError) as caught:
        read_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def same(checkpoint, other):
    assert checkpoint.config == other.config
    assert checkpoint.generator.keys() == other.generator.keys()
    for name, tensor in other.generator.items():
        assert torch.equal(checkpoint.generator[name], tensor), name
    assert torch.equal(draw(build(checkpoint)[0]), draw(build(other)[0]))


@pytest.fixture
def drawn():
    return weights(ROSINALITY)


@pytest.fixture
def plain(drawn, tmp_path):
    torch.save({"g_ema": drawn["G_ema"], "d": drawn["D"]}, tmp_path / "plain.pt")
    return read_checkpoint(tmp_path / "plain.pt")


WRAPPINGS = {
    "bare": lambda s: s,
    "OrderedDict": collections.OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s},
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params": weights(ROSINALITY)["G"], "params_ema": s},
    "net": lambda s: {"net": {"state_dict": s}},
    "module": lambda s: prefixed(s, "module."),
    "g_ema of DataParallel": lambda s: {"g_ema": prefixed(s, "module.")},
    "torch.compile": lambda s: {"g_ema": prefixed(s, "_orig_mod.module.")},
    "AveragedModel": lambda s: {"n_averaged": torch.tensor(4), **prefixed(s, "module.")},
    "generator.": lambda s: prefixed(s, "generator."),
    "g_ema.": lambda s: {"state_dict": prefixed(s, "g_ema.") | prefixed(weights(ROSINALITY)["G"], "g.")},
    "decoder.": lambda s: {"state_dict": prefixed(s, "decoder.")},
    "module.decoder.": lambda s: prefixed(s, "module.decoder."),
    "decoder.module.": lambda s: prefixed(s, "decoder.module."),
    "some with module.": lambda s: {
        "g_ema": {("module." if index % 2 else "") + name: t for index, (name, t) in enumerate(s.items())}
    },
    "list": lambda s: [s, {"step": 1}],
    "beside an optimiser": lambda s: {"g_ema": s, "g_optim": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "parameters": lambda s: {"g_ema": {name: nn.Parameter(tensor) for name, tensor in s.items()}},
    "NumPy": lambda s: {"g_ema": {name: tensor.numpy() for name, tensor in s.items()}},
    "on another device": lambda s: {"g_ema": s, "device": torch.device("cuda:1"), "dtype": torch.float16},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_state_dicts(wrapping, legacy, drawn, plain, tmp_path):
    data = WRAPPINGS[wrapping](drawn["G_ema"])
    torch.save(data, tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
    same(read_checkpoint(tmp_path / "f.pt"), plain)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_newer_pickle_protocols_and_plain_pickles(protocol, drawn, plain, tmp_path):
    torch.save({"g_ema": drawn["G_ema"]}, tmp_path / "f.pt", pickle_protocol=protocol)
    same(read_checkpoint(tmp_path / "f.pt"), plain)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"g_ema": drawn["G_ema"]}, protocol=protocol))
    same(read_checkpoint(tmp_path / "f.pkl"), plain)


def test_safetensors(drawn, plain, tmp_path):
    save_file(prefixed(drawn["G_ema"], "generator."), tmp_path / "f.safetensors")
    same(read_checkpoint(tmp_path / "f.safetensors"), plain)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: prefixed(s, "module.")])
def test_discriminator_of_wrapped_files(wrap, drawn, plain, tmp_path):
    for file, data in (
        ("a", {"g_ema": wrap(drawn["G_ema"]), "g": wrap(drawn["G"]), "d": wrap(drawn["D"])}),
        ("b", {"state_dict": prefixed(drawn["G_ema"], "G.") | prefixed(drawn["D"], "D.")}),
        ("c", {**wrap(drawn["G_ema"]), "d": drawn["D"], "latent_avg": MEAN}),
    ):
        torch.save(data, tmp_path / file)
        checkpoint = read_checkpoint(tmp_path / file, raw=file == "b")
        same(checkpoint, plain)
        assert all(torch.equal(checkpoint.discriminator[k], v) for k, v in plain.discriminator.items())
    assert torch.equal(checkpoint.w_mean, MEAN)


def test_which_generator_is_which(drawn, plain, tmp_path):
    path = tmp_path / "f"
    torch.save({"g": drawn["G"]}, path)
    assert "lacks the moving average (g_ema, G_ema): --weights raw takes g" in refusal(path)
    assert torch.equal(read_checkpoint(path, raw=True).generator["input.input"], drawn["G"]["input.input"])
    torch.save({"params": drawn["G"], "params_ema": drawn["G_ema"]}, path)
    same(read_checkpoint(path), plain)
    assert torch.equal(read_checkpoint(path, raw=True).generator["input.input"], drawn["G"]["input.input"])
    torch.save(drawn["G_ema"], path)
    assert "lacks a generator as trained" in refusal(path, raw=True)
    torch.save({"one": drawn["G"], "two": drawn["G_ema"]}, path)
    assert "holds several generators: one, two" in refusal(path)
    name = "conv1.conv.weight"
    torch.save(drawn["G_ema"] | {f"module.{name}": drawn["G_ema"][name]}, path)
    assert f"{name} is there twice" in refusal(path)
    torch.save({"g_ema": drawn["G_ema"] | {name: 3}}, path)
    assert f"g_ema: {name} is not a tensor but 3" in refusal(path)


@pytest.mark.parametrize("missing", ["conv1.conv.weight", "input.input"])
def test_what_is_missing_in_a_wrapped_file_is_named(missing, drawn, tmp_path):
    del drawn["G_ema"][missing]
    torch.save({"state_dict": prefixed(drawn["G_ema"], "module.generator.")}, tmp_path / "f")
    assert f"state_dict.generator lacks {missing}" in refusal(tmp_path / "f")


# --- Pickled modules -------------------------------------------------------------------


class EqualLinear(nn.Module):
    """Of rosinality's name and attribute; the rest of his class is not asked for."""

    def __init__(self, lr_mul):
        super().__init__()
        self.lr_mul = lr_mul


class Generator(nn.Module):
    """A module tree with given tensors, as one that was trained elsewhere."""

    def __init__(self, state, lr_mul):
        super().__init__()
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            module = self
            for part in parents:
                if not hasattr(module, part):
                    module.add_module(part, EqualLinear(lr_mul) if module is not self else nn.Module())
                module = getattr(module, part)
            module.register_parameter(leaf, nn.Parameter(tensor))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [lambda g: g, lambda g: {"g_ema": g}, nn.DataParallel, lambda g: {"state_dict": {"generator": g}}],
)
def test_whole_modules(wrap, legacy, drawn, plain, tmp_path):
    network = Generator(drawn["G_ema"], 0.01)
    torch.save(wrap(network), tmp_path / "f.pt", _use_new_zipfile_serialization=not legacy)
    same(read_checkpoint(tmp_path / "f.pt"), plain)


def test_modules_state_their_learning_rate(drawn, tmp_path):
    torch.save(Generator(drawn["G_ema"], 0.1), tmp_path / "f.pt")
    assert read_checkpoint(tmp_path / "f.pt").config.mapping_lr_multiplier == 0.1


class TestNvidia:
    @pytest.fixture
    def trees(self):
        case = dataclasses.replace(ADA, clamp=256.0)
        return {name: module_tree(case, name, tensors) for name, tensors in weights(case).items()}

    @pytest.fixture
    def known(self, trees, tmp_path):
        return self.read(trees, tmp_path / "known.pkl")

    def read(self, data, path, torch_file=False):
        with nvidia_modules():
            if torch_file:
                torch.save(data, path)
            else:
                path.write_bytes(pickle.dumps(data, protocol=3))
        return read_checkpoint(path)

    @pytest.mark.parametrize("torch_file", [True, False])
    @pytest.mark.parametrize("key", [None, "G_ema", "generator"])
    def test_alone(self, key, torch_file, trees, known, tmp_path):
        """PTI's `model_<run>_<image>.pt` is `torch.save` of the tuned module itself."""
        data = trees["G_ema"] if key is None else {key: trees["G_ema"]}
        checkpoint = self.read(data, tmp_path / "model_run_image.pt", torch_file)
        same(checkpoint, known)
        assert torch.equal(checkpoint.w_mean, known.w_mean)
        assert checkpoint.config.conv_clamp == 256
        assert "the file has no discriminator" in checkpoint.notes

    @pytest.mark.parametrize("part", ["", "mapping", "synthesis"])
    def test_within_data_parallel(self, part, trees, known, tmp_path):
        def wrapped(module):
            outer = nn.DataParallel(nn.Identity()).cpu()
            outer.__dict__["_modules"]["module"] = module
            return outer

        tree = trees["G_ema"]
        if part:
            tree.state["_modules"][part] = wrapped(tree.state["_modules"][part])
        else:
            trees["G_ema"] = wrapped(tree)
        checkpoint = self.read(trees, tmp_path / "f.pkl")
        same(checkpoint, known)
        assert checkpoint.discriminator is not None

    def test_a_state_dict_lacks_the_settings(self, tmp_path):
        torch.save({"G_ema": prefixed(weights(ADA)["G_ema"], "module.")}, tmp_path / "f.pt")
        assert "G_ema is a state dict of NVIDIA's network, which states neither its clamp nor" in refusal(
            tmp_path / "f.pt"
        )

    def test_a_broken_discriminator_does_not_matter(self, trees, known, tmp_path):
        trees["D"].state["_modules"]["b4"].state["_modules"]["odd"] = {"not": "a module"}
        checkpoint = self.read(trees, tmp_path / "f.pkl")
        same(checkpoint, known)
        assert any("discriminator left out: D.b4.odd is not a module" in note for note in checkpoint.notes)

    def test_tensorflow(self, tmp_path):
        case, drawn = CASES["tf"], weights(CASES["tf"])
        known = read_checkpoint(write_case(tmp_path / "known.pkl", case))
        with tensorflow_classes() as network:
            g, d, gs = (network(tf_state(case, name, drawn[name])) for name in ("G", "D", "G_ema"))
            for data in ([g, d, gs], gs, {"Gs": gs}, {"G": g, "D": d, "Gs": gs}):
                (tmp_path / "f").write_bytes(pickle.dumps(data, protocol=4))
                checkpoint = read_checkpoint(tmp_path / "f")
                same(checkpoint, known)
                assert (checkpoint.discriminator is None) == (data is gs or len(data) == 1)
            (tmp_path / "f").write_bytes(pickle.dumps({"G": g}, protocol=4))
        assert "lacks the network Gs; it has G" in refusal(tmp_path / "f")


# --- Encoders --------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["module.{}", "net.{}", "encoder", "decoder"])
def test_encoders(part, tiny_model, tmp_path):
    from tests.conftest import random_generator_network

    latents, style = tiny_model.generator.config.num_latents, tiny_model.generator.config.style_dim
    state, generator = encoder_state("Encoder4Editing", latents, style, 3), random_generator_network()
    given = {"generator": generator, "latent_avg": torch.linspace(-1, 1, style).repeat(latents, 1)}
    path = write_published(tmp_path / "plain.pt", "encoder", state, "Encoder4Editing", **given)
    plain = tmp_path / "plain"
    convert_to_model(path, plain)
    contents = torch.load(path, weights_only=True)
    if "{}" in part:
        named = {part.format(name): tensor for name, tensor in contents["state_dict"].items()}
    else:
        named = {
            name.replace(f"{part}.", f"{part}.module.", 1) if name.startswith(part) else name: tensor
            for name, tensor in contents["state_dict"].items()
        }
    torch.save(contents | {"state_dict": named, "opts": argparse.Namespace(**contents["opts"])}, path)
    report = convert_to_model(path, tmp_path / "wrapped")
    assert report.encoder.notes == []
    for file in ("model.safetensors", "encoder-e4e.safetensors"):
        one, other = (load_tensors(folder / file) for folder in (plain, tmp_path / "wrapped"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert install_published(path, tiny_model).notes == []


def load_tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


# --- Mean of w -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "remark"),
    [
        (None, "the file has no mean of w (latent_avg): it was measured"),
        (torch.full((SIDE,), torch.nan), f"latent_avg) is not {SIDE} finite numbers: it was measured"),
        (torch.ones(SIDE + 1), f"latent_avg) is not {SIDE} finite numbers: it was measured"),
        ("text", f"latent_avg) is not {SIDE} finite numbers: it was measured"),
        (torch.randn(6, SIDE), "latent_avg) differs from layer to layer: it was measured"),
    ],
)
def test_unusable_mean_of_w_is_measured(mean, remark, drawn, tmp_path):
    torch.save({"g_ema": drawn["G_ema"], "latent_avg": mean}, tmp_path / "f.pt")
    arguments = ["convert-checkpoint", str(tmp_path / "f.pt"), "--out", str(tmp_path / "m")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert sum("mean of w" in line for line in result.stderr.splitlines()) == 1
    assert remark in result.stderr
    model = load_model(str(tmp_path / "m"))
    assert torch.equal(model.w_mean, w_statistics(model.generator)[0])


def test_unusable_mean_of_w_of_nvidia(tmp_path):
    tensors = weights(ADA)
    tensors["G_ema"]["mapping.w_avg"][0] = np.nan
    checkpoint = read_checkpoint(write_case(tmp_path / "f.pkl", ADA, tensors))
    assert checkpoint.w_mean is None
    assert any(
        "mean of w (mapping.w_avg) is not 12 finite numbers: it was" in note for note in checkpoint.notes
    )
