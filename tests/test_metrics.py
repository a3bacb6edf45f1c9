"""Every metric against an independent formula."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.base.carriers import CARRIERS, where
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.data.image_sets import ImageSet
from wrangan_cli.engine.metrics import samples
from wrangan_cli.engine.metrics.base import mean_interval
from wrangan_cli.engine.metrics.inception import as_tensorflow_resizes, extract_features, load_inception
from wrangan_cli.engine.metrics.ms_ssim import ms_ssim
from wrangan_cli.engine.metrics.mse import mse
from wrangan_cli.engine.metrics.psnr import psnr
from wrangan_cli.engine.metrics.registry import PAIR_METRICS, SAMPLE_METRICS, pair_metrics, sample_metrics
from wrangan_cli.engine.metrics.samples import Reference, generated_images, load_reference, save_reference
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PERCEPTUAL_NAMES

needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="package torch-fidelity is not installed"
)
needs_inception = pytest.mark.skipif(
    where(CARRIERS["inception"]) is None, reason="no Inception weights: wrangan fetch inception"
)


def two_batches(side: int = 32, count: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 3, side, side) * 2 - 1
    return x, (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)


def test_mse_and_psnr_by_numpy() -> None:
    x, y = two_batches()
    difference = x.double().numpy() - y.double().numpy()
    expected = np.array([np.mean(d**2) for d in difference])
    assert np.allclose(mse(x, y), expected, rtol=1e-5)
    # The same decibels as with the peak 255 on 8 bits.
    in_255 = np.array([np.mean((d * 127.5) ** 2) for d in difference])
    assert np.allclose(psnr(x, y), 20 * np.log10(255) - 10 * np.log10(in_255), atol=1e-4)
    assert (psnr(x, x) == 100).all()
    assert mse(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)).item() == 4


def slow_ms_ssim(x: Tensor, y: Tensor) -> float:
    """One pair (3, H, W) in [0, 1], from the definition, in float64."""
    offset = np.arange(11) - 5
    window = np.exp(-(offset**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    powers = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    result = np.ones(3)
    a, b = x.double().numpy(), y.double().numpy()
    for scale, power in enumerate(powers):
        for c in range(3):
            views = [np.lib.stride_tricks.sliding_window_view(v[c], (11, 11)) for v in (a, b)]
            mx, my = ((v * window).sum((-1, -2)) for v in views)
            sx, sy = ((v**2 * window).sum((-1, -2)) - m**2 for v, m in zip(views, (mx, my), strict=True))
            sxy = (views[0] * views[1] * window).sum((-1, -2)) - mx * my
            structure = (2 * sxy + c2) / (sx + sy + c2)
            light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            value = (structure * light if scale == len(powers) - 1 else structure).mean()
            result[c] *= max(value, 0) ** power
        a, b = (
            v[:, : v.shape[1] // 2 * 2, : v.shape[2] // 2 * 2]
            .reshape(3, v.shape[1] // 2, 2, v.shape[2] // 2, 2)
            .mean((2, 4))
            for v in (a, b)
        )
    return float(result.mean())


def test_ms_ssim_by_its_definition_with_enlargement() -> None:
    x, y = two_batches(side=64, count=1)
    large = [F.interpolate(v, size=(256, 256), mode="bilinear", align_corners=False) for v in (x, y)]
    expected = slow_ms_ssim(*((v[0] + 1) / 2 for v in large))
    assert 0.1 < expected < 0.99
    assert ms_ssim(x, y).item() == pytest.approx(expected, abs=1e-4)
    assert ms_ssim(x, x).item() == pytest.approx(1, abs=1e-6)


def test_ms_ssim_leaves_images_of_161_px_as_they_are() -> None:
    import pytorch_msssim

    x, y = two_batches(side=176, count=2)
    expected = pytorch_msssim.ms_ssim((x + 1) / 2, (y + 1) / 2, data_range=1.0, size_average=False)
    assert torch.equal(ms_ssim(x, y), expected)


def gaussian_features(count: int, size: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(size, size))
    return torch.from_numpy(rng.normal(size=(count, size)) @ mixing + 0.3 * seed).float()


@needs_fidelity
def test_fid_by_the_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = gaussian_features(60, 6, 0), gaussian_features(80, 6, 1)
    first, second = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    expected = gap @ gap + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    estimate = SAMPLE_METRICS["fid"].compute(a, b)
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.standard_error is None
    assert SAMPLE_METRICS["fid"].compute(a, a).value == pytest.approx(0, abs=1e-5)


@needs_fidelity
def test_kid_by_the_polynomial_kernel() -> None:
    a, b = gaussian_features(40, 6, 0), gaussian_features(30, 6, 1)
    rng = np.random.RandomState(2020)  # torch-fidelity's seed
    size, values = 15, []
    for _ in range(100):
        x = a.double().numpy()[rng.choice(40, size, replace=False)]
        y = b.double().numpy()[rng.choice(30, size, replace=False)]
        within = sum(
            (v[i] @ v[j] / 6 + 1) ** 3 for v in (x, y) for i in range(size) for j in range(size) if i != j
        )
        across = sum((p @ q / 6 + 1) ** 3 for p in x for q in y)
        values.append(within / (size * (size - 1)) - 2 * across / size**2)
    estimate = SAMPLE_METRICS["kid"].compute(a, b)
    assert estimate.value == pytest.approx(np.mean(values), rel=1e-4)
    assert estimate.standard_error is not None  # test_mmd_variance.py
    assert estimate.standard_error > np.std(values) / 10


@needs_fidelity
def test_precision_and_recall_by_hand() -> None:
    generated, reference = gaussian_features(20, 3, 0), gaussian_features(25, 3, 1)

    def share(points: Tensor, centres: Tensor) -> float:
        radii = [sorted((c - o).norm().item() for o in centres)[3] for c in centres]
        inside = [
            any((p - c).norm().item() <= r for c, r in zip(centres, radii, strict=True)) for p in points
        ]
        return sum(inside) / len(inside)

    precision = SAMPLE_METRICS["precision"].compute(generated, reference)
    recall = SAMPLE_METRICS["recall"].compute(generated, reference)
    assert precision.value == pytest.approx(share(generated, reference))
    assert recall.value == pytest.approx(share(reference, generated))
    assert 0 < precision.value != recall.value
    spread = math.sqrt(recall.value * (1 - recall.value) / 25)
    assert recall.standard_error == pytest.approx(spread)


@pytest.mark.parametrize("name", ["fid", "kid", "precision", "recall"])
def test_too_few_samples_are_refused(name: str) -> None:
    with pytest.raises(WranganError, match=f"{name}: needs .* one has 1"):
        SAMPLE_METRICS[name].compute(torch.zeros(1, 4), torch.zeros(9, 4))


def test_resize_by_the_rule_of_tensorflow_1() -> None:
    image = torch.rand(1, 1, 5, 7)
    out = as_tensorflow_resizes(image, 9)
    for i, j in ((0, 0), (3, 5), (8, 8)):
        y, x = i * 5 / 9, j * 7 / 9
        top, left = int(y), int(x)
        below, right = min(top + 1, 4), min(left + 1, 6)
        p, q = y - top, x - left
        rows = [(1 - q) * image[0, 0, r, left] + q * image[0, 0, r, right] for r in (top, below)]
        assert out[0, 0, i, j].item() == pytest.approx(((1 - p) * rows[0] + p * rows[1]).item(), abs=1e-6)


@needs_fidelity
def test_resize_equals_torch_fidelity() -> None:
    compat = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    image = torch.rand(2, 3, 64, 48) * 255
    expected = compat.interpolate_bilinear_2d_like_tensorflow1x(image, size=(299, 299), align_corners=False)
    assert torch.allclose(as_tensorflow_resizes(image, 299), expected, atol=1e-2)


@needs_inception
def test_inception_features_do_not_depend_on_the_batch() -> None:
    inception = load_inception()
    images = torch.rand(2, 3, 16, 16) * 2.4 - 1.2
    together = inception(images)
    assert together.shape == (2, 2048)
    assert (together >= 0).all()
    assert torch.allclose(inception(images[1:])[0], together[1], atol=1e-3)
    assert torch.equal(inception(images.clamp(-1, 1)), together)  # 8 bits: what a file can hold


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(WranganError, match="not finite"):
        extract_features(lambda images: images.flatten(1) * math.nan, [torch.ones(2, 3, 2, 2)])
    with pytest.raises(WranganError, match="no images"):
        extract_features(lambda images: images, [])


def test_mean_interval() -> None:
    values = list(np.random.default_rng(3).normal(5, 2, 400))
    mean, interval = mean_interval(values)
    assert mean == pytest.approx(np.mean(values))
    assert interval is not None
    half = 1.96 * np.std(values) / 20  # normal theory
    assert interval == pytest.approx((mean - half, mean + half), abs=0.03)
    assert mean_interval(values)[1] == interval
    assert mean_interval([2.0]) == (2.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_registry_knows_kinds_and_protocols() -> None:
    assert set(PAIR_METRICS) == {"mse", "psnr", "ms-ssim", "identity", *PERCEPTUAL_NAMES}
    assert "[-1, 1]" in PAIR_METRICS["mse"].protocol
    for name in ("ms-ssim", *PERCEPTUAL_NAMES):
        assert "below 161 px enlarged bilinearly to 256" in PAIR_METRICS[name].protocol
    for metric in SAMPLE_METRICS.values():
        assert "below 161 px enlarged bilinearly to 256" in metric.protocol
    assert [m.name for m in pair_metrics(["psnr", "mse", "psnr"])] == ["psnr", "mse"]
    with pytest.raises(UsageError, match="'ssim': expected one of mse"):
        pair_metrics(["ssim"])
    with pytest.raises(UsageError, match="--codes and --photos"):
        sample_metrics(["mse"])
    with pytest.raises(UsageError, match="leave out"):
        pair_metrics(["fid"])


def test_generated_images_do_not_depend_on_the_batch(tiny_model: Model) -> None:
    for epsilon in (0.0, 1.0):
        small = torch.cat(list(generated_images(tiny_model, 5, seed=3, batch=2, epsilon=epsilon)))
        whole = torch.cat(list(generated_images(tiny_model, 5, seed=3, batch=8, epsilon=epsilon)))
        assert small.shape == (5, 3, 16, 16)
        assert torch.allclose(small, whole, atol=1e-5)
        other = torch.cat(list(generated_images(tiny_model, 5, seed=4, epsilon=epsilon)))
        assert not torch.allclose(other, whole, atol=1e-2)
    plain = torch.cat(list(generated_images(tiny_model, 5, seed=3)))
    assert not torch.allclose(plain, torch.cat(list(generated_images(tiny_model, 5, seed=3, epsilon=1.0))))


def test_reference_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    features = torch.rand(7, 2048)
    save_reference(path, Reference(features, "held-out.zip", 64))
    back = load_reference(path, 64)
    assert torch.equal(back.features, features.half().float())
    assert (back.source, back.resolution) == ("held-out.zip", 64)
    with pytest.raises(FileError, match="64 px, expected 32 px"):
        load_reference(path, 32)
    save_reference(path, Reference(torch.rand(7, 5), "x", 64))
    with pytest.raises(FileError, match=r"expected finite features \(N, 2048\)"):
        load_reference(path, 64)
    path.write_bytes(b"nonsense")
    with pytest.raises(FileError, match="not a readable safetensors"):
        load_reference(path, 64)


def test_features_of_an_image_set_are_kept_by_content(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    images = ImageSet(pixels, list("abcde"), [])
    calls: list[int] = []

    def network(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return batch.flatten(1)

    first = samples.image_set_features(images, network, batch=2, cache_dir=tmp_path)
    assert calls == [2, 2, 1]
    assert torch.allclose(first, images.batch(range(5)).flatten(1))
    assert torch.equal(samples.image_set_features(images, network, cache_dir=tmp_path), first)
    assert calls == [2, 2, 1]
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"broken")  # made again
    assert torch.equal(samples.image_set_features(images, network, cache_dir=tmp_path), first)
    other = ImageSet(255 - pixels, list("abcde"), [])
    assert not torch.equal(samples.image_set_features(other, network, cache_dir=tmp_path), first)
