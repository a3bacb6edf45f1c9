"""Every architecture with what the suite does to a generator: inversion, trainings, commands."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from tests.architectures import a_model, every, network
from tests.conftest import write_photo
from tests.fakes import codes_of, fake_perceptual, images_of, make_inverter
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models import projected
from wrangan_cli.engine.models.codes import Code, load_code, save_code
from wrangan_cli.engine.models.encoders import Hypernet, HypernetConfig, layer_shapes, weight_offsets
from wrangan_cli.engine.models.folder import DISCRIMINATOR, load_discriminator, save_model
from wrangan_cli.engine.models.generator import GeneratorConfig
from wrangan_cli.engine.models.randomized import randomize
from wrangan_cli.engine.models.rendering import active_noise
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.memory import adversarial_memory
from wrangan_cli.engine.training.sensitivity import randomize_by_sensitivity
from wrangan_cli.engine.training.settings import RandomizeSettings, SensitivitySettings


def loss(code: Code, when: str) -> float:
    """2·L2 + perceptual distance of an inverted code, `before` or `after`."""
    found = code.info["distortion"][when]
    return 2 * found["mse"] + found["fake (loss)"]


class Pools(nn.Module):
    """Stands in for the classifier of the projected discriminator: means over squares."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, stride) for stride in projected.STRIDES]


@every
@pytest.mark.parametrize("method", ["wrangan", "weight-tuning", "sg2-w", "pti"])
def test_methods(config: GeneratorConfig, method: str, tmp_path: Path) -> None:
    """Each finds a code that is better than where it starts, and that can be stored."""
    model = a_model(config, tmp_path)
    own = {"pti": {"pti_locality": 0.1, "pti_steps": 10, "pti_lr": 1e-2}, "sg2-w": {"w_noise": 0.0}}
    options = own.get(method, {})
    inverter = make_inverter(model, method=method, steps=10, lr=1e-2, **options)
    for number, code in enumerate(codes_of(inverter.invert(images_of(2)))):
        assert loss(code, "after") < loss(code, "before")
        save_code(tmp_path / f"{number}.st", code)
        load_code(tmp_path / f"{number}.st", model)


@every
def test_a_metric_of_the_curvature(config: GeneratorConfig, tmp_path: Path) -> None:
    inverter = make_inverter(a_model(config, tmp_path), optimizer="lbfgs", steps=3)
    for code in codes_of(inverter.invert(images_of(2))):
        assert loss(code, "after") < loss(code, "before")


@every
@pytest.mark.parametrize("tie", ["weight", "filter", "layer", "all"])
def test_std_by_sensitivity(config: GeneratorConfig, tie: str) -> None:
    settings = SensitivitySettings(probes=8, tie=tie)
    random = randomize_by_sensitivity(
        network(config), fake_perceptual(), config.randomized_layers, settings, batch=4
    )
    for weight in random.random_weights().values():
        assert weight.std is not None
        assert (weight.std > 0).all()


@every
def test_discriminator_or_one_clear_line(config: GeneratorConfig, tmp_path: Path) -> None:
    settings = RandomizeSettings(batch=4, images=4)
    with pytest.raises(UsageError, match="use --discriminator projected"):
        AdversarialTrainer(network(config), None, settings)
    if config.architecture != "stylegan2":
        with pytest.raises(UsageError, match=f"{config.architecture} has no .*--discriminator projected"):
            load_discriminator(tmp_path, config)
        return
    judge = config.discriminator()
    assert judge(torch.zeros(4, config.image_channels, config.resolution, config.resolution)).shape == (4, 1)
    folder = save_model(tmp_path / "m", network(config), judge)
    assert (folder / DISCRIMINATOR).is_file()
    load_discriminator(folder, config)


@every
def test_training_against_the_projected_discriminator_alone(
    config: GeneratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an architecture without a discriminator: steps, memory, and a snapshot to go on from."""
    monkeypatch.setattr(projected, "load_features", lambda: (Pools(), [3] * 4))
    settings = RandomizeSettings(
        batch=4, discriminator="projected", projected_side=64, path_length_interval=1, noise=False
    )
    trainer = AdversarialTrainer(network(config).requires_grad_(True), None, settings)
    before = {name: weight.mean.clone() for name, weight in trainer.generator.random_weights().items()}
    for _ in range(2):
        report = trainer.step(images_of(4, config.resolution))
    assert {"loss/projected_generator", "loss/path_length"} <= set(report)
    assert adversarial_memory(trainer).total > 0
    assert not active_noise(trainer.ema)
    for name, weight in trainer.generator.random_weights().items():
        assert not torch.equal(weight.mean, before[name])
    again = AdversarialTrainer(network(config, seed=1).requires_grad_(True), None, settings)
    again.restore(copy.deepcopy(trainer.state()))
    assert again.step(images_of(4, config.resolution)) == trainer.step(images_of(4, config.resolution))
    other = dataclasses.replace(config, randomized_layers=1)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="network differs"):
        AdversarialTrainer(network(other), None, settings).restore(trainer.state())


@every
def test_commands(config: GeneratorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a model without σ to codes and the metrics of layers, by the command line."""
    for module in ("models.perceptual", "inversion.inverter"):
        monkeypatch.setattr(f"wrangan_cli.engine.{module}.load_perceptual", lambda *_: fake_perceptual())
    generator = randomize(network(config), 0)
    folder = save_model(tmp_path / "plain", generator, perceptual="st-lpips-alex")
    write_photo(tmp_path / "photos" / "a.png")
    weight = list(generator.weights())[-1]
    run, codes = tmp_path / "run", tmp_path / "codes"
    model = ["--model", run / "model", "--device", "cpu"]
    from_images = ["--from", "sensitivity", "--probes", "4", "--layers", weight]
    invert = ["--steps", "2", "--init", "mean", "--optimizer", "adam"]
    metrics = ["--metric", "std-share", "--metric", "layer-influence", "--samples", "2", "--json"]
    for arguments in (
        ["train", "randomize", "--model", folder, *from_images, "--device", "cpu", "--out", run],
        ["invert", tmp_path / "photos", "--out", codes, *invert, *model],
        ["evaluate", *metrics, *model],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (arguments, result.stderr, result.exception)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["metric"], row["layer"]) for row in rows] == [
        ("std-share", weight),
        ("layer-influence", weight),
        ("layer-influence", "all"),
    ]
    code = load_code(codes / "a.st", load_model(str(run / "model")))
    assert list(code.epsilon) == [weight]


@every
def test_offsets_of_a_hypernetwork_change_every_weight(config: GeneratorConfig) -> None:
    generator = network(config)
    sizes = {"widths": (8, 8, 8), "blocks": (1, 1, 1), "input_side": 16, "features": 8, "inner": 4}
    hypernet = Hypernet(HypernetConfig(layer_shapes(generator), shared_width=16, shared_inner=4, **sizes))
    for parameter in hypernet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    images = images_of(2)
    with torch.no_grad():
        offsets = hypernet(images, images.flip(3))
        w = torch.randn(2, config.style_dim)
        drawn = generator.synthesis(w, delta=weight_offsets(generator, offsets))
        plain = generator.synthesis(w)
        for row in range(2):
            changed = copy.deepcopy(generator)
            for name, weight in changed.weights().items():
                factors = 1 + offsets[name][row]
                assert factors.shape == (*weight.shape[:2], 1, 1)
                weight.mean.mul_(factors)
            own = changed.synthesis(w[row : row + 1])[0]
            torch.testing.assert_close(drawn[row], own, atol=1e-4, rtol=1e-3)
            assert (own - plain[row]).abs().max() > 1e-3
