"""The generator: published keys and sizes, per-image weights, noise, offsets."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import TINY, random_generator_network
from wrangan_cli.engine.models.config import StyleGAN2Config, rosinality_channels
from wrangan_cli.engine.models.layers import EqualConv2d, EqualLinear
from wrangan_cli.engine.models.randomized import draw_epsilon, num_randomized
from wrangan_cli.engine.models.stylegan2 import (
    ModulatedConv2d,
    PixelNorm,
    StyledConv,
    StyleGAN2Generator,
)


def on_meta(resolution: int, randomized: int = 0, multiplier: float = 2.0) -> StyleGAN2Generator:
    config = StyleGAN2Config(
        resolution, rosinality_channels(resolution, multiplier), randomized_layers=randomized
    )
    with torch.device("meta"):
        return StyleGAN2Generator(config)


def rosinality_keys(resolution: int) -> set[str]:
    """The keys of a published generator, written down from its layer list."""
    modulated = ["conv.weight", "conv.modulation.weight", "conv.modulation.bias"]
    styled = [*modulated, "noise.weight", "activate.bias"]
    keys = {f"style.{i}.{part}" for i in range(1, 9) for part in ("weight", "bias")} | {"input.input"}
    keys |= {f"conv1.{part}" for part in styled} | {f"to_rgb1.{part}" for part in [*modulated, "bias"]}
    blocks = int(math.log2(resolution)) - 2
    for i in range(2 * blocks):
        keys |= {f"convs.{i}.{part}" for part in styled}
        if i % 2 == 0:
            keys.add(f"convs.{i}.conv.blur.kernel")
    for i in range(blocks):
        keys |= {f"to_rgbs.{i}.{part}" for part in [*modulated, "bias", "upsample.kernel"]}
    return keys | {f"noises.noise_{i}" for i in range(2 * blocks + 1)}


def test_keys_are_the_published_ones() -> None:
    assert set(on_meta(256).state_dict()) == rosinality_keys(256)
    with_std = set(on_meta(256, 6).state_dict()) - rosinality_keys(256)
    assert with_std == {f"convs.{i}.conv.std" for i in range(6, 12)}


def test_parameter_count_at_256() -> None:
    assert sum(p.numel() for p in on_meta(256).parameters()) == 30_034_338


@pytest.mark.parametrize(("layers", "weights"), [(4, 2_211_840), (6, 6_930_432), (8, 11_649_024)])
def test_random_weights_of_the_paper(layers: int, weights: int) -> None:
    generator = on_meta(256, layers)
    assert num_randomized(generator) == weights
    assert list(generator.random_weights()) == [f"convs.{i}" for i in range(12 - layers, 12)]
    # μ and σ: one more parameter for each random weight.
    assert sum(p.numel() for p in generator.parameters()) == 30_034_338 + weights


def test_all_layers_can_be_random() -> None:
    assert next(iter(on_meta(16, 5).random_weights())) == "conv1"
    with pytest.raises(ValueError, match="randomized_layers"):
        on_meta(16, 6)


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
def test_every_resolution_draws_images_of_its_size(resolution: int) -> None:
    generator = on_meta(resolution)
    config = generator.config
    assert config.num_latents == 2 * int(math.log2(resolution)) - 2
    with torch.no_grad():
        image = generator(torch.randn(2, 512, device="meta"), noise="const")
    assert image.shape == (2, 3, resolution, resolution)
    for index in range(config.num_styled_convs):
        assert generator.noises.get_buffer(f"noise_{index}").shape[-1] == 2 ** ((index + 5) // 2)


@pytest.mark.parametrize("resolution", [4, 12, 2048])
def test_other_resolutions_are_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        StyleGAN2Config(resolution, {2**i: 8 for i in range(2, 12)})


def test_config_survives_json() -> None:
    config = dataclasses.replace(TINY, conv_clamp=256.0, fir_taps=(1.0, 2.0, 1.0))
    assert StyleGAN2Config.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="channel count"):
        StyleGAN2Config(16, {4: 8, 8: 8})


def test_images_are_those_of_a_plain_rewrite(tiny_generator: StyleGAN2Generator) -> None:
    """The whole synthesis against a direct one: modulated weights, zero insertion, skip images."""
    g, config = tiny_generator, tiny_generator.config
    w = torch.randn(1, config.num_latents, config.style_dim)
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    fir = torch.outer(line, line) / 64 * 4

    def zero_insert(x: torch.Tensor) -> torch.Tensor:
        spread = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[:, :, ::2, ::2] = x
        return spread

    def blur(x: torch.Tensor, before: int, after: int) -> torch.Tensor:
        planes = F.pad(x.transpose(0, 1), (before, after, before, after))
        return F.conv2d(planes, fir[None, None]).transpose(0, 1)

    def modulate(layer: torch.nn.Module, row: torch.Tensor, demodulate: bool) -> torch.Tensor:
        affine = layer.conv.modulation
        style = affine.weight @ row / math.sqrt(config.style_dim) + affine.bias
        weight = layer.conv.weight[0]
        weight = weight * style[None, :, None, None] / math.sqrt(weight[0].numel())
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        return weight

    def styled(
        layer: torch.nn.Module, x: torch.Tensor, row: torch.Tensor, noise: int, up: bool
    ) -> torch.Tensor:
        weight = modulate(layer, row, True)
        if up:
            full = F.conv2d(zero_insert(x), weight.flip(2, 3), padding=2)[:, :, :-1, :-1]
            x = blur(full, 1, 1)
        else:
            x = F.conv2d(x, weight, padding=1)
        x = x + layer.noise.weight * g.noises.get_buffer(f"noise_{noise}")
        return F.leaky_relu(x + layer.activate.bias[None, :, None, None], 0.2) * math.sqrt(2)

    with torch.no_grad():
        x = styled(g.conv1, g.input.input, w[0, 0], 0, False)
        image = F.conv2d(x, modulate(g.to_rgb1, w[0, 1], False)) + g.to_rgb1.bias
        for i, to_rgb in enumerate(g.to_rgbs):
            x = styled(g.convs[2 * i], x, w[0, 2 * i + 1], 2 * i + 1, True)
            x = styled(g.convs[2 * i + 1], x, w[0, 2 * i + 2], 2 * i + 2, False)
            rgb = F.conv2d(x, modulate(to_rgb, w[0, 2 * i + 3], False)) + to_rgb.bias
            image = blur(zero_insert(image), 2, 1) + rgb
        torch.testing.assert_close(g.synthesis(w), image, atol=1e-4, rtol=1e-4)


def test_mapping_is_pixel_norm_and_linear_layers(tiny_generator: StyleGAN2Generator) -> None:
    z = torch.randn(3, 16)
    x = z / (z.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(PixelNorm()(z), x)
    with torch.no_grad():
        for layer in tiny_generator.style[1:]:
            x = x @ layer.weight.t() * 0.01 / 4 + layer.bias * 0.01
            x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
        torch.testing.assert_close(tiny_generator.mapping(z), x)


def test_epsilon_per_image_equals_each_image_alone(tiny_generator: StyleGAN2Generator) -> None:
    w, epsilon = torch.randn(3, 16), draw_epsilon(tiny_generator, batch=3)
    with torch.no_grad():
        together = tiny_generator.synthesis(w, epsilon=epsilon)
        for i in range(3):
            own = {name: value[i] for name, value in epsilon.items()}
            alone = tiny_generator.synthesis(w[i : i + 1], epsilon=own)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_shared_epsilon_equals_the_same_epsilon_per_image(tiny_generator: StyleGAN2Generator) -> None:
    w, epsilon = torch.randn(2, 16), draw_epsilon(tiny_generator)
    repeated = {name: value.expand(2, -1, -1, -1, -1) for name, value in epsilon.items()}
    with torch.no_grad():
        shared = tiny_generator.synthesis(w, epsilon=epsilon)
        torch.testing.assert_close(
            shared, tiny_generator.synthesis(w, epsilon=repeated), atol=1e-5, rtol=1e-4
        )
        assert (shared - tiny_generator.synthesis(w)).abs().max() > 1e-3


def test_no_epsilon_is_epsilon_zero(tiny_generator: StyleGAN2Generator) -> None:
    w = torch.randn(2, 16)
    zero = draw_epsilon(tiny_generator, scale=0.0)
    with torch.no_grad():
        torch.testing.assert_close(tiny_generator.synthesis(w), tiny_generator.synthesis(w, epsilon=zero))


def test_delta_is_a_plain_offset_of_any_layer(tiny_generator: StyleGAN2Generator) -> None:
    w = torch.randn(2, 16)
    delta = {n: torch.randn_like(c.conv.weight[0]) * 0.1 for n, c in tiny_generator.styled_convs().items()}
    moved = random_generator_network()
    with torch.no_grad():
        for name, layer in moved.styled_convs().items():
            layer.conv.weight.add_(delta[name])
        torch.testing.assert_close(tiny_generator.synthesis(w, delta=delta), moved.synthesis(w))


def test_epsilon_is_in_units_of_std(tiny_generator: StyleGAN2Generator) -> None:
    w, epsilon = torch.randn(2, 16), draw_epsilon(tiny_generator)
    delta = {n: tiny_generator.get_parameter(f"{n}.conv.std") * e for n, e in epsilon.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            tiny_generator.synthesis(w, epsilon=epsilon), tiny_generator.synthesis(w, delta=delta)
        )


def test_epsilon_of_a_layer_without_std_is_refused(tiny_generator: StyleGAN2Generator) -> None:
    with pytest.raises(ValueError, match="no σ"):
        tiny_generator.synthesis(torch.randn(1, 16), epsilon={"conv1": torch.zeros(16, 16, 3, 3)})


@pytest.mark.parametrize("name", ["convs.0.conv.weight", "to_rgbs.0.conv.modulation.bias"])
def test_what_is_kept_changes_nothing_and_follows_replaced_weights(
    tiny_generator: StyleGAN2Generator, name: str
) -> None:
    generator = tiny_generator.requires_grad_(False)
    w = torch.randn(2, generator.config.style_dim)
    other = {name: torch.randn_like(dict(generator.named_parameters())[name])}

    def images() -> list[torch.Tensor]:
        class Drawing(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.generator = generator

            def forward(self) -> torch.Tensor:
                return self.generator.synthesis(w)

        replaced = {f"generator.{key}": value for key, value in other.items()}
        return [generator.synthesis(w), torch.func.functional_call(Drawing(), replaced, ())]

    plain = images()
    assert not torch.allclose(plain[0], plain[1])
    with generator.cached_weights():
        kept = [m.kept is not None for m in generator.modules() if isinstance(m, ModulatedConv2d)]
        assert sum(kept) == generator.config.num_styled_convs
        assert generator.kept_styles is not None
        for found, expected in zip(images(), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert all(m.kept is None for m in generator.modules() if isinstance(m, ModulatedConv2d))
    assert generator.kept_styles is None


def test_energies_of_weights_that_learn_are_not_kept(tiny_generator: StyleGAN2Generator) -> None:
    generator = tiny_generator.requires_grad_(True)
    with generator.cached_weights():
        assert all(m.kept is None for m in generator.modules() if isinstance(m, ModulatedConv2d))
        assert generator.kept_styles is None
        generator.synthesis(torch.randn(1, generator.config.style_dim)).sum().backward()
    gradient = generator.conv1.conv.weight.grad
    assert gradient is not None
    assert bool(gradient.any())


def test_w_of_the_wrong_shape_is_refused(tiny_generator: StyleGAN2Generator) -> None:
    with pytest.raises(ValueError, match="expected"):
        tiny_generator.synthesis(torch.randn(1, 4, 16))


def test_w_plus_of_equal_rows_is_w(tiny_generator: StyleGAN2Generator) -> None:
    w = torch.randn(2, 16)
    rows = w[:, None].repeat(1, tiny_generator.config.num_latents, 1)
    with torch.no_grad():
        torch.testing.assert_close(tiny_generator.synthesis(w), tiny_generator.synthesis(rows))


def test_noise_modes(tiny_generator: StyleGAN2Generator) -> None:
    w = torch.randn(1, 16).expand(2, -1)
    with torch.no_grad():
        const = tiny_generator.synthesis(w, noise="const")
        fresh = tiny_generator.synthesis(w, noise="random")
        none = tiny_generator.synthesis(w, noise="none")
        torch.testing.assert_close(const, tiny_generator.synthesis(w))
        torch.testing.assert_close(const[0], const[1], atol=1e-5, rtol=1e-5)
        assert (fresh[0] - fresh[1]).abs().max() > 1e-4
        for layer in tiny_generator.styled_convs().values():
            layer.noise.weight.zero_()
        torch.testing.assert_close(none, tiny_generator.synthesis(w, noise="const"), atol=1e-5, rtol=1e-5)


def test_conv_clamp_bounds_every_layer() -> None:
    generator = random_generator_network(dataclasses.replace(TINY, conv_clamp=0.25))
    seen: list[float] = []
    for module in generator.modules():
        if isinstance(module, StyledConv):
            module.register_forward_hook(lambda _m, _i, y: seen.append(y.abs().max().item()))
    with torch.no_grad():
        image = generator.synthesis(torch.randn(2, 16))
    assert len(seen) == 5
    assert max(seen) == 0.25
    # Three skip images of at most 0.25 each; up-sampling by 2 enlarges none of them.
    assert image.abs().max() <= 0.75 + 1e-6


def test_equalised_layers_scale_at_run_time() -> None:
    linear = EqualLinear(4, 2, bias_init=1.0, lr_multiplier=0.5)
    x = torch.randn(3, 4)
    expected = x @ linear.weight.t() * (0.5 / 2) + 1.0
    torch.testing.assert_close(linear(x), expected)
    conv = EqualConv2d(4, 2, 3, stride=2)
    image = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(conv(image), F.conv2d(image, conv.weight / 6, stride=2))
