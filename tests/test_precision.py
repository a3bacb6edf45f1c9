"""Half precision in the top resolutions, and compiled networks."""

import dataclasses
import functools

import pytest
import torch

from tests.conftest import TINY
from tests.test_adversarial import BRISK, data, trainer_for
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.precision import LowPrecision, low_precision
from wrangan_cli.engine.models.randomized import draw_epsilon
from wrangan_cli.engine.models.stylegan2 import StyleGAN2Generator
from wrangan_cli.engine.ops.modulated_conv import modulated_conv2d
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.settings import GeneratorSettings, RandomizeSettings

CLAMPED = dataclasses.replace(TINY, conv_clamp=256.0)


@pytest.mark.parametrize("kind", [GeneratorSettings, RandomizeSettings])
def test_bf16_trains_and_keeps_everything_else_in_float32(kind: type) -> None:
    trainer = trainer_for(kind(precision="bf16", low_precision_resolutions=2, **BRISK))
    before = [p.detach().clone() for p in trainer.generator.parameters()]
    for start in range(0, 16, 4):
        report = trainer.step(data().batch(range(start % 8, start % 8 + 4)))
    assert {"loss/path_length", "loss/generator"} & set(report)
    for network in (trainer.generator, trainer.discriminator, trainer.ema):
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        assert {s["exp_avg_sq"].dtype for s in optimizer.state.values()} == {torch.float32}
    assert any((p != q).any() for p, q in zip(trainer.generator.parameters(), before, strict=True))
    assert trainer.ema.low_precision is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_top_resolutions_are_low(dtype: torch.dtype) -> None:
    seen: dict[str, torch.dtype] = {}
    generator, discriminator = StyleGAN2Generator(CLAMPED), Discriminator(CLAMPED)
    generator.low_precision = discriminator.low_precision = LowPrecision(dtype, 16)
    for name, layer in generator.styled_convs().items():
        layer.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out.dtype}))
    for index, layer in enumerate(discriminator.convs):
        layer.register_forward_hook(lambda _m, _a, out, i=index: seen.update({f"D{i}": out.dtype}))
    images = generator.synthesis(torch.randn(2, 16))
    logits = discriminator(images)
    assert images.dtype == logits.dtype == torch.float32
    low = [name for name, kind in seen.items() if kind == dtype]
    assert low == ["convs.2", "convs.3", "D0", "D1"]
    assert {seen[name] for name in ("conv1", "convs.0", "convs.1", "D2")} == {torch.float32}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.008)])
def test_low_precision_is_near_float32(
    dtype: torch.dtype, tolerance: float, tiny_generator: StyleGAN2Generator
) -> None:
    w, epsilon = torch.randn(4, 16), draw_epsilon(tiny_generator)
    exact = tiny_generator.synthesis(w, epsilon=epsilon)
    tiny_generator.low_precision = LowPrecision(dtype, 8)
    error = (tiny_generator.synthesis(w, epsilon=epsilon) - exact).square().mean().sqrt()
    assert 0 < error / exact.std() < tolerance


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("up", [False, True])
def test_fp16_sums_do_not_overflow(per_image: bool, up: bool) -> None:
    """Inputs at the clamp, large styles and weights: the plain sums reach 10⁷, fp16 ends at 65504."""
    from wrangan_cli.engine.ops.fir import fir_kernel

    x = torch.full((2, 64, 8, 8), 256.0) + torch.randn(2, 64, 8, 8)
    weight = torch.rand(*((2,) if per_image else ()), 16, 64, 3, 3) * 20
    style = torch.rand(2, 64) * 50
    fir = fir_kernel(gain=4.0) if up else None
    scale = 1 / (64 * 9) ** 0.5
    exact = modulated_conv2d(x, weight, style * scale, up=up, fir=fir)
    low = modulated_conv2d(x.half(), weight, style * scale, up=up, fir=fir)
    assert low.dtype == torch.float16
    torch.testing.assert_close(low.float(), exact, rtol=0.01, atol=exact.abs().max().item() * 0.002)
    assert (scale * x[:, :, 4, 4] * style).sum() * 9 * 10 > 65504


def test_which_resolutions() -> None:
    assert low_precision("float32", 4, TINY) is None
    assert low_precision("bf16", 0, TINY) is None
    assert low_precision("bf16", 1, TINY) == LowPrecision(torch.bfloat16, 16)
    assert low_precision("bf16", 9, TINY) == LowPrecision(torch.bfloat16, 4)
    assert low_precision("fp16", 2, CLAMPED) == LowPrecision(torch.float16, 8)


def test_fp16_needs_the_clamp() -> None:
    with pytest.raises(UsageError, match="has no clamp"):
        trainer_for(GeneratorSettings(precision="fp16", **BRISK))
    with pytest.raises(ValueError, match="expected one of float32, bf16, fp16"):
        GeneratorSettings(precision="fp8")


def test_fp16_gradients_that_overflow_do_not_reach_adam() -> None:
    settings = RandomizeSettings(precision="fp16", low_precision_resolutions=1, **BRISK)
    trainer = AdversarialTrainer(StyleGAN2Generator(CLAMPED), Discriminator(CLAMPED), settings)
    weight = trainer.discriminator.final_conv[0].weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    for _ in range(2):
        trainer.step(data().batch(range(4)))
    assert all(p.isfinite().all() for p in trainer.discriminator.parameters())


@pytest.mark.slow
def test_compiled_networks_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and split into forward and backward as for the compiler, but run by PyTorch itself."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = trainer_for(GeneratorSettings(**BRISK))
    compiled = trainer_for(GeneratorSettings(compile=True, **BRISK))
    for start in range(0, 8, 4):
        one = plain.step(data().batch(range(start, start + 4)))
        two = compiled.step(data().batch(range(start, start + 4)))
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)
    # The penalties differentiate twice, which compiled code cannot.
    assert "loss/r1" not in one
    assert compiled.steps == 2
