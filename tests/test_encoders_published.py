"""Published encoder files: the same outputs as by the published networks, written down by the fixture."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import TINY, random_generator_network
from tests.fixtures.published_encoders import (
    encoder_state,
    hypernet_state,
    published_codes,
    published_offsets,
    write_published,
)
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.checkpoints.convert import convert_to_model
from wrangan_cli.engine.checkpoints.encoder_names import styled_conv_name
from wrangan_cli.engine.checkpoints.encoders import install_published
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.encoders import (
    layer_shapes,
    load_encoder,
    load_hypernet,
    load_style_encoder,
    weight_offsets,
)
from wrangan_cli.engine.models.folder import Model

LATENTS, STYLE = TINY.num_latents, TINY.style_dim
MEAN = torch.linspace(-1, 1, STYLE)
runner = CliRunner()


def photographs(count: int = 2, seed: int = 3) -> Tensor:
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def file_of(path: Path, network: str, channels: int = 3, **more: Any) -> tuple[Path, dict[str, Tensor]]:
    state = encoder_state(network, LATENTS, STYLE, channels)
    rows = MEAN.expand(LATENTS, -1).clone()
    given = {"generator": random_generator_network(), "latent_avg": rows, **more}
    return write_published(path, "encoder", state, network, **given), state


@pytest.mark.parametrize(
    ("network", "deltas"),
    [("Encoder4Editing", True), ("GradualStyleEncoder", False)],
)
def test_e4e_and_psp(network: str, deltas: bool, tiny_model: Model, tmp_path: Path) -> None:
    path, state = file_of(tmp_path / "e4e.pt", network, options=lambda given: argparse.Namespace(**given))
    report = install_published(path, tiny_model)
    assert (report.kind, report.round_trip, report.notes) == ("e4e", True, [])
    encoder, images = load_style_encoder(tiny_model, "e4e"), photographs()
    assert (encoder.config.deltas, encoder.config.heads) == (deltas, "pyramid")
    assert (encoder.config.input_side, encoder.config.passes) == (256, 1)
    expected = published_codes(state, network, images)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(encoder(images), expected + MEAN, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(
    ("network", "deltas"),
    [
        ("BackboneEncoder", False),
        ("ProgressiveBackboneEncoder", True),
        ("ResNetBackboneEncoder", False),
        ("ResNetProgressiveBackboneEncoder", True),
        ("ResNetGradualStyleEncoder", False),
    ],
)
def test_restyle(network: str, deltas: bool, asked: bool, tiny_model: Model, tmp_path: Path) -> None:
    """ReStyle's classes add the mean of w whatever `start_from_latent_avg` says."""
    more = {"n_iters_per_batch": 4, "start_from_latent_avg": asked}
    path, state = file_of(tmp_path / "restyle.pt", network, channels=6, **more)
    report = install_published(path, tiny_model)
    assert (report.kind, report.round_trip) == ("restyle", True)
    encoder, images, shown = load_style_encoder(tiny_model, "restyle"), photographs(), photographs(seed=4)
    assert (encoder.config.deltas, encoder.config.passes) == (deltas, 4)
    expected = published_codes(state, network, torch.cat([images, shown], dim=1))
    torch.testing.assert_close(encoder(images, shown), expected + MEAN, atol=1e-4, rtol=1e-4)
    before = torch.randn(2, LATENTS, STYLE)
    torch.testing.assert_close(encoder(images, shown, before), expected + before, atol=1e-4, rtol=1e-4)


def test_restyle_starts_where_its_file_says(tiny_model: Model, tmp_path: Path) -> None:
    """The average image, and the codes of all passes, as in the authors' inference: by the file's mean of w,
    which is another than that measured here. Half of the photographs are smaller than what is drawn."""
    state = encoder_state("BackboneEncoder", LATENTS, STYLE, 6)
    path, _ = file_of(tmp_path / "restyle.pt", "BackboneEncoder", channels=6, n_iters_per_batch=2)
    install_published(path, tiny_model)
    for side in (TINY.resolution, TINY.resolution // 2):
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5)) - 0.5
        inverter = Inverter.load(tiny_model, inversion_settings(method="restyle", perceptual_weight=0))
        codes = [code.w for code in inverter.invert(images) if isinstance(code, Code)]
        w = MEAN.expand(2, LATENTS, -1)
        for _ in range(2):
            shown = tiny_model.generator.synthesis(w)
            seen = [F.interpolate(x, size=256, mode="bilinear") for x in (images, shown)]
            w = w + published_codes(state, "BackboneEncoder", torch.cat(seen, dim=1))
        torch.testing.assert_close(torch.stack(codes), w, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("network", "asked", "added"),
    [("WEncoder", True, 1), ("WEncoder", False, 1), ("SingleStyleCodeEncoder", False, 0)],
)
def test_the_encoder_into_w(network: str, asked: bool, added: int, tiny_model: Model, tmp_path: Path) -> None:
    """HyperStyle's adds the mean of w whatever the file says; e4e's if the file says so."""
    path, state = file_of(tmp_path / "w.pt", network, start_from_latent_avg=asked)
    assert install_published(path, tiny_model).kind == "w"
    expected = published_codes(state, "WEncoder", photographs()) + added * MEAN
    torch.testing.assert_close(load_encoder(tiny_model)(photographs()), expected, atol=1e-4, rtol=1e-4)


INDEX = {"conv1": 0, "convs.0": 2, "convs.1": 3, "convs.2": 5, "convs.3": 6}
"""Of the tiny model's layers in HyperStyle's count, where toRGB layers have 1, 4 and 7."""


def test_indices_of_layers() -> None:
    names = [styled_conv_name(index) for index in range(26)]
    assert [index for index, name in enumerate(names) if name is None] == [1, 4, 7, 10, 13, 16, 19, 22, 25]
    assert [name for name in names if name] == ["conv1", *(f"convs.{i}" for i in range(16))]


@pytest.mark.parametrize("separable", [True, False])
def test_hyperstyle(separable: bool, tiny_model: Model, tmp_path: Path) -> None:
    shapes = layer_shapes(tiny_model.generator)
    layers = {INDEX[name]: shape for name, shape in shapes.items()}
    network = "SharedWeightsHyperNetResNet" + ("Separable" if separable else "")
    state = hypernet_state(layers, TINY.channels[4], separable)
    generator = random_generator_network()
    path = write_published(tmp_path / "h.pt", "hypernet", state, network, generator, n_iters_per_batch=2)
    report = install_published(path, tiny_model)
    assert (report.kind, report.round_trip) == ("hyperstyle", True)
    assert "needs the encoder into W" in report.notes[0]
    hypernet, images, shown = load_hypernet(tiny_model), photographs(), photographs(seed=4)
    assert (hypernet.config.passes, hypernet.config.shared_width) == (2, 16)
    expected = published_offsets(state, layers, TINY.channels[4], torch.cat([images, shown], dim=1))
    made = hypernet(images, shown)
    assert set(made) == set(shapes)
    for name, offset in made.items():
        given = expected[INDEX[name]]
        assert float(given.std()) > 1e-3
        torch.testing.assert_close(offset.expand_as(given), given, atol=1e-4, rtol=1e-4)
    # What the authors' generator does with it: weight · (1 + Δ).
    drawn = tiny_model.generator.synthesis(
        MEAN.expand(2, -1), delta=weight_offsets(tiny_model.generator, made)
    )
    again = random_generator_network()
    for row in range(2):
        with torch.no_grad():
            for name, layer in again.styled_convs().items():
                start = tiny_model.generator.styled_convs()[name].conv.weight
                layer.conv.weight.copy_(start * (1 + expected[INDEX[name]][row]))
            image = again.synthesis(MEAN[None])
        torch.testing.assert_close(drawn[row], image[0], atol=1e-4, rtol=1e-4)


def test_hyperstyle_starts_where_its_file_says(tiny_model: Model, tmp_path: Path) -> None:
    """Its class adds its own file's mean of w to what the encoder gives, not that of the encoder's file."""
    path, state = file_of(tmp_path / "w.pt", "WEncoder")
    install_published(path, tiny_model)
    shapes = layer_shapes(tiny_model.generator)
    layers = {INDEX[name]: shape for name, shape in shapes.items()}
    of_hypernet = hypernet_state(layers, TINY.channels[4], separable=True)
    own = MEAN.flip(0).expand(LATENTS, -1).clone()
    network, generator = "SharedWeightsHyperNetResNetSeparable", random_generator_network()
    write_published(tmp_path / "h.pt", "hypernet", of_hypernet, network, generator, latent_avg=own)
    assert install_published(tmp_path / "h.pt", tiny_model).round_trip
    inverter = Inverter.load(tiny_model, inversion_settings(method="hyperstyle", perceptual_weight=0))
    images = photographs()
    small = F.interpolate(images, size=TINY.resolution, mode="area")
    codes = [code for code in inverter.invert(small) if isinstance(code, Code)]
    large = F.interpolate(small, size=256, mode="bilinear")
    expected = published_codes(state, "WEncoder", large) + MEAN.flip(0)
    torch.testing.assert_close(torch.stack([code.w for code in codes]), expected, atol=1e-4, rtol=1e-4)
    # The encoder by itself keeps its own.
    alone = expected - MEAN.flip(0) + MEAN
    torch.testing.assert_close(load_encoder(tiny_model)(small), alone, atol=1e-4, rtol=1e-4)


def test_of_another_generator(tiny_model: Model, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path / "e.pt", "Encoder4Editing", generator=random_generator_network(seed=9))
    assert "its generator differs from tiny" in install_published(path, tiny_model).notes[0]
    path, _ = file_of(tmp_path / "e.pt", "Encoder4Editing", generator=None)
    (note,) = install_published(path, tiny_model, overwrite=True).notes
    assert "cannot be checked" in note
    path, _ = file_of(tmp_path / "e.pt", "Encoder4Editing", latent_avg=None)
    (note,) = install_published(path, tiny_model, overwrite=True).notes
    assert "no mean of w" in note
    torch.testing.assert_close(load_style_encoder(tiny_model, "e4e").w_mean, tiny_model.w_mean)
    path, _ = file_of(tmp_path / "e.pt", "Encoder4Editing", start_from_latent_avg=False)
    install_published(path, tiny_model, overwrite=True)
    assert not load_style_encoder(tiny_model, "e4e").w_mean.any()
    with pytest.raises(UsageError, match="exists already"):
        install_published(path, tiny_model)


@pytest.mark.parametrize("network", ["Encoder4Editing", "BackboneEncoder", "WEncoder"])
def test_the_generator_inside_makes_the_model(network: str, tmp_path: Path) -> None:
    """Generator, mean of w and encoder in one go, as one finds them where they were made one by one."""
    channels = 6 if network == "BackboneEncoder" else 3
    path, state = file_of(tmp_path / "both.pt", network, channels)
    report = convert_to_model(path, tmp_path / "m", perceptual="st-lpips-alex")
    model, given = load_model(str(tmp_path / "m")), random_generator_network()
    assert report.round_trip
    assert report.encoder is not None
    assert report.encoder.notes == []  # the generator is that of the file
    assert torch.equal(model.w_mean, MEAN)
    z = torch.randn(2, STYLE)
    torch.testing.assert_close(model.generator.synthesis(z), given.synthesis(z))
    torch.testing.assert_close(model.generator.mapping(z), given.mapping(z))
    images = photographs()
    kind = report.encoder.kind
    encoder = load_encoder(model) if kind == "w" else load_style_encoder(model, kind)
    shown = [images] if channels == 6 else []
    expected = published_codes(state, network, torch.cat([images, *shown], dim=1)) + MEAN
    torch.testing.assert_close(encoder(images, *shown), expected, atol=1e-4, rtol=1e-4)


def test_cars_are_refused_by_name(tiny_model: Model, tmp_path: Path) -> None:
    """Of 4:3; their generator, which is in no other file, makes a model all the same."""
    for kind in ("cars_encode", "cars_hypernet"):
        path, _ = file_of(tmp_path / "cars.pt", "Encoder4Editing", dataset_type=kind)
        with pytest.raises(FileError, match=rf"cars\.pt: its dataset_type is '{kind}': it sees cars at 192"):
            install_published(path, tiny_model)
    report = convert_to_model(path, tmp_path / "m")
    assert report.encoder is None
    assert any("its encoder is left out: its dataset_type is" in note for note in report.notes)
    assert load_model(str(tmp_path / "m")).resolution == TINY.resolution
    assert not (tmp_path / "m" / "encoder-e4e.safetensors").exists()
    path, _ = file_of(tmp_path / "church.pt", "Encoder4Editing", dataset_type="church_encode")
    assert install_published(path, tiny_model).kind == "e4e"


def test_what_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path / "e.pt", "Encoder4Editing")
    contents = torch.load(path, weights_only=True)

    def refusal(**changes: Any) -> str:
        torch.save({**contents, **changes}, path)
        with pytest.raises(FileError) as caught:
            install_published(path, tiny_model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = contents["state_dict"]
    assert "encoder_type is 'Novel'" in refusal(opts={"encoder_type": "Novel"})
    assert "lacks opts" in refusal(opts=None)
    assert "holds no trained encoder (encoder, hypernet); the file has state_dict" in refusal(state_dict={})
    less = {k: v for k, v in whole.items() if k != "encoder.latlayer2.bias"}
    assert "lacks latlayer2.bias" in refusal(state_dict=less)
    assert "has tensors that" in refusal(state_dict={**whole, "encoder.novel": torch.zeros(2)})
    broken = {**whole, "encoder.styles.1.linear.bias": torch.full((STYLE,), torch.nan)}
    assert "not finite" in refusal(state_dict=broken)
    fewer = {k: v for k, v in whole.items() if not k.startswith(f"encoder.styles.{LATENTS - 1}.")}
    assert f"predicts {LATENTS - 1} latents, tiny needs {LATENTS}" in refusal(state_dict=fewer)
    wide = {**whole, "decoder.convs.0.conv.weight": torch.zeros(1, 2, 2, 3, 3)}
    assert "its generator has other sizes than tiny: convs.0.conv.weight" in refusal(state_dict=wide)
    assert not (tiny_model.path / "encoder-e4e.safetensors").exists()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(FileError, match="truncated"):
        install_published(path, tiny_model)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch hostile-was-here",)


def test_nothing_in_the_file_is_executed(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}, "opts": Hostile()}, tmp_path / "e.pt")
    with pytest.raises(FileError, match=r"refused: the file asks for posix\.system"):
        install_published(tmp_path / "e.pt", tiny_model)
    assert not (tmp_path / "hostile-was-here").exists()


def test_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    path, _ = file_of(tmp_path / "e4e.pt", "Encoder4Editing")
    base = ["convert-checkpoint", str(path), "--model", str(tiny_folder)]
    result = runner.invoke(app, [*base, "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["path"] == str(tiny_folder / "encoder-e4e.safetensors")
    assert (record["kind"], record["network"], record["round_trip"]) == ("e4e", "Encoder4Editing", True)
    assert "Encoder4Editing as e4e" in result.stderr
    for arguments, message in (
        (base, "exists already"),
        (["convert-checkpoint", str(path)], "either --out, or --model"),
        ([*base, "--out", str(tmp_path / "m")], "either --out, or --model"),
        ([*base, "--weights", "raw"], "apply to generators"),
    ):
        result = runner.invoke(app, arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
    result = runner.invoke(app, ["convert-checkpoint", str(tmp_path / "no.pt"), "--model", str(tiny_folder)])
    assert result.exit_code == 1
    assert "no.pt: no such file" in result.stderr
    (tmp_path / "text.pt").write_text("hello")
    for source, cause in ((tmp_path / "text.pt", "text, not a checkpoint"), (tmp_path, "a folder, not a")):
        result = runner.invoke(app, ["convert-checkpoint", str(source), "--model", str(tiny_folder)])
        assert result.exit_code == 1
        assert f"{source}: {cause}" in result.stderr
    whole = ["convert-checkpoint", str(path), "--out", str(tmp_path / "m")]
    result = runner.invoke(app, [*whole, "--json"])
    assert result.exit_code == 0, result.stderr
    written = [json.loads(line) for line in result.stdout.splitlines()]
    names = [str(tmp_path / "m"), str(tmp_path / "m" / "encoder-e4e.safetensors")]
    assert [record["path"] for record in written] == names
    assert "Encoder4Editing as e4e" in result.stderr
    result = runner.invoke(app, [*whole, "--weights", "raw", "--overwrite"])
    assert result.exit_code == 1
    assert "lacks a generator as trained (g, G); it has only state_dict.decoder" in result.stderr
    path, _ = file_of(tmp_path / "alone.pt", "Encoder4Editing", generator=None)
    result = runner.invoke(app, ["convert-checkpoint", str(path), "--out", str(tmp_path / "n")])
    assert result.exit_code == 1
    assert "holds no StyleGAN2 generator" in result.stderr
    assert "converted with --model" in result.stderr
