"""Perceptual distances: parity with the published code, gradients, weights that are not there."""

import dataclasses
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.models import perceptual
from wrangan_cli.engine.models.perceptual import (
    BlurPool,
    PerceptualDistance,
    for_loss,
    for_metric,
    load_perceptual,
)

needs_st_lpips = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="package stlpips_pytorch is not installed"
)

# What stlpips_pytorch 0.0.2 itself (LPIPS(net, variant="shift_tolerant")) gives for `waves`.
PUBLISHED = {
    ("alex", 64): 0.7585451006889343,
    ("alex", 256): 0.7645316123962402,
    ("vgg", 64): 0.6924417614936829,
    ("vgg", 256): 0.7704325914382935,
}


def waves(side: int) -> tuple[Tensor, Tensor]:
    """Two different pictures by formula."""
    axis, channel = torch.arange(side, dtype=torch.float64), torch.arange(3, dtype=torch.float64)
    y, x, c = torch.meshgrid(axis, axis, channel, indexing="ij")

    def wave(a: float, b: float, phase: float) -> Tensor:
        values = torch.sin(a * x + b * y + phase * c) * torch.cos(b * x * y / side)
        return values.permute(2, 0, 1)[None].float()

    return wave(0.3, 0.11, 1.0), wave(0.25, 0.4, 2.0)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def shift_tolerant(request: pytest.FixtureRequest) -> PerceptualDistance:
    return load_perceptual(f"st-lpips-{request.param}")


@needs_st_lpips
def test_shift_tolerant_equals_the_published_code(shift_tolerant: PerceptualDistance) -> None:
    for (net, side), expected in PUBLISHED.items():
        if shift_tolerant.name == f"st-lpips-{net}":
            with torch.no_grad():
                assert shift_tolerant(*waves(side)).item() == pytest.approx(expected, abs=1e-5)


@needs_st_lpips
def test_distance_per_image_zero_at_equality_and_independent_of_the_batch(
    shift_tolerant: PerceptualDistance,
) -> None:
    a, b = torch.rand(3, 3, 48, 48) * 2 - 1, torch.rand(3, 3, 48, 48) * 2 - 1
    with torch.no_grad():
        together = shift_tolerant(a, b)
        alone = torch.cat([shift_tolerant(x[None], y[None]) for x, y in zip(a, b, strict=True)])
        assert together.shape == (3,)
        assert (shift_tolerant(a, a) == 0).all()
        assert torch.allclose(together, alone, atol=1e-6)
        split = shift_tolerant.distance(shift_tolerant.features(a), shift_tolerant.features(b))
        assert torch.equal(together, split)


@needs_st_lpips
def test_gradient_reaches_the_image_and_no_weight(shift_tolerant: PerceptualDistance) -> None:
    image = torch.full((1, 3, 40, 40), -1.0, requires_grad=True)
    target = torch.rand(1, 3, 40, 40)
    shift_tolerant.train()(image, target).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0
    assert not shift_tolerant.training
    assert all(not p.requires_grad and p.grad is None for p in shift_tolerant.parameters())


def test_dead_pixels_have_finite_gradients() -> None:
    net = PerceptualDistance("st-lpips-alex", torch.nn.ModuleList([torch.nn.ReLU()]), [torch.ones(3)])
    image = torch.full((1, 3, 4, 4), -1.0, requires_grad=True)  # all negative: nothing is left
    net(image, torch.rand(1, 3, 4, 4)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_distance_by_hand() -> None:
    heads = torch.tensor([0.5, 0.0, 2.0])
    net = PerceptualDistance("st-lpips-alex", torch.nn.ModuleList([torch.nn.Identity()]), [heads])
    x, y = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7)

    def unit(images: Tensor) -> Tensor:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        scaled = (images - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
        return scaled / scaled.norm(dim=1, keepdim=True)

    expected = ((unit(x) - unit(y)).square() * heads.view(1, 3, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(net(x, y), expected, atol=1e-6)


@pytest.mark.parametrize("side", [3, 8, 9])
def test_blur_pool_is_a_reflected_binomial_at_every_second_px(side: int) -> None:
    x = torch.rand(1, 2, side, side)
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    count = (side + 1) // 2 + 1
    out = BlurPool(2)(x)
    assert out.shape == (1, 2, count, count)
    for i in range(count):
        for j in range(count):
            patch = padded[0, 1, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            row = torch.tensor([1.0, 2.0, 1.0]) / 4
            assert out[0, 1, i, j].item() == pytest.approx((row @ patch @ row).item(), abs=1e-6)


def test_sizes_of_loss_and_metric() -> None:
    assert for_loss(torch.zeros(1, 3, 64, 64)).shape[-2:] == (64, 64)
    assert for_loss(torch.zeros(1, 3, 16, 16)).shape[-2:] == (32, 32)
    large = torch.rand(1, 3, 512, 512)
    assert torch.allclose(for_loss(large), F.avg_pool2d(large, 2), atol=1e-6)
    assert for_loss(large, max_side=128).shape[-2:] == (128, 128)
    assert for_metric(torch.zeros(1, 3, 160, 160)).shape[-2:] == (256, 256)
    assert for_metric(torch.zeros(1, 3, 161, 161)).shape[-2:] == (161, 161)
    assert for_metric(torch.zeros(1, 3, 64, 128)).shape[-2:] == (256, 512)
    small = torch.rand(1, 3, 128, 128)
    expected = F.interpolate(small, size=(256, 256), mode="bilinear", align_corners=False)
    assert torch.equal(for_metric(small), expected)


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match=r"lpips-squeeze.*st-lpips-alex"):
        load_perceptual("lpips-squeeze")


@pytest.mark.parametrize("name", ["lpips-vgg", "lpips-alex"])
def test_missing_backbone_names_file_places_and_choices(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "mine"))
    with pytest.raises(WranganError) as raised:
        load_perceptual(name)
    message = str(raised.value)
    file = perceptual._BACKBONES[name].name
    for part in (name, file, str(tmp_path / "mine"), str(tmp_path / "hub"), "or choose", "st-lpips-alex"):
        assert part in message
    assert "\n" not in message


def test_missing_carrier_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.ENVIRONMENT, raising=False)
    missing = dataclasses.replace(weights.ST_LPIPS_ALEX, package="no_such_package")
    monkeypatch.setattr(weights, "ST_LPIPS_ALEX", missing)
    with pytest.raises(WranganError, match=r"alex_shift_tolerant.pth.*not set.*not installed.*wrangan fetch"):
        load_perceptual("st-lpips-alex")


def test_wrong_file_is_refused_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / weights.ST_LPIPS_ALEX.name).write_bytes(b"something else")
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path))
    with pytest.raises(FileError, match=r"sha256.*expected b356b382f960"):
        load_perceptual("st-lpips-alex")


@needs_st_lpips
def test_carrier_package_is_not_imported() -> None:
    import sys

    weights.find_weights(weights.ST_LPIPS_ALEX, "test")
    assert "stlpips_pytorch" not in sys.modules


def torchvision_state(net: str) -> dict[str, Tensor]:
    """Keys and shapes of torchvision's file; the classifier, which is not read, without values."""
    import torchvision

    with torch.device("meta"):
        network = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net](weights=None)
    return {
        key: torch.randn(value.shape) / max(1, value[0].numel()) ** 0.5
        if key.startswith("features.")
        else torch.zeros(1).expand(value.shape)
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize(("net", "place"), [("alex", "folder"), ("alex", "hub"), ("vgg", "folder")])
def test_lpips_from_files_with_torchvisions_keys(
    net: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"lpips-{net}"
    state = torchvision_state(net)
    folder = tmp_path / "mine" if place == "folder" else tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    path = folder / perceptual._BACKBONES[name].name
    torch.save(state, path)
    digest = sha256(path)[:8]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "mine"))
    with pytest.raises(FileError, match="sha256"):  # random weights are not torchvision's
        load_perceptual(name)
    file = dataclasses.replace(perceptual._BACKBONES[name], sha256=digest)
    monkeypatch.setitem(perceptual._BACKBONES, name, file)
    own = load_perceptual(name)
    x, y = torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(own(x, y), lpips_by_package(net, state, x, y), atol=1e-5)


def lpips_by_package(net: str, state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The package's own forward pass, its backbone filled from `state`."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    package = package.to_empty(device="cpu")
    path = Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    own = package.state_dict()
    for key, value in own.items():
        if key.startswith("net."):
            value.copy_(state["features." + key.split(".", 2)[2]])
        elif key in heads:
            value.copy_(heads[key])
        elif key.startswith("lins."):  # the same layers as lin0…4
            value.copy_(heads[key.replace("lins.", "lin")])
    package.scaling_layer = lpips.ScalingLayer()  # its constants were lost on the meta device
    return package.eval()(x, y).flatten()


def test_broken_weights_name_the_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_state("alex")
    del state["features.3.bias"]
    path = tmp_path / weights.TORCHVISION_ALEX.name
    torch.save(state, path)
    file = dataclasses.replace(weights.TORCHVISION_ALEX, sha256=sha256(path)[:8])
    monkeypatch.setitem(perceptual._BACKBONES, "lpips-alex", file)
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path))
    with pytest.raises(FileError, match=r"lacks the tensor features\.3\.bias"):
        load_perceptual("lpips-alex")
