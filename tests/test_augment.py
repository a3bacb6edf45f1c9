"""Augmentation: identity at p = 0, what each part preserves, gradients, the controller."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.training.augment import (
    AdaptiveAugment,
    Transforms,
    _rotation,
    _scaling,
    _translation,
    apply_transforms,
    draw_transforms,
)
from wrangan_cli.engine.training.settings import GeneratorSettings

GREY = torch.full((3,), 1 / math.sqrt(3))


def draw(images: Tensor, probability: float, seed: int = 0) -> Transforms:
    rng = torch.Generator().manual_seed(seed)
    return draw_transforms(images.shape[0], probability, images.shape[-1], rng)


def augment(images: Tensor, probability: float, seed: int = 0) -> Tensor:
    return apply_transforms(images, draw(images, probability, seed))


def geometry(images: Tensor, probability: float) -> Tensor:
    colour = torch.eye(3, 4).expand(images.shape[0], -1, -1)
    return apply_transforms(images, Transforms(draw(images, probability).geometry, colour))


def colour(images: Tensor, probability: float, seed: int = 0) -> Tensor:
    still = torch.eye(3).expand(images.shape[0], -1, -1)
    return apply_transforms(images, Transforms(still, draw(images, probability, seed).colour))


def luma_and_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinate along the grey axis (B, H, W) and distance from it (B, H, W)."""
    luma = torch.einsum("c,bchw->bhw", GREY, images)
    return luma, (images - GREY[None, :, None, None] * luma[:, None]).norm(dim=1)


def test_probability_zero_changes_nothing() -> None:
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(augment(images, 0.0), images, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (17, 17)])
@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_shape_and_finite_values(size: tuple[int, int], probability: float) -> None:
    images = torch.rand(8, 3, *size) * 2 - 1
    changed = augment(images, probability)
    assert changed.shape == images.shape
    assert changed.isfinite().all()


def test_images_are_transformed_independently() -> None:
    image = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1)
    changed = augment(image, 1.0).flatten(1)
    assert (torch.pdist(changed) > 0.1).all()


def test_some_rows_are_changed_as_in_the_whole_batch() -> None:
    images = torch.rand(8, 3, 16, 16)
    drawn, rows = draw(images, 0.8), torch.tensor([5, 0, 6])
    part = apply_transforms(images[rows], drawn.rows(rows))
    torch.testing.assert_close(part, apply_transforms(images, drawn)[rows])


def test_a_small_probability_leaves_most_images_alone() -> None:
    images = torch.rand(400, 3, 8, 8)
    same = (augment(images, 0.02) - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    # 12 transforms, of which flips and quarter turns are neutral in some draws.
    assert 0.75 < same.float().mean() < 0.97


def test_gradients_of_second_order() -> None:
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)

    def function(value: Tensor) -> Tensor:
        return augment(value, 1.0, seed=11).square()

    assert torch.autograd.gradcheck(function, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (images,), fast_mode=True)


def test_geometry_keeps_flat_images_and_the_range() -> None:
    flat = torch.tensor([0.1, -0.4, 0.9])[None, :, None, None].expand(6, -1, 12, 12)
    torch.testing.assert_close(geometry(flat, 1.0), flat, atol=1e-5, rtol=1e-5)
    images = torch.rand(6, 3, 12, 12)
    moved = geometry(images, 1.0)
    assert moved.min() >= images.min() - 1e-5
    assert moved.max() <= images.max() + 1e-5


def test_matrices_are_mirror_turn_and_shift() -> None:
    image = torch.rand(1, 3, 8, 8)

    def apply(matrix: Tensor) -> Tensor:
        grid = F.affine_grid(matrix[:, :2], [1, 1, 8, 8], align_corners=False)
        return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)

    one = torch.ones(1)
    torch.testing.assert_close(apply(_scaling(-one, one)), image.flip(3), atol=1e-5, rtol=1e-5)
    quarter = apply(_rotation(one * math.pi / 2))
    assert any(torch.allclose(quarter, image.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3))
    shifted = apply(_translation(one * 2 * 2 / 8, one * 0))
    torch.testing.assert_close(shifted[..., :6], image[..., 2:], atol=1e-5, rtol=1e-5)


def test_colour_keeps_grey_pixels_grey() -> None:
    grey = torch.rand(16, 1, 5, 5).expand(-1, 3, -1, -1) * 2 - 1
    _, chroma = luma_and_chroma(colour(grey, 1.0))
    assert chroma.max() < 1e-5


def test_colour_treats_luma_apart_from_chroma() -> None:
    """Luma out depends on luma in alone; chroma is scaled by one factor an image, hue turned."""
    images = torch.rand(16, 3, 5, 5) * 2 - 1
    luma_in, chroma_in = luma_and_chroma(images)
    grey = luma_in[:, None] * GREY[None, :, None, None]
    luma_out, chroma_out = luma_and_chroma(colour(images, 1.0, seed=4))
    luma_of_grey, _ = luma_and_chroma(colour(grey, 1.0, seed=4))
    torch.testing.assert_close(luma_out, luma_of_grey, atol=1e-4, rtol=1e-4)
    factor = chroma_out / chroma_in
    torch.testing.assert_close(factor, factor[:, :1, :1].expand_as(factor), atol=1e-3, rtol=1e-3)
    assert factor.std() > 0.1


def test_the_controller_follows_the_sign_of_real_logits() -> None:
    adaptive = AdaptiveAugment(target=0.6, horizon=1000, interval=2)
    for _ in range(3):
        adaptive.observe(1.0, 32)
    # 2 batches, then one of the next interval that does not count yet.
    assert adaptive.probability == pytest.approx(0.064)
    adaptive.observe(1.0, 32)
    assert adaptive.probability == pytest.approx(0.128)
    for sign in (0.5, 0.6):
        adaptive.observe(sign, 32)
    assert adaptive.probability == pytest.approx(0.064)
    for _ in range(10):
        adaptive.observe(-1.0, 32)
    assert adaptive.probability == 0.0
    for _ in range(80):
        adaptive.observe(1.0, 32)
    assert adaptive.probability == 1.0


def test_the_controller_has_the_published_numbers() -> None:
    """Karras et al. 2020b: p adjusted every 4 batches, from 0 to 1 in 500,000 images at most, target 0.6."""
    adaptive = AdaptiveAugment(GeneratorSettings().augment_target)
    seen = 0
    while adaptive.probability < 1.0:
        for _ in range(4):
            adaptive.observe(0.6001, 16)
        seen += 64
        assert adaptive.probability == pytest.approx(min(1.0, seen / 500_000), abs=1e-6)
    for _ in range(4):
        adaptive.observe(0.5999, 16)
    assert adaptive.probability == pytest.approx(1 - 64 / 500_000)


def test_the_controller_can_be_saved_in_mid_interval() -> None:
    one, two = AdaptiveAugment(), AdaptiveAugment()
    for _ in range(2):
        one.observe(1.0, 10)
    two.restore(one.state())
    for adaptive in (one, two):
        for _ in range(2):
            adaptive.observe(1.0, 10)
    assert one.probability == two.probability > 0
    assert one.state() == two.state()
