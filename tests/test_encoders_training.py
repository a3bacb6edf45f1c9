"""Training of the encoders into W+: the losses by their formulas, the schedule, exact resume, the command."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from tests.conftest import TINY, random_generator_network, write_photo
from tests.fakes import fake_perceptual
from tests.test_adversarial import data
from tests.test_resume import assert_same_state
from wrangan_cli.app import app
from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.data.image_sets import batches
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code
from wrangan_cli.engine.models.encoders import KINDS, load_style_encoder, read_any, save_encoder
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import for_loss
from wrangan_cli.engine.training.encoder import ImageTrainer
from wrangan_cli.engine.training.encoder_kinds import encoder_trainer
from wrangan_cli.engine.training.latent_discriminator import CodePool, LatentAdversary
from wrangan_cli.engine.training.run import train
from wrangan_cli.engine.training.settings import EncoderSettings
from wrangan_cli.engine.training.style_encoder import StyleEncoderTrainer

SMALL: dict[str, Any] = {
    "batch": 4,
    "images": 20,
    "widths": "8,8,16",
    "blocks": "1,1,1",
    "input_side": 16,
    "ema_images": 20,
    "progressive_start": 4,
    "progressive_every": 4,
    "passes": 2,
    "features": 12,
    "inner": 6,
    "shared_inner": 6,
    "shared_width": 16,
}


def trainer_of(model: Model, kind: str = "e4e", **changes: Any) -> ImageTrainer[Any]:
    return encoder_trainer(model, EncoderSettings(**{**SMALL, "kind": kind, **changes}), fake_perceptual())


def style_trainer(model: Model, kind: str = "e4e", **changes: Any) -> StyleEncoderTrainer:
    trainer = trainer_of(model, kind, **changes)
    assert isinstance(trainer, StyleEncoderTrainer)
    with torch.no_grad():
        for index, head in enumerate(trainer.encoder.heads):
            head.get_submodule("linear").weight.normal_(generator=torch.Generator().manual_seed(index))
    return trainer


def real_images(count: int = 4, seed: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def latents(count: int = 4) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(5))


def test_published_defaults() -> None:
    settings = EncoderSettings(kind="e4e")
    assert (settings.l2_weight, settings.perceptual_weight, settings.lr) == (1, 0.8, 1e-4)
    assert (settings.delta_weight, settings.latent_weight, settings.latent_lr) == (2e-4, 0.1, 2e-5)
    assert (settings.latent_r1_gamma, settings.latent_r1_interval, settings.latent_pool) == (10, 16, 50)
    # 20,000 and 2,000 steps of 8 images.
    assert (settings.progressive_start, settings.progressive_every) == (160_000, 16_000)
    assert settings.passes == 5
    for wrong in ({"kind": "x"}, {"w_weight": -1.0}, {"passes": 0}, {"latent_lr": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EncoderSettings(**wrong)  # type: ignore[arg-type]


def test_schedule(tiny_model: Model) -> None:
    trainer = style_trainer(tiny_model, progressive_start=100, progressive_every=10)
    stages = {}
    for trainer.images in (0, 99, 100, 109, 110, 139, 140, 10_000):
        stages[trainer.images] = trainer.stage
    assert stages == {0: 0, 99: 0, 100: 1, 109: 1, 110: 2, 139: 4, 140: 5, 10_000: 5}


def test_e4e_loss_is_its_formula(tiny_model: Model) -> None:
    trainer = style_trainer(tiny_model, delta_weight=0.3, latent_weight=0.7, w_weight=0.9)
    trainer.images = 8  # two deltas
    assert trainer.stage == 2
    real, z = real_images(), latents()
    twin = copy.deepcopy(trainer.encoder)  # batch statistics are of the batch: the same again
    losses = trainer.losses(real, z)
    generator, distance = tiny_model.generator, fake_perceptual()
    true_w = generator.mapping(z)
    codes = twin(torch.cat([real, generator.synthesis(true_w).clamp(-1, 1)]))
    codes[:, 3:] = codes[:, :1]
    drawn = generator.synthesis(codes[:4])
    l2 = (drawn - real).pow(2).mean()
    lpips = distance(for_loss(drawn), for_loss(real)).mean()
    delta = sum((codes[:4, row] - codes[:4, 0]).pow(2).sum(1).sqrt().mean() for row in (1, 2))
    assert trainer.adversary is not None
    latent = F.softplus(-trainer.adversary.network(codes[:4, :3])).mean()
    w = sum((codes[4:, row] - true_w).pow(2).sum(1).mean() for row in range(6)) / 6 / tiny_model.w_std**2
    total = l2 + 0.8 * lpips + 0.3 * delta + 0.7 * latent + 0.9 * w
    expected = torch.stack([total, l2, lpips, torch.as_tensor(delta), latent, torch.as_tensor(w)])
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


def test_restyle_gathers_the_gradients_of_its_passes(tiny_model: Model) -> None:
    trainer = style_trainer(tiny_model, "restyle", latent_weight=0.0, deltas=False)
    trainer.encoder.eval()  # so that running statistics do not move between the two computations
    real, generator = real_images(), tiny_model.generator
    reported = trainer.backward(real, latents())
    found = {name: p.grad.clone() for name, p in trainer.encoder.named_parameters() if p.grad is not None}
    trainer.encoder.zero_grad(set_to_none=True)
    codes, shown = tiny_model.w_mean.expand(4, 6, 16), generator.synthesis(tiny_model.w_mean[None])
    total = torch.zeros(())
    for _ in range(2):
        codes = codes.detach() + trainer.encoder(real, shown.detach().expand_as(real), torch.zeros(4, 6, 16))
        shown = generator.synthesis(codes)
        distance = fake_perceptual()(for_loss(shown), for_loss(real)).mean()
        last = (shown - real).pow(2).mean() + 0.8 * distance
        total = total + last
    total.backward()
    assert reported[0].item() == pytest.approx(last.item(), rel=1e-5)
    assert len(found) > 10
    for name, parameter in trainer.encoder.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-3)


def test_the_latent_discriminator_sees_the_codes_of_the_first_pass(tiny_model: Model) -> None:
    trainer = style_trainer(tiny_model, "restyle", passes=3)
    trainer.images = 8  # two deltas
    real, z = real_images(), latents()
    twin = copy.deepcopy(trainer.encoder)
    average = tiny_model.generator.synthesis(tiny_model.w_mean[None]).expand_as(real)
    first = twin(real, average, None, trainer.stage)
    trainer.backward(real, z)
    shown: list[Tensor] = []
    assert trainer.adversary is not None
    trainer.adversary.step = lambda _w, codes: shown.append(codes) or {}  # type: ignore[method-assign, func-returns-value]
    trainer.after(z)
    torch.testing.assert_close(shown[0], first[:, :3].detach(), atol=1e-5, rtol=1e-4)
    again = twin(real, tiny_model.generator.synthesis(first), first, trainer.stage)
    assert (shown[0] - again[:, :3]).abs().max() > 0.01


@pytest.mark.parametrize(("asked", "side"), [({}, 256), ({"image_side": 0}, 512), ({"image_side": 128}, 128)])
@pytest.mark.parametrize("kind", ["w", "e4e"])
def test_images_are_compared_at_256_px_unless_another_side_is_asked_for(
    kind: str, asked: dict[str, int], side: int, tiny_model: Model
) -> None:
    config = dataclasses.replace(TINY, resolution=512, channels={2**n: 4 for n in range(2, 10)})
    model = dataclasses.replace(tiny_model, generator=random_generator_network(config))
    trainer = trainer_of(model, kind, **asked)
    assert trainer.side == side
    with torch.no_grad():
        w = model.w_mean[None]
        pooled = F.adaptive_avg_pool2d(model.generator.synthesis(w), side)
        torch.testing.assert_close(trainer.synthesis(w), pooled, atol=1e-5, rtol=1e-4)


def test_one_step_for_all_passes(tiny_model: Model) -> None:
    trainer = style_trainer(tiny_model, "restyle", passes=3)
    counted = 0
    step = trainer.optimizer.step

    def note(*given: Any) -> None:
        nonlocal counted
        counted += 1
        step(*given)

    trainer.optimizer.step = note  # type: ignore[method-assign, assignment]
    report = trainer.step(real_images())
    assert counted == 1
    assert set(report) >= {"loss/total", "loss/fake", "loss/delta", "loss/latent discriminator", "stage"}


def test_the_pool_gives_older_codes() -> None:
    pool = CodePool(3, 1, torch.Generator().manual_seed(0))
    assert pool.exchanged(torch.tensor([[0.0], [1.0], [2.0]])).flatten().tolist() == [0, 1, 2]
    given, shown = list(range(3, 203)), []
    for number in given:
        shown += pool.exchanged(torch.tensor([[float(number)]])).flatten().tolist()
    older = [one for one, new in zip(shown, given, strict=True) if one != new]
    assert 60 < len(older) < 140
    assert all(one < new for one, new in zip(shown, given, strict=True) if one != new)
    # Nothing is lost and nothing comes twice.
    assert sorted([*shown, *pool.codes.flatten().tolist()]) == list(range(203))
    none = CodePool(0, 1, torch.Generator())
    assert none.exchanged(torch.ones(4, 1)).flatten().tolist() == [1] * 4


def test_the_latent_discriminator_learns_and_is_regularised() -> None:
    settings = EncoderSettings(latent_lr=1e-2, latent_pool=0, latent_r1_gamma=0.0)
    adversary = LatentAdversary(4, settings, torch.device("cpu"))
    rng = torch.Generator().manual_seed(1)
    first = last = 0.0
    for step in range(60):
        real = torch.randn(16, 4, generator=rng) + 2
        codes = torch.randn(16, 3, 4, generator=rng) - 2
        last = adversary.step(real, codes)["loss/latent discriminator"]
        first = first or last
        assert adversary.steps == step + 1
    assert last < 0.1 < first
    assert adversary.encoder_loss(codes).item() > adversary.encoder_loss(real[:, None]).item()
    # R1 of a linear function is the square of its slope.
    regular = LatentAdversary(4, EncoderSettings(latent_r1_interval=2), torch.device("cpu"))
    torch.nn.init.constant_(regular.network[6].weight, 0.5)
    slopes = []
    for row in real:
        point = row.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(regular.network(point).sum(), point)
        slopes.append(slope.pow(2).sum().item())
    state = {name: value.clone() for name, value in regular.network.state_dict().items()}
    regular.settings = dataclasses.replace(regular.settings, latent_lr=0.0)
    regular.optimizer.param_groups[0]["lr"] = 0.0
    assert regular.step(real, codes)["loss/latent R1"] == pytest.approx(sum(slopes) / 16, rel=1e-4)
    assert "loss/latent R1" not in regular.step(real, codes)
    for name, value in regular.network.state_dict().items():
        assert torch.equal(value, state[name])


def model_with_encoder(model: Model) -> Model:
    """The model with an encoder into W in its folder, which the hypernetwork needs."""
    save_encoder(model.path, trainer_of(model, "w").ema, model, {})
    return model


@pytest.mark.parametrize("kind", ["e4e", "restyle", "hyperstyle"])
def test_resumes_exactly(kind: str, tiny_model: Model, tmp_path: Path) -> None:
    model = model_with_encoder(tiny_model)
    brisk = {"latent_lr": 1e-2, "latent_pool": 6, "latent_r1_interval": 2, "lr": 1e-3}

    def run(images: int, folder: str, seed: int) -> ImageTrainer[Any]:
        trainer = trainer_of(model, kind, **brisk)
        torch.manual_seed(seed)

        def stop(running: ImageTrainer[Any], _: object) -> None:
            if images < 20 and running.images == images:
                raise KeyboardInterrupt

        def stream(start: int) -> Iterator[Tensor]:
            return batches(
                data(), trainer.settings.batch, trainer.settings.seed, start, trainer.settings.flip
            )

        train(trainer, stream, tmp_path / folder, stop, lambda _: None, pytest.fail)
        return trainer

    whole = run(20, "whole", seed=0)
    with pytest.raises(KeyboardInterrupt):
        run(12, "parts", seed=1)
    again = run(20, "parts", seed=2)
    assert_same_state(whole.state(), again.state())
    if kind != "hyperstyle":
        assert len(whole.state()["adversary"]["pools"]["real"]) == 6
    # A run of other sizes or of another kind is not gone on with.
    with pytest.raises(UsageError, match="differs in size from the requested one"):
        trainer_of(model, kind, widths="8,8,8").restore(whole.state())
    with pytest.raises(UsageError, match="another kind of training"):
        trainer_of(model, "w").restore(whole.state())


def test_what_does_not_fit_is_said(tiny_model: Model, tmp_path: Path) -> None:
    for wrong, message in (
        ({"widths": "4,4", "blocks": "1,1"}, "three stages"),
        ({"blocks": "1,1"}, "3 widths for 2 stages"),
        ({"backbone": "vgg"}, "backbone 'vgg'"),
        ({"heads": "x"}, "heads 'x'"),
        ({"batch": 0}, "batch 0"),
    ):
        with pytest.raises((UsageError, ValueError), match=message):
            trainer_of(tiny_model, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no encoder\.safetensors"):
        trainer_of(tiny_model, "hyperstyle")
    path = save_encoder(tmp_path, trainer_of(tiny_model, "restyle").ema, tiny_model, {})
    with pytest.raises(FileError, match="holds 'encoder-restyle', not 'encoder-e4e'"):
        encoder_trainer(tiny_model, EncoderSettings(**SMALL, kind="e4e"), fake_perceptual(), path)


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    for name in ("models.perceptual", "inversion.inverter"):
        monkeypatch.setattr(f"wrangan_cli.engine.{name}.load_perceptual", lambda *_: fake_perceptual())
    for seed in range(5):
        write_photo(tmp_path / "faces" / f"{seed}.png", seed=seed)
    return tmp_path / "faces"


def run(*arguments: object) -> list[str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_the_commands_from_training_to_codes(faces: Path, tiny_folder: Path, tmp_path: Path) -> None:
    base = ["--data", faces, "--model", tiny_folder, "--device", "cpu", "--snapshot-images", "8"]
    for name, value in SMALL.items():
        if name != "images":
            base += [f"--{name.replace('_', '-')}", value]
    photo = faces / "0.png"
    for kind in ("w", "e4e", "restyle", "hyperstyle"):
        out, file = tmp_path / kind, KINDS[kind].file
        lines = run("train", "encoder", *base, "--out", out, "--kind", kind, "--images", "16", "--install")
        assert lines == [str(tiny_folder / file), str(out / file)]
        assert (out / "grid-0000000016.png").is_file()
        network, trained_for = read_any(out / file, kind)
        assert trained_for == load_model(str(tiny_folder)).sha256
        assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
        settings = json.loads((out / "settings.json").read_text())
        assert settings["kind"] == kind
        again = ["--out", tmp_path / f"{kind}-2", "--kind", kind, "--images", "4", "--start", out / file]
        run("train", "encoder", *base, *again, "--passes", "3")
        if kind in ("restyle", "hyperstyle"):
            assert read_any(tmp_path / f"{kind}-2" / file, kind)[0].config.passes == 3
        method = "encoder" if kind == "w" else kind
        codes = tmp_path / f"{kind}-codes"
        (path,) = run("invert", photo, "--model", tiny_folder, "--method", method, "--out", codes)
        code = load_code(Path(path), load_model(str(tiny_folder)))
        assert code.w.shape == ((6, 16) if kind in ("e4e", "restyle") else (16,))
        assert bool(code.delta) == (kind == "hyperstyle")
    assert load_style_encoder(load_model(str(tiny_folder)), "restyle").config.passes == 2
    # From an encoder into W+, by its first row.
    (path,) = run(
        *("invert", photo, "--model", tiny_folder, "--init", "e4e", "--steps", "2"),
        *("--out", tmp_path / "from-e4e"),
    )
    assert load_code(Path(path)).w.shape == (16,)


def test_dry_runs(faces: Path, tiny_folder: Path, tmp_path: Path) -> None:
    model = model_with_encoder(load_model(str(tiny_folder)))
    base = ["--data", faces, "--out", tmp_path / "run", "--model", model.path, "--device", "cpu", "--dry-run"]
    for name, value in SMALL.items():
        base += [f"--{name.replace('_', '-')}", value]
    for kind in ("e4e", "restyle", "hyperstyle"):
        printed = dict(line.split(": ", 1) for line in run("train", "encoder", *base, "--kind", kind))
        assert printed["kind"] == kind
        assert printed["memory, activations (encoder)"].endswith(" GB")
        count = sum(p.numel() for p in trainer_of(model, kind).encoder.parameters())
        assert printed["encoder"] == f"{count:,} parameters"
    assert not (tmp_path / "run").exists()
