"""Encoders into W+ on EfficientNet-lite0: pooled heads, the start from an encoder into W, pairs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.fakes import fake_perceptual, images_of
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.encoders import (
    Encoder,
    EncoderConfig,
    StyleEncoder,
    StyleEncoderConfig,
    load_style_encoder,
    save_encoder,
)
from wrangan_cli.engine.models.encoders.blocks import EFFICIENTNET, PooledHeads
from wrangan_cli.engine.models.folder import Model, save_model
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import Pairs, render_pairs
from wrangan_cli.engine.models.perceptual import for_loss
from wrangan_cli.engine.training.encoder_kinds import encoder_trainer
from wrangan_cli.engine.training.pair_batches import PairBatches
from wrangan_cli.engine.training.settings import EncoderSettings
from wrangan_cli.engine.training.style_encoder import StyleEncoderTrainer

SMALL: dict[str, Any] = {
    "backbone": EFFICIENTNET,
    "pretrained": False,
    "batch": 2,
    "pair_batch": 4,
    "images": 20,
    "input_side": 32,
    "image_side": 16,
    "head_width": 6,
    "passes": 2,
    "progressive_start": 0,
    "progressive_every": 1,
    "latent_weight": 0,
}


def styles(**changes: Any) -> StyleEncoder:
    sizes: dict[str, Any] = {"widths": (), "blocks": (), "backbone": EFFICIENTNET, "heads": "pooled"}
    torch.manual_seed(1)
    config = StyleEncoderConfig(
        **{**sizes, "style_dim": 16, "num_latents": 6, "input_side": 32, "head_width": 5, **changes}
    )
    return StyleEncoder(config).eval().requires_grad_(False)


def into_w(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(16, (), (), 32, EFFICIENTNET)).eval().requires_grad_(False)
    encoder.w_mean.normal_()
    return encoder


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A MobileStyleGAN of 32 px, with an encoder into W."""
    torch.manual_seed(3)
    config = MobileStyleGANConfig({4: 16, 8: 16, 16: 8}, num_latents=6, style_dim=16, mapping_layers=2)
    folder = save_model(tmp_path / "tiny", MobileStyleGANGenerator(config), perceptual="st-lpips-alex")
    loaded = load_model(str(folder))
    save_encoder(folder, into_w(), loaded, {}, torch.float32)
    return loaded


@pytest.fixture
def pairs(model: Model, tmp_path: Path) -> Pairs:
    return render_pairs(model, tmp_path / "pairs", 10, side=32)


def trainer_of(model: Model, pairs: Pairs | None, start: Path | None = None, **changes: Any) -> Any:
    settings = EncoderSettings(**{"kind": "e4e", **SMALL, **changes})
    trainer = encoder_trainer(model, settings, fake_perceptual(), start, pairs)
    assert isinstance(trainer, StyleEncoderTrainer)
    return trainer


def test_latents_from_means_of_the_last_map() -> None:
    """The heads again, by their weights and plain functions."""
    encoder, images = styles(), images_of(2, 32)
    heads = encoder.heads
    assert isinstance(heads, PooledHeads)
    for offset in heads.offsets:
        torch.nn.init.normal_(offset.weight)
    means = F.interpolate(encoder.body(images), size=(4, 4), mode="nearest").flatten(1)  # of 1 px
    root = means.shape[1] ** 0.5
    first = means @ heads.first.weight.T / root + heads.first.bias
    hidden = F.leaky_relu(means @ heads.hidden.weight.T / root + heads.hidden.bias, 0.2)
    rows = [first, *(first + hidden @ offset.weight.T / 5**0.5 + offset.bias for offset in heads.offsets)]
    torch.testing.assert_close(encoder(images), torch.stack(rows, 1) + encoder.w_mean)
    two = encoder(images, stage=1)
    torch.testing.assert_close(two[:, :2], torch.stack(rows[:2], 1) + encoder.w_mean)
    assert torch.equal(two[:, 2:], two[:, :1].expand(-1, 4, -1))


@pytest.mark.parametrize("channels", [3, 6])
def test_begins_with_what_the_encoder_into_w_says(channels: int) -> None:
    encoder, begun = into_w(), styles(input_channels=channels)
    begun.init_from(encoder)
    images, shown = images_of(2, 32), images_of(2, 64).flip(3) if channels == 6 else None
    codes = begun(images, shown)
    torch.testing.assert_close(codes, encoder(images)[:, None].expand(-1, 6, -1))


def test_what_does_not_fit_is_said(model: Model, pairs: Pairs) -> None:
    for wrong, cause in (
        ({"heads": "pyramid"}, "expected pooled heads, not pyramid"),
        ({"deltas": False}, "predict offsets from one w"),
        ({"widths": (8, 8, 8), "blocks": (1, 1, 1)}, "has fixed widths"),
    ):
        with pytest.raises(ValueError, match=cause):
            styles(**wrong)
    with pytest.raises(ValueError, match="expected an encoder into W of efficientnet"):
        styles().init_from(Encoder(EncoderConfig(16, (8, 8), (1, 1), 16)))
    with pytest.raises(UsageError, match="uses pairs only with --w-weight"):
        trainer_of(model, pairs)
    start = model.companion("encoder.safetensors")
    with pytest.raises(UsageError, match="the encoder into W to start from: expected an encoder"):
        trainer_of(model, None, start, backbone="ir-se", widths="8,8,8", blocks="1,1,1")


def test_the_loss_is_its_formula(model: Model, pairs: Pairs) -> None:
    start = model.companion("encoder.safetensors")
    trainer = trainer_of(model, pairs, start, w_weight=0.7)
    assert torch.equal(trainer.encoder.w_mean, model.w_mean)
    trainer.encoder.eval()  # the statistics of so few images say little, and change
    for offset in trainer.encoder.heads.offsets:
        torch.nn.init.normal_(offset.weight)
    trainer.images = 2  # three deltas
    real = torch.rand(2, 3, 16, 16) * 1.6 - 0.8
    losses = trainer.losses(real, torch.empty(2, 16))
    w, known = PairBatches(pairs, 4, 32, 0, range(4)).next_batch(torch.device("cpu"))
    codes, of_pairs = trainer.encoder(real, stage=3), trainer.encoder(known, stage=3)
    drawn = model.generator.synthesis(codes).reshape(2, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    l2 = (drawn - real).pow(2).mean()
    distance = fake_perceptual()(for_loss(drawn), for_loss(real)).mean()
    delta = sum((codes[:, row] - codes[:, 0]).pow(2).sum(1).sqrt().mean() for row in (1, 2, 3))
    error = sum((of_pairs[:, row] - w).pow(2).sum(1).mean() for row in range(6)) / 6 / model.w_std**2
    total = l2 + 0.8 * distance + 2e-4 * delta + 0.7 * error
    expected = torch.stack([total, l2, distance, delta, torch.zeros(()), error])
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["e4e", "restyle"])
def test_learns_and_is_stored(kind: str, model: Model, tmp_path: Path) -> None:
    start = model.companion("encoder.safetensors")
    # As many pairs as a batch has, to be learnt by heart: their images say little about w, since those of a
    # network without training hardly depend on it, and the losses of other batches differ by a factor of two.
    pairs = render_pairs(model, tmp_path / "four", 4, side=32)
    trainer = trainer_of(model, pairs, start, kind=kind, w_weight=1, lr=5e-3, images=100)
    real = model.generator.synthesis(pairs.w[:2], side=16).clamp(-1, 1)
    losses = [trainer.step(real)["loss/w"] for _ in range(50)]
    assert sum(losses[-10:]) / 10 < 0.85 * losses[0]
    assert trainer.pairs.seen == 200
    twin = trainer_of(model, pairs, start, kind=kind, w_weight=1, images=100)
    twin.restore(trainer.state())
    assert twin.pairs.seen == 200
    save_encoder(model.path, trainer.ema, model, {}, torch.float32)
    stored = load_style_encoder(model, kind)
    assert stored.config == dataclasses.replace(trainer.ema.config)
    images, shown = images_of(2, 32), images_of(2, 32).flip(3) if kind == "restyle" else None
    assert torch.equal(stored(images, shown), trainer.ema(images, shown))
