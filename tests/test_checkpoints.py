"""Conversion of checkpoints: both directions, self-checks, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import TINY, random_generator_network
from tests.fixtures.checkpoint_files import (
    CASES,
    Case,
    module_tree,
    tensorflow_classes,
    tf_state,
    weights,
    write_case,
    write_nvidia,
)
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.checkpoints.convert import convert_to_model, draw, export_rosinality
from wrangan_cli.engine.checkpoints.detect import read_checkpoint
from wrangan_cli.engine.checkpoints.records import NotConvertible, taps_of_kernel
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.folder import load_discriminator, save_model, w_statistics
from wrangan_cli.engine.ops.fir import fir_kernel

ADA = CASES["ada"]


def refusal(path, **options):
    with pytest.raises(FileError) as caught:
        read_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", ["rosinality", "ada-depth2-clamp256", "tf"])
def test_model_folder_draws_the_same(name, tmp_path):
    path = write_case(tmp_path / "file", CASES[name])
    report = convert_to_model(path, tmp_path / "model", perceptual="st-lpips-alex")
    assert report.round_trip
    model = load_model(str(tmp_path / "model"))
    assert model.perceptual == "st-lpips-alex"
    images = draw(model.generator)
    assert report.image_mean == pytest.approx(float(images.mean()))
    assert report.image_std == pytest.approx(float(images.std()))
    discriminator = load_discriminator(model.path, model.generator.config)
    assert discriminator.config.stddev_group == CASES[name].group
    state = {**model.generator.state_dict(), **{f"d.{k}": v for k, v in discriminator.state_dict().items()}}
    assert report.tensors == sum(not key.endswith(".kernel") for key in state)
    source = json.loads((tmp_path / "model" / "config.json").read_text())["source"]
    assert source["converted_from"] == "file"
    if name == "rosinality":
        assert any("measured" in note for note in report.notes)
        assert torch.equal(model.w_mean, w_statistics(model.generator)[0])
    else:
        assert report.w_distance > 0


def test_untracked_mean_of_w_is_measured(tmp_path):
    tensors = weights(ADA)
    tensors["G_ema"]["mapping.w_avg"].zero_()
    report = convert_to_model(write_case(tmp_path / "f.pkl", ADA, tensors), tmp_path / "model")
    assert "the file has no mean of w: it was measured" in report.notes


class TestRosinality:
    def test_there_and_back_is_exact(self, tiny_folder, tmp_path):
        export_rosinality(load_model(str(tiny_folder)), tmp_path / "out.pt")
        report = convert_to_model(tmp_path / "out.pt", tmp_path / "again")
        assert report.round_trip
        first, second = load_model(str(tiny_folder)), load_model(str(tmp_path / "again"))
        assert second.generator.config.randomized_layers == 3
        assert torch.equal(first.w_mean, second.w_mean)
        for name, tensor in first.generator.state_dict().items():
            assert torch.equal(tensor, second.generator.state_dict()[name]), name
        one = load_discriminator(tiny_folder, first.generator.config).state_dict()
        other = load_discriminator(tmp_path / "again", second.generator.config).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_his_keys_and_nothing_else(self, tiny_folder, tmp_path):
        export_rosinality(load_model(str(tiny_folder)), tmp_path / "out.pt")
        contents = torch.load(tmp_path / "out.pt", weights_only=True)
        assert set(contents) == {"g_ema", "latent_avg", "d", "wrangan_std"}
        state = contents["g_ema"]
        assert not any(name.endswith(".std") for name in state)
        # His modules register these kernels, with gain 4 where they up-sample.
        for name in ("convs.0.conv.blur.kernel", "to_rgbs.1.upsample.kernel"):
            torch.testing.assert_close(state[name].sum(), torch.tensor(4.0))
        torch.testing.assert_close(contents["d"]["convs.1.conv2.0.kernel"].sum(), torch.tensor(1.0))

    def test_other_learning_rate_is_rescaled(self, tmp_path):
        config = dataclasses.replace(TINY, mapping_lr_multiplier=0.1, randomized_layers=0)
        generator = random_generator_network(config)
        save_model(tmp_path / "m", generator)
        report = export_rosinality(load_model(str(tmp_path / "m")), tmp_path / "out.pt")
        assert report.round_trip
        assert any("rescaled" in note for note in report.notes)
        convert_to_model(tmp_path / "out.pt", tmp_path / "again")
        z = torch.randn(3, 16)
        again = load_model(str(tmp_path / "again")).generator
        torch.testing.assert_close(again.mapping(z), generator.mapping(z), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("clamp", "written"), [(256.0, True), (0.05, False)])
    def test_clamp_that_matters_is_not_dropped(self, clamp, written, tmp_path):
        config = dataclasses.replace(TINY, conv_clamp=clamp)
        save_model(tmp_path / "m", random_generator_network(config))
        if written:
            report = export_rosinality(load_model(str(tmp_path / "m")), tmp_path / "out.pt")
            assert any("clamp was left out" in note for note in report.notes)
        else:
            with pytest.raises(FileError, match="changes images by"):
                export_rosinality(load_model(str(tmp_path / "m")), tmp_path / "out.pt")
        assert (tmp_path / "out.pt").exists() == written

    def test_discriminator_of_another_group_is_left_out(self, tmp_path):
        config = dataclasses.replace(TINY, stddev_group=8)
        save_model(tmp_path / "m", random_generator_network(config), Discriminator(config))
        report = export_rosinality(load_model(str(tmp_path / "m")), tmp_path / "out.pt")
        assert "d" not in torch.load(tmp_path / "out.pt", weights_only=True)
        assert any("groups have 8 images" in note for note in report.notes)

    def test_repeated_and_absent_noise_and_mean(self, tmp_path):
        tensors = weights(CASES["rosinality"])["G_ema"]
        mean = torch.randn(12)
        plain = {k: v for k, v in tensors.items() if not k.startswith("noises.")}
        torch.save({"g_ema": plain, "latent_avg": mean.repeat(6, 1)}, tmp_path / "old.pt")
        checkpoint = read_checkpoint(tmp_path / "old.pt")
        assert torch.equal(checkpoint.w_mean, mean)
        assert "the file has no noise maps: they were sampled with seed 0" in checkpoint.notes
        assert "the file has no discriminator" in checkpoint.notes

    def test_legacy_form_of_torch_files(self, tmp_path):
        tensors = weights(CASES["rosinality"])["G_ema"]
        torch.save({"g_ema": tensors}, tmp_path / "f.pt", _use_new_zipfile_serialization=False)
        assert torch.equal(read_checkpoint(tmp_path / "f.pt").generator["conv1.conv.weight"],
                           tensors["conv1.conv.weight"])  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda s: s["g_ema"].pop("convs.1.conv.modulation.bias"), "lacks convs.1.conv.modulation.bias"),
            (lambda s: s["g_ema"].pop("conv1.conv.weight"), "g_ema lacks conv1.conv.weight"),
            (lambda s: s["g_ema"].update(extra=torch.ones(2)), "extra"),
            (lambda s: s["g_ema"].update({"to_rgb1.bias": torch.ones(1, 4, 1, 1)}), "to_rgb1.bias has shape"),
            (lambda s: s["g_ema"]["input.input"].fill_(float("nan")), "not finite"),
            (lambda s: s["g_ema"].update({"convs.0.iwt.ll": torch.ones(2, 2)}), "swagan"),
            (lambda s: s.pop("g_ema"), "holds no StyleGAN2 generator; the file has d"),
            (lambda s: s.update(g_ema=[1]), "g_ema is not a state dict"),
        ],
    )
    def test_unfit_files_are_refused(self, change, words, tmp_path):
        drawn = weights(CASES["rosinality"])
        contents = {"d": drawn["D"], "g_ema": drawn["G_ema"]}
        change(contents)
        torch.save(contents, tmp_path / "f.pt")
        assert words in refusal(tmp_path / "f.pt")

    def test_unfit_discriminator_is_left_out_with_the_reason(self, tmp_path):
        drawn = weights(CASES["rosinality"])
        del drawn["D"]["final_conv.0.weight"]
        torch.save({"d": drawn["D"], "g_ema": drawn["G_ema"]}, tmp_path / "f.pt")
        checkpoint = read_checkpoint(tmp_path / "f.pt")
        assert checkpoint.discriminator is None
        assert "discriminator left out: d lacks final_conv.0.weight" in checkpoint.notes


class TestNvidiaTorch:
    def write(self, path, edit=None, case=ADA, protocol=3):
        trees = {name: module_tree(case, name, tensors) for name, tensors in weights(case).items()}
        if edit:
            edit(trees)
        write_nvidia(path, trees, protocol)
        return path

    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    def test_pickle_protocols(self, protocol, tmp_path):
        # Python 3 writes bytes as text in protocol 2, through a codec.
        assert read_checkpoint(self.write(tmp_path / "f.pkl", protocol=protocol)).discriminator

    def test_learning_rate_multiplier_is_read(self, tmp_path):
        def edit(trees):
            for layer in trees["G_ema"].state["_modules"]["mapping"].state["_modules"].values():
                layer.state["bias_gain"] = 0.02

        assert read_checkpoint(self.write(tmp_path / "f", edit)).config.mapping_lr_multiplier == 0.02

    def test_generator_without_noise(self, tmp_path):
        tensors = weights(ADA)
        tensors["G_ema"] = {k: v for k, v in tensors["G_ema"].items() if ".noise_" not in k}
        checkpoint = read_checkpoint(write_case(tmp_path / "f", ADA, tensors))
        assert not checkpoint.generator["conv1.noise.weight"].any()
        assert any("without noise" in note for note in checkpoint.notes)

    @pytest.mark.parametrize(
        ("attributes", "words"),
        [
            ({"c_dim": 10}, "conditional (10 label values)"),
            ({"mapping.fc0.activation": "relu"}, "activation 'relu'"),
            ({"synthesis.b8.architecture": "resnet"}, "'resnet' architecture"),
            ({"synthesis.b8.conv1.conv_clamp": 3.0}, "conv_clamp differs"),
        ],
    )
    def test_other_generators_are_refused(self, attributes, words, tmp_path):
        def edit(trees):
            for path, value in attributes.items():
                *parents, leaf = path.split(".")
                module = trees["G_ema"]
                for part in parents:
                    module = module.state["_modules"][part]
                module.state[leaf] = value

        assert words in refusal(self.write(tmp_path / "f", edit))

    def test_other_filter_is_refused(self, tmp_path):
        def edit(trees):
            block = trees["G_ema"].state["_modules"]["synthesis"].state["_modules"]["b8"]
            block.state["_buffers"]["resample_filter"] = torch.ones(6, 6)

        assert "resampling filter" in refusal(self.write(tmp_path / "f", edit))

    def test_stylegan3_is_refused(self, tmp_path):
        tensors = weights(ADA)
        tensors["G_ema"] = {"synthesis.input.freqs": torch.ones(4, 2), "mapping.w_avg": torch.ones(12)}
        assert "StyleGAN3" in refusal(write_case(tmp_path / "f", ADA, tensors))

    def test_missing_tensors_are_named(self, tmp_path):
        tensors = weights(ADA)
        for name in ("synthesis.b8.conv0.affine.bias", "synthesis.b16.conv1.noise_strength"):
            del tensors["G_ema"][name]
        message = refusal(write_case(tmp_path / "f", ADA, tensors))
        assert "synthesis.b8.conv0.affine.bias, synthesis.b16.conv1.noise_strength" in message

    def test_discriminator_with_other_clamp_is_left_out(self, tmp_path):
        def edit(trees):
            trees["D"] = module_tree(dataclasses.replace(ADA, clamp=2.0), "D", weights(ADA)["D"])

        checkpoint = read_checkpoint(self.write(tmp_path / "f", edit))
        assert checkpoint.discriminator is None
        assert "discriminator left out: D clamps at 2.0, the generator at None" in checkpoint.notes


class TestNvidiaTensorFlow:
    def write(self, path, **settings):
        case, drawn = CASES["tf"], weights(CASES["tf"])
        import pickle

        with tensorflow_classes() as network:
            states = [
                tf_state(case, name, drawn[name], **({} if name == "D" else settings))
                for name in ("G", "D", "G_ema")
            ]
            path.write_bytes(pickle.dumps(tuple(map(network, states)), protocol=4))
        return path

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"label_size": 10}, "conditional (10 label values)"),
            ({"architecture": "resnet"}, "architecture='resnet'"),
            ({"mapping_nonlinearity": "relu"}, "mapping_nonlinearity='relu'"),
            ({"resample_kernel": [1, 2, 1]}, "resampling filter"),
            ({"resample_kernel": None}, "resampling filter"),
            ({"spectral_norm": True}, "unknown effect: spectral_norm=True"),
        ],
    )
    def test_other_generators_are_refused(self, settings, words, tmp_path):
        assert words in refusal(self.write(tmp_path / "f", **settings))

    def test_missing_variables_are_named(self, tmp_path):
        tensors = weights(CASES["tf"])
        del tensors["G_ema"]["synthesis/8x8/Conv0_up/mod_bias"]
        message = refusal(write_case(tmp_path / "f", CASES["tf"], tensors))
        assert "Gs lacks synthesis/8x8/Conv0_up/mod_bias" in message

    def test_protocol_5_arrays(self, tmp_path):
        import pickle

        case, drawn = CASES["tf"], weights(CASES["tf"])
        with tensorflow_classes() as network:
            nets = tuple(network(tf_state(case, name, drawn[name])) for name in ("G", "D", "G_ema"))
            (tmp_path / "f").write_bytes(pickle.dumps(nets, protocol=5))
        assert read_checkpoint(tmp_path / "f").discriminator is not None


def test_filter_is_recognised_at_any_gain():
    assert taps_of_kernel(fir_kernel((1, 3, 3, 1), gain=4.0)) == (1.0, 3.0, 3.0, 1.0)
    assert taps_of_kernel(torch.tensor([1.0, 1.0, 1.0, 1.0])) == (2.0, 2.0, 2.0, 2.0)
    for wrong in (torch.ones(2), torch.tensor([1.0, 2.0, 3.0, 1.0]), torch.eye(4)):
        with pytest.raises(NotConvertible):
            taps_of_kernel(wrong)


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["convert-checkpoint", *map(str, arguments)])

    def test_converts_and_reports(self, tmp_path):
        path = write_case(tmp_path / "net.pkl", ADA)
        result = self.run(path, "--out", tmp_path / "model", "--json")
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record["settings"]["resolution"] == 16
        assert record["round_trip"] is True
        assert "self-check" in result.stderr
        back = self.run(tmp_path / "model", "--to", "rosinality", "--out", tmp_path / "net.pt")
        assert back.exit_code == 0, back.output
        assert back.stdout.strip() == str(tmp_path / "net.pt")

    def test_refusal_writes_nothing(self, tmp_path):
        (tmp_path / "bad.pkl").write_bytes(b"\x80\x03cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
        result = self.run(tmp_path / "bad.pkl", "--out", tmp_path / "model")
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert "posix.system" in result.stderr
        assert not (tmp_path / "model").exists()

    def test_existing_model_stays_unless_told(self, tiny_folder, tmp_path):
        before = (tiny_folder / "model.safetensors").read_bytes()
        tensors = weights(CASES["rosinality"])["G_ema"]
        torch.save({"g_ema": tensors}, tmp_path / "f.pt")
        assert self.run(tmp_path / "f.pt", "--out", tiny_folder).exit_code == 2
        assert (tiny_folder / "model.safetensors").read_bytes() == before
        assert self.run(tmp_path / "f.pt", "--out", tiny_folder, "--overwrite").exit_code == 0
        assert not (tiny_folder / "discriminator.safetensors").exists()

    def test_failed_overwrite_keeps_the_old_discriminator(self, tiny_folder, tmp_path, monkeypatch):
        def full(*_, **__):
            raise FileError("model.safetensors", "not written (No space left on device)")

        path = write_case(tmp_path / "net.pkl", ADA)
        monkeypatch.setattr("wrangan_cli.engine.checkpoints.convert.save_model", full)
        assert self.run(path, "--out", tiny_folder, "--overwrite").exit_code == 1
        assert (tiny_folder / "discriminator.safetensors").exists()

    def test_unknown_perceptual_distance(self, tmp_path):
        path = write_case(tmp_path / "net.pkl", ADA)
        assert self.run(path, "--out", tmp_path / "m", "--perceptual", "nonsense").exit_code == 2
        assert not (tmp_path / "m").exists()

    def test_export_of_an_existing_file(self, tiny_folder, tmp_path):
        (tmp_path / "out.pt").write_text("mine")
        with pytest.raises(UsageError):
            export_rosinality(load_model(str(tiny_folder)), tmp_path / "out.pt")
        assert (tmp_path / "out.pt").read_text() == "mine"


def test_generator_that_draws_no_numbers_is_refused(tmp_path):
    tensors = weights(ADA)
    tensors["G_ema"]["synthesis.b16.torgb.weight"].fill_(3e38)
    path = write_case(tmp_path / "f.pkl", ADA, tensors)
    with pytest.raises(FileError, match="not finite"):
        convert_to_model(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_unusual_images_are_remarked(tmp_path):
    tensors = weights(ADA)
    for name, tensor in tensors["G_ema"].items():
        if ".torgb.bias" in name:
            tensor += 5
    report = convert_to_model(write_case(tmp_path / "f", ADA, tensors), tmp_path / "model")
    assert any("unusual" in note for note in report.notes)
    assert np.isfinite(report.image_mean)


def test_rgb_only(tmp_path):
    tensors = weights(ADA)
    for size in (4, 8, 16):
        for part in ("weight", "bias"):
            name = f"synthesis.b{size}.torgb.{part}"
            tensors["G_ema"][name] = tensors["G_ema"][name][:1]
    assert "1 channels, not RGB" in refusal(write_case(tmp_path / "f", ADA, tensors))
    assert Case("ada").channels == {4: 8, 8: 8, 16: 4}
