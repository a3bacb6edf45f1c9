"""Perceptual distances between images, behind one small interface.

Four distances, none of which can replace another:

- `lpips-vgg`, `lpips-alex`: LPIPS 0.1 (Zhang et al. 2018) by package lpips. The linear
  heads are in the package, the ImageNet weights of the backbone are not.
- `st-lpips-vgg`, `st-lpips-alex`: shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022), with
  backbone and heads from the package stlpips_pytorch. The backbone was trained for the metric, so its
  numbers are not comparable with those of LPIPS.
"""

import pickle
import warnings
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.choices import Perceptual
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError, cause_of
from wrangan_cli.engine.ops.image_conv import ImageConv2d, with_frozen_convs

PERCEPTUAL_NAMES = get_args(Perceptual)
SMALLEST = 32
"""Side in px below which the deepest feature maps would vanish."""
LOSS_SIDE = 256
METRIC_SIDE, METRIC_SMALL = 256, 161
"""As metrics, images with a side below METRIC_SMALL px are enlarged to METRIC_SIDE."""

_TINY = 1e-10
_BACKBONES = {"lpips-vgg": weights.TORCHVISION_VGG, "lpips-alex": weights.TORCHVISION_ALEX}


class PerceptualDistance(nn.Module):
    """Sum over feature maps of the weighted squared difference of unit feature vectors.

    Frozen and in evaluation mode; gradients flow to the images.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, taps: nn.ModuleList, heads: list[Tensor]) -> None:
        """taps: each maps the output of the previous one to the next feature map; heads:
        the non-negative weight of each map's channels, (C,)."""
        super().__init__()
        self.name = name
        self.taps = taps
        # Weighting a squared difference by v equals weighting the features by √v.
        for index, head in enumerate(heads):
            self.register_buffer(f"root{index}", head.detach().float().clamp_min(0).sqrt()[:, None, None])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":  # noqa: ARG002
        """Stays in evaluation mode."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images (B, 3, H, W) in [-1, 1], sides ≥ 32 px.

        Each is (B, C, h, w): vectors of length 1 over C, times the roots of the channel
        weights, so that distances are plain squared differences.
        """
        hidden, maps = (images - self.shift) / self.scale, []
        for index, tap in enumerate(self.taps):
            hidden = tap(hidden)
            # Bounded before the root, whose slope at 0 (a dead pixel) is infinite.
            length = hidden.square().sum(dim=1, keepdim=True).clamp_min(_TINY**2).sqrt()
            # No division: its gradient needs three more passes over the whole map.
            maps.append(hidden * (length + _TINY).reciprocal() * getattr(self, f"root{index}"))
        return maps

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distance per image (B,) of two lists of `features`."""
        parts = [(x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in zip(a, b, strict=True)]
        return torch.stack(parts).sum(dim=0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance per image (B,) of images (B, 3, H, W) in [-1, 1]."""
        return self.distance(self.features(x), self.features(y))


def check_perceptual(name: str) -> None:
    """UsageError for a name that is not in PERCEPTUAL_NAMES."""
    if name not in PERCEPTUAL_NAMES:
        raise UsageError(f"perceptual distance {name!r}: expected one of {', '.join(PERCEPTUAL_NAMES)}")


def load_perceptual(name: str, device: torch.device | str = "cpu") -> PerceptualDistance:
    """The distance `name`, one of PERCEPTUAL_NAMES, on `device`.

    Raises UsageError for another name, WranganError if its weights are missing
    (naming the other choices), FileError if they are not the expected ones.
    """
    check_perceptual(name)
    others = ", ".join(other for other in PERCEPTUAL_NAMES if other != name)
    build = _shift_tolerant if name.startswith("st-") else _lpips
    net = build(name, others).to(device)
    return with_fast_layout(net)


def with_fast_layout(net: PerceptualDistance) -> PerceptualDistance:
    """`net`, converted in place to the fastest memory layout for its device (docs/benchmarks.md): on the CPU,
    LPIPS's VGG to that of the compiled kernels, and the others to channels_last, about 10 % faster there."""
    if net.shift.device.type != "cpu":
        return net
    if net.name != "lpips-vgg":
        net.to(memory_format=torch.channels_last)
    if net.name.startswith("lpips"):
        with_frozen_convs(net)
    return net


def for_loss(images: Tensor, max_side: int = LOSS_SIDE) -> Tensor:
    """Images (B, 3, H, W) for a loss: unchanged if their size is within bounds.

    A side above `max_side` px is reduced to it by area averaging; one below 32 px (where the
    deepest feature maps would vanish) is enlarged to 32 bilinearly.
    """
    height, width = images.shape[-2:]
    if max(height, width) > max_side:
        factor = max_side / max(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        images = F.interpolate(images, size=size, mode="area")
    return _enlarged(images, SMALLEST, SMALLEST)


def for_metric(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) for a metric: a side below 161 px is enlarged bilinearly
    (align_corners=False) to 256, the other in proportion; larger images are unchanged."""
    return _enlarged(images, METRIC_SMALL, METRIC_SIDE)


def _enlarged(images: Tensor, below: int, side: int) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) >= below:
        return images
    factor = side / min(height, width)
    size = (round(height * factor), round(width * factor))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _lpips(name: str, others: str) -> PerceptualDistance:
    file = _BACKBONES[name]
    path = weights.find_weights(file, name, others)
    state = read_state(path)
    try:
        import lpips
    except ImportError as error:
        raise WranganError(f"{name}: package lpips cannot be imported ({error})") from error
    net = name.removeprefix("lpips-")
    # On the meta device nothing is downloaded or initialised; the files fill it below.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    taps = nn.ModuleList(getattr(package.net, f"slice{index}") for index in range(1, 6))
    taps = taps.to_empty(device="cpu")
    own = {f"features.{key.split('.', 1)[1]}": value for key, value in taps.state_dict().items()}
    _fill(own, state, path)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    return PerceptualDistance(name, taps, _heads(read_state(heads), len(taps), heads))


class BlurPool(nn.Module):
    """Smooth a map of `channels` with the 3×3 binomial filter and keep every second px.

    The map is reflected by 2 px on each side, so n px become ⌊(n + 1) / 2⌋ + 1.
    """

    filter: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        # Not part of the state: the copies of this filter in the file are not read.
        self.register_buffer("filter", torch.outer(row, row).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌊(H + 1) / 2⌋ + 1, ⌊(W + 1) / 2⌋ + 1); sides ≥ 3."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filter, stride=2, groups=x.shape[1])


def _shift_tolerant(name: str, others: str) -> PerceptualDistance:
    vgg = name.endswith("vgg")
    file = weights.ST_LPIPS_VGG if vgg else weights.ST_LPIPS_ALEX
    path = weights.find_weights(file, name, others)
    state = read_state(path)
    taps = shift_tolerant_taps(vgg)
    # `net.slice2.6.weight`: 6 is the index in the whole network, as in the keys here.
    flat = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith("net.slice")}
    _fill({key.split(".", 1)[1]: value for key, value in taps.state_dict().items()}, flat, path)
    return PerceptualDistance(name, taps, _heads(state, len(taps), path))


def shift_tolerant_taps(vgg: bool) -> nn.ModuleList:
    """The five stages of shift-tolerant AlexNet or VGG16, with layers named by index.

    Differences from torchvision's networks: every stride is 1, and a BlurPool halves the side (in
    AlexNet also after the first convolution, before its ReLU); convolutions keep their
    usual zero padding.
    """
    stages: list[list[nn.Module]] = []
    if vgg:
        channels = 3
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            stage: list[nn.Module] = [nn.MaxPool2d(2, stride=1), BlurPool(channels)] if stages else []
            for _ in range(depth):
                conv = nn.Conv2d if stages or stage else ImageConv2d
                stage += [conv(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            stages.append(stage)
    else:
        stages = [
            [ImageConv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU(inplace=True)],
            [nn.MaxPool2d(3, 1), BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)],
            [nn.MaxPool2d(3, 1), BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)],
        ]
    taps, count = nn.ModuleList(), 0
    for stage in stages:
        tap = nn.Sequential()
        for layer in stage:
            tap.add_module(str(count), layer)
            count += 1
        taps.append(tap)
    return taps


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; nothing in it is executed. FileError for other files."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise FileError(path, f"not readable as weights ({cause_of(error)})") from error
    if not isinstance(state, dict):
        raise FileError(path, "not a state dict")
    return state


def _heads(state: dict[str, Tensor], count: int, path: Path) -> list[Tensor]:
    try:
        return [state[f"lin{index}.model.1.weight"].flatten() for index in range(count)]
    except KeyError as error:
        raise FileError(path, f"lacks the tensor {error}") from error


def _fill(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    for key, tensor in own.items():
        if key not in given:
            raise FileError(path, f"lacks the tensor {key}")
        if given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)}, expected {tuple(tensor.shape)}"
            raise FileError(path, f"{key} has shape {shapes}")
        with torch.no_grad():
            tensor.copy_(given[key])
