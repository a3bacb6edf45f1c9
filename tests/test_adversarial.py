"""Adversarial training: exact resume, what moves, the average, refusal of bad settings."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.data.image_sets import ImageSet, batches
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.run import Report, train
from wrangan_cli.engine.training.settings import AdversarialSettings, GeneratorSettings, RandomizeSettings
from wrangan_cli.engine.training.snapshots import list_snapshots, save_snapshot

PLAIN = dataclasses.replace(TINY, randomized_layers=0)
BRISK = {"batch": 4, "r1_interval": 3, "path_length_interval": 2, "snapshot_images": 8, "ema_images": 20}


def stream(trainer):
    """Batches of `data()` in the order of the trainer's settings."""
    settings = trainer.settings
    return lambda start: batches(data(), settings.batch, settings.seed, start, settings.flip)


def data() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    return ImageSet(pixels, [f"{i}.png" for i in range(11)], [])


def trainer_for(settings: AdversarialSettings, seed: int = 0) -> AdversarialTrainer:
    torch.manual_seed(seed)
    config = TINY if isinstance(settings, RandomizeSettings) else PLAIN
    return AdversarialTrainer(StyleGAN2Generator(config), Discriminator(config), settings)


def run_to(
    settings: AdversarialSettings, folder: Path, seed: int = 0, on_step: Callable[..., None] | None = None
) -> tuple[AdversarialTrainer, list[Report]]:
    trainer, reports = trainer_for(settings, seed), []

    def note(running: AdversarialTrainer, report: Report) -> None:
        reports.append({k: v for k, v in report.items() if k not in ("images_per_second", "seconds/data")})
        if on_step:
            on_step(running)

    train(trainer, stream(trainer), folder, note, lambda _: None, pytest.fail)
    return trainer, reports


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested state as one dictionary of leaves."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}").items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{prefix}.{i}").items()}
    return {prefix: value}


@pytest.mark.parametrize(
    "settings",
    [
        GeneratorSettings(images=40, **BRISK),
        GeneratorSettings(images=40, augment="ada", augment_target=-0.9, **BRISK),
        GeneratorSettings(images=40, augment="0.5", path_length_weight=0.0, **BRISK),
        RandomizeSettings(images=40, **BRISK),
        RandomizeSettings(images=40, epsilon_per="image", **BRISK),
    ],
    ids=["generator", "ada", "fixed-augment", "randomize", "epsilon-per-image"],
)
def test_resuming_is_exact(settings: AdversarialSettings, tmp_path: Path) -> None:
    whole, reports = run_to(settings, tmp_path / "whole")
    _, first = run_to(dataclasses.replace(settings, images=20), tmp_path / "parts")
    # Other weights and another state of the random numbers: both must come from the snapshot.
    resumed, second = run_to(settings, tmp_path / "parts", seed=99)
    assert len(reports) == 10
    assert reports == [*first, *second]
    one, two = flat(whole.state()), flat(resumed.state())
    assert set(one) == set(two)
    for name, value in one.items():
        same = torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name]
        assert same, name


def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    settings = GeneratorSettings(images=40, **BRISK)
    whole, _ = run_to(settings, tmp_path / "whole")

    def stop(trainer: AdversarialTrainer) -> None:
        if trainer.steps == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to(settings, tmp_path / "parts", on_step=stop)
    assert list_snapshots(tmp_path / "parts")[-1].name == "snapshot-0000000028.pt"
    resumed, _ = run_to(settings, tmp_path / "parts", seed=99)
    for one, two in zip(whole.ema.parameters(), resumed.ema.parameters(), strict=True):
        assert torch.equal(one, two)


def test_without_noise_the_strengths_are_zero_and_stay(tmp_path: Path) -> None:
    run_to(GeneratorSettings(images=16, **BRISK), tmp_path)
    trainer, _ = run_to(GeneratorSettings(images=32, noise=False, **BRISK), tmp_path)
    for network in (trainer.generator, trainer.ema):
        assert all(layer.noise.weight.item() == 0 for layer in network.styled_convs().values())
    w = torch.randn(2, trainer.ema.config.style_dim)
    assert torch.equal(trainer.ema.synthesis(w), trainer.ema.synthesis(w, noise="none"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_saves_after_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GeneratorSettings(images=40, **BRISK)
    whole = AdversarialTrainer.generator_losses

    def signalled(self: AdversarialTrainer) -> Any:
        if self.steps == 2:
            signal.raise_signal(number)
        return whole(self)

    monkeypatch.setattr(AdversarialTrainer, "generator_losses", signalled)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_to(settings, tmp_path)
    assert list_snapshots(tmp_path)[-1].name == "snapshot-0000000012.pt"
    assert signal.getsignal(number) is before


def test_the_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    save_snapshot(tmp_path, 4, {"encoder": {}, "images": 4}, keep=1)
    with pytest.raises(UsageError, match="another kind of training"):
        run_to(GeneratorSettings(images=40, **BRISK), tmp_path)


def test_divergence_is_an_error_and_spoils_no_snapshot(tmp_path: Path) -> None:
    settings = GeneratorSettings(images=40, **BRISK)

    def spoil(trainer: AdversarialTrainer) -> None:
        if trainer.steps == 5:
            with torch.no_grad():
                trainer.generator.conv1.conv.weight.fill_(float("nan"))
                trainer.images += 0

    with pytest.raises(WranganError, match="diverged"):
        run_to(settings, tmp_path, on_step=spoil)
    # The last one was saved before the weights were spoiled.
    assert [p.name for p in list_snapshots(tmp_path)] == ["snapshot-0000000008.pt", "snapshot-0000000016.pt"]


def test_snapshots_and_calls_come_when_due(tmp_path: Path) -> None:
    trainer, steps, calls = trainer_for(GeneratorSettings(images=20, **BRISK)), [], []
    train(
        trainer,
        stream(trainer),
        tmp_path,
        lambda t, _r: steps.append(t.images),
        lambda t: calls.append(t.images),
        pytest.fail,
    )
    assert steps == [4, 8, 12, 16, 20]
    assert calls == [8, 16, 20]
    assert [p.name for p in list_snapshots(tmp_path)] == ["snapshot-0000000016.pt", "snapshot-0000000020.pt"]


def test_every_loss_comes_when_due(tmp_path: Path) -> None:
    _, reports = run_to(GeneratorSettings(images=24, **BRISK), tmp_path)
    assert [i for i, r in enumerate(reports) if "loss/r1" in r] == [0, 3]
    assert [i for i, r in enumerate(reports) if "loss/path_length" in r] == [0, 2, 4]
    assert all({"loss/generator", "loss/discriminator"} <= set(r) for r in reports)


@pytest.mark.parametrize("form", ["softplus", "log"])
def test_positive_std_is_trained_saved_and_resumed(form: str, tmp_path: Path) -> None:
    settings = RandomizeSettings(images=8, std_form=form, **BRISK)
    whole, _ = run_to(settings, tmp_path / "whole")
    run_to(dataclasses.replace(settings, images=4), tmp_path / "parts")
    parts, _ = run_to(settings, tmp_path / "parts", seed=2)
    for one, other in zip(whole.ema.parameters(), parts.ema.parameters(), strict=True):
        assert torch.equal(one, other)
    for conv in whole.generator.random_weights().values():
        assert (conv.std > 0).all()
        assert (conv.std != 1).float().mean() > 0.9
    with pytest.raises(UsageError, match=f"std_form raw: the run was started with {form}"):
        run_to(dataclasses.replace(settings, std_form="raw"), tmp_path / "parts")
    with pytest.raises(ValueError, match="std_form 'exp'"):
        RandomizeSettings(std_form="exp")


@pytest.mark.parametrize("epsilon_per", ["batch", "image"])
def test_mean_and_std_of_the_random_layers_are_trained(epsilon_per: str) -> None:
    trainer = trainer_for(RandomizeSettings(epsilon_per=epsilon_per, **BRISK))
    layers = trainer.generator.random_weights()
    assert len(layers) == 3
    before = {n: (c.mean.detach().clone(), c.std.detach().clone()) for n, c in layers.items()}
    for start in (0, 4):
        trainer.step(data().batch(range(start, start + 4)))
    for name, conv in layers.items():
        assert (conv.mean != before[name][0]).float().mean() > 0.9
        assert (conv.std != before[name][1]).float().mean() > 0.9
    averaged = trainer.ema.random_weights()
    assert all((averaged[n].std != before[n][1]).any() for n in layers)


def test_ada_raises_the_strength_while_d_overfits() -> None:
    settings = GeneratorSettings(augment="ada", augment_target=-1.5, **BRISK)
    trainer = trainer_for(settings)
    assert trainer.adaptive is not None
    trainer.adaptive.interval = 2
    reports = [trainer.step(data().batch(range(4))) for _ in range(4)]
    # 16 images above the target, adjusted every two batches of 4.
    assert trainer.adaptive.probability == pytest.approx(16 / 500_000)
    assert reports[-1]["augment/probability"] == trainer.adaptive.probability


def test_the_average_has_the_stated_half_life() -> None:
    settings = GeneratorSettings(**{**BRISK, "ema_images": 20, "ema_rampup": 0.0})
    trainer = trainer_for(settings)
    start = trainer.ema.conv1.conv.weight.clone()
    trainer.step(data().batch(range(4)))
    moved = trainer.generator.conv1.conv.weight.detach()
    decay = 0.5 ** (4 / 20)
    torch.testing.assert_close(trainer.ema.conv1.conv.weight, decay * start + (1 - decay) * moved)
    # With the ramp, after 4 images the half-life is 0.2 images: the average is the current state.
    ramped = trainer_for(dataclasses.replace(settings, ema_rampup=0.05))
    ramped.step(data().batch(range(4)))
    torch.testing.assert_close(
        ramped.ema.conv1.conv.weight, ramped.generator.conv1.conv.weight.detach(), atol=1e-5, rtol=1e-5
    )


def test_the_papers_training_is_rosinalitys_on_two_gpus() -> None:
    """200,000 steps; a batch of 8 on each GPU; the average decays by 0.5^(32 / 10,000) a step."""
    settings = RandomizeSettings()
    assert settings.batch == 2 * 8
    assert settings.images == 200_000 * settings.batch
    assert 0.5 ** (settings.batch / settings.ema_images) == pytest.approx(0.5 ** (32 / 10_000))


def test_adam_is_corrected_for_lazy_penalties() -> None:
    trainer = trainer_for(GeneratorSettings(lr=0.01, r1_interval=16, path_length_interval=4))
    for optimizer, ratio in ((trainer.optimizer_d, 16 / 17), (trainer.optimizer_g, 4 / 5)):
        group = optimizer.param_groups[0]
        assert group["lr"] == pytest.approx(0.01 * ratio)
        assert group["betas"] == pytest.approx((0.0, 0.99**ratio))
    plain = trainer_for(GeneratorSettings(lr=0.01, path_length_weight=0.0))
    assert plain.optimizer_g.param_groups[0]["lr"] == 0.01


def test_a_changed_learning_rate_counts_after_resuming(tmp_path: Path) -> None:
    settings = GeneratorSettings(images=8, path_length_weight=0.0, **BRISK)
    run_to(settings, tmp_path)
    resumed, _ = run_to(dataclasses.replace(settings, images=12, lr=0.0005), tmp_path)
    assert resumed.images == 12
    assert resumed.optimizer_g.param_groups[0]["lr"] == pytest.approx(0.0005)


def test_a_snapshot_of_another_network_is_refused(tmp_path: Path) -> None:
    run_to(GeneratorSettings(images=4, **BRISK), tmp_path)
    with pytest.raises(UsageError, match="differs"):
        run_to(RandomizeSettings(images=8, **BRISK), tmp_path)


@pytest.mark.parametrize("augment", ["adaptive", "1.5", "-0.1", "nan"])
def test_bad_augmentation_is_a_usage_error(augment: str) -> None:
    with pytest.raises(UsageError, match="augment"):
        trainer_for(GeneratorSettings(augment=augment))
