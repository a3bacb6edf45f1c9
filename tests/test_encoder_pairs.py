"""Training of the encoder into W on pairs: batches, the loss by its formula, exact resume, the command."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import write_photo
from tests.fakes import fake_perceptual
from tests.test_resume import assert_same_state
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.encoders import read_encoder
from wrangan_cli.engine.models.folder import Model, sample_w, save_model
from wrangan_cli.engine.models.mobile_stylegan import MobileStyleGANConfig, MobileStyleGANGenerator
from wrangan_cli.engine.models.pairs import Pairs, render_pairs
from wrangan_cli.engine.models.perceptual import for_loss
from wrangan_cli.engine.training.encoder import EncoderTrainer
from wrangan_cli.engine.training.encoder_kinds import encoder_trainer
from wrangan_cli.engine.training.pair_batches import PairBatches, degraded
from wrangan_cli.engine.training.run import train
from wrangan_cli.engine.training.settings import EncoderSettings

SMALL: dict[str, Any] = {
    "batch": 2,
    "pair_batch": 4,
    "images": 20,
    "widths": "8,8",
    "blocks": "1,1",
    "input_side": 16,
    "image_side": 16,
    "ema_images": 20,
}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A MobileStyleGAN of 32 px."""
    torch.manual_seed(3)
    config = MobileStyleGANConfig({4: 16, 8: 16, 16: 8}, num_latents=6, style_dim=16, mapping_layers=2)
    folder = save_model(tmp_path / "tiny", MobileStyleGANGenerator(config), perceptual="st-lpips-alex")
    return load_model(str(folder))


@pytest.fixture
def pairs(model: Model, tmp_path: Path) -> Pairs:
    return render_pairs(model, tmp_path / "pairs", 10, side=32)


def trainer_of(model: Model, pairs: Pairs | None, **changes: Any) -> EncoderTrainer:
    settings = EncoderSettings(**{**SMALL, **changes})
    trainer = encoder_trainer(model, settings, fake_perceptual(), None, pairs)
    assert isinstance(trainer, EncoderTrainer)
    return trainer


def test_each_pair_once_an_epoch_whoever_reads_it(pairs: Pairs) -> None:
    whole = PairBatches(pairs, 5, 16, seed=1, rows=range(5))
    shares = [PairBatches(pairs, 5, 16, seed=1, rows=rows) for rows in ((0, 2, 4), (1, 3))]
    seen = []
    for _ in range(2):
        w, images = whole.next_batch(torch.device("cpu"))
        assert images.shape == (5, 3, 16, 16)
        seen += w.tolist()
        for share in shares:
            own_w, own = share.next_batch(torch.device("cpu"))
            assert torch.equal(own_w, w[share.rows])
            assert torch.equal(own, images[share.rows])
    assert sorted(seen) == sorted(pairs.w.tolist())
    # The next epoch has the same pairs, made worse in another way.
    later = [whole.next_batch(torch.device("cpu")) for _ in range(2)]
    assert sorted(torch.cat([w for w, _ in later]).tolist()) == sorted(seen)
    again = PairBatches(pairs, 5, 16, seed=1, rows=range(5))
    again.seen = 10
    for w, images in later:
        found_w, found = again.next_batch(torch.device("cpu"))
        assert torch.equal(found_w, w)
        assert torch.equal(found, images)


def test_without_degradation_they_are_as_drawn(model: Model, pairs: Pairs) -> None:
    batches = PairBatches(pairs, 10, 16, seed=0, rows=range(10), degrade=False)
    w, images = batches.next_batch(torch.device("cpu"))
    drawn = model.generator.synthesis(w).clamp(-1, 1)
    small = drawn.reshape(10, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    assert (images - small).abs().max() < 1 / 127.5


def test_degraded_images_stay_where_they_are() -> None:
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8) * 1.6 - 0.8, size=64, mode="bicubic")[0]
    rng = torch.Generator().manual_seed(0)
    different = []
    for _ in range(12):
        worse = degraded(picture, rng)
        assert worse.shape == picture.shape
        assert worse.abs().max() <= 1
        different.append((worse - picture).abs().mean().item())
        likeness = {}
        for dy, dx in itertools.product((-4, 0, 4), repeat=2):
            moved = picture.roll((dy, dx), (1, 2))[:, 8:-8, 8:-8]
            both = torch.stack([moved.flatten(), worse[:, 8:-8, 8:-8].flatten()])
            likeness[dy, dx] = torch.corrcoef(both)[0, 1].item()
        assert max(likeness, key=lambda at: likeness[at]) == (0, 0)
        assert likeness[0, 0] > 0.8
    assert min(different) > 0.01
    assert len(set(different)) == 12


def test_the_loss_is_its_formula(model: Model, pairs: Pairs) -> None:
    trainer = trainer_of(model, pairs, w_weight=0.7)
    twin = copy.deepcopy(trainer.encoder)  # batch statistics are of the batch: the same again
    real = torch.rand(2, 3, 16, 16) * 1.6 - 0.8
    losses = trainer.losses(real, torch.empty(2, 16))
    w, known = PairBatches(pairs, 4, 16, 0, range(4)).next_batch(torch.device("cpu"))
    codes = twin(torch.cat([real, known]))
    drawn = model.generator.synthesis(codes[:2]).reshape(2, 3, 16, 2, 16, 2).mean(dim=(3, 5))
    l2 = (drawn - real).pow(2).mean()
    distance = fake_perceptual()(for_loss(drawn), for_loss(real)).mean()
    error = (codes[2:] - w).pow(2).sum(1).mean() / model.w_std**2
    expected = torch.stack([l2 + 0.8 * distance + 0.7 * error, l2, distance, error])
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("power", [-1.0, 0.5, 1.0])
def test_the_error_of_w_by_variance(power: float, model: Model, pairs: Pairs) -> None:
    trainer = trainer_of(model, pairs, w_power=power)
    w = sample_w(model.generator, 10_000, seed=0)
    _, values, directions = torch.pca_lowrank(w, 16, niter=20)
    variances = values.square() / (len(w) - 1)
    # Moves by one standard deviation along the principal directions.
    moves = (directions * variances.sqrt()).T
    found = torch.stack([trainer.w_error(move[None], torch.zeros(1, 16)) for move in moves])
    expected = variances ** (1 + power) / (variances ** (1 + power)).sum()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-2)
    # The mean of W has an error of 1.
    assert float(trainer.w_error(model.w_mean.expand_as(w), w)) == pytest.approx(1, abs=0.1)


def test_pairs_alone_need_no_generator(model: Model, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(model, pairs, batch=0, pair_batch=10, pair_augment=False, lr=3e-3, images=400)
    for name in ("mapping", "synthesis"):
        monkeypatch.setattr(
            type(model.generator), name, lambda *_, **__: pytest.fail("the generator was run")
        )
    none = torch.empty(0, 3, 16, 16)
    first = trainer.step(none)
    assert trainer.images == 10
    last = [trainer.step(none) for _ in range(39)][-1]
    assert first["loss/mse"] == last["loss/mse"] == 0
    assert last["loss/w"] == last["loss/total"] < 0.7 * first["loss/w"]


@pytest.mark.parametrize("batch", [0, 2])
def test_resumes_exactly(batch: int, model: Model, pairs: Pairs, tmp_path: Path) -> None:
    def run(images: int, folder: str) -> EncoderTrainer:
        trainer = trainer_of(model, pairs, batch=batch, lr=1e-3)

        def stop(running: EncoderTrainer, _: object) -> None:
            if running.images == images < 20:
                raise KeyboardInterrupt

        def stream(start: int) -> Iterator[Tensor]:
            for step in itertools.count(start):
                yield torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(step))

        def batches(start: int) -> Iterator[Tensor]:
            return itertools.islice(stream(0), start // trainer.per_step, None)

        train(trainer, batches, tmp_path / folder, stop, lambda _: None, pytest.fail)
        return trainer

    whole = run(20, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(8, "parts")
    assert_same_state(whole.state(), run(20, "parts").state())
    assert whole.pairs is not None
    assert whole.pairs.seen == (20 if batch == 0 else 40)


def test_what_does_not_fit_is_said(model: Model, pairs: Pairs) -> None:
    with pytest.raises(UsageError, match="without real images needs pairs"):
        trainer_of(model, None, batch=0)
    with pytest.raises(ValueError, match="batch 0: expected 1 or more"):
        EncoderSettings(kind="e4e", batch=0)
    with pytest.raises(UsageError, match="hyperstyle cannot use pairs"):
        encoder_trainer(model, EncoderSettings(kind="hyperstyle"), fake_perceptual(), None, pairs)


def test_the_command(model: Model, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("wrangan_cli.engine.models.perceptual.load_perceptual", lambda *_: fake_perceptual())
    for seed in range(3):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    base = ["train", "encoder", "--device", "cpu", "--pair-batch", "4", "--images", "8", "--input-side", "32"]
    base += ["--backbone", "efficientnet-lite0", "--no-pretrained", "--image-side", "16"]
    base += ["--model", str(model.path)]

    def run(*more: object) -> Any:
        return CliRunner().invoke(app, [*base, *map(str, more)])

    done = run("--batch", "0", "--pairs", pairs.shards[0].parent, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.stderr
    encoder, _ = read_encoder(tmp_path / "a" / "encoder.safetensors")
    assert encoder.config.backbone == "efficientnet-lite0"
    assert (tmp_path / "a" / "grid-0000000008.png").is_file()
    photographs = ["--batch", "2", "--data", tmp_path / "faces", "--pairs", pairs.shards[0].parent]
    done = run(*photographs, "--out", tmp_path / "b", "--start", tmp_path / "a" / "encoder.safetensors")
    assert done.exit_code == 0, done.stderr
    done = run(*photographs, "--out", tmp_path / "c", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "pair_batch: 4" in done.stdout
    for wrong, message in (
        (["--batch", "2", "--pairs", pairs.shards[0].parent], "--data is missing"),
        (["--batch", "0", "--data", tmp_path / "faces"], "needs pairs"),
    ):
        refused = run(*wrong, "--out", tmp_path / "d")
        assert refused.exit_code == 2
        assert message in refused.stderr
