"""Stand-ins for what tests must not depend on, such as a perceptual distance without weight files."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.method_settings import all_settings, applicable, inversion_settings
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.models.perceptual import PerceptualDistance


def fake_perceptual() -> PerceptualDistance:
    """Two random convolutions under the real class: per-image, frozen, differentiable."""
    torch.manual_seed(7)
    taps = nn.ModuleList([nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Conv2d(8, 8, 3)])
    return PerceptualDistance("fake", taps, [torch.rand(8), torch.rand(8)])


def in_float64(model: Model) -> Model:
    """The model where rounding cannot grow over the steps into what looks like a difference."""
    generator = copy.deepcopy(model.generator).double()
    return dataclasses.replace(model, generator=generator, w_mean=model.w_mean.double())


def make_inverter(model: Model, **settings: object) -> Inverter:
    """An Inverter that starts from the mean of W and uses `fake_perceptual`, in the model's precision.

    A setting that only other methods have is left out, so that one line serves several methods."""
    method = str(settings.get("method", "wrangan"))
    given = {"init": "mean", "steps": 5, **settings}
    unknown = {name: value for name, value in given.items() if name not in all_settings()}
    asked = inversion_settings(**{"method": method, **applicable(method, given), **unknown})
    chosen = asked.with_defaults(model.inversion)
    perceptual = fake_perceptual().to(model.w_mean.dtype) if chosen.perceptual_weight else None
    return Inverter(model, chosen, None, perceptual)


def images_of(count: int = 2, side: int = 16) -> Tensor:
    """Images (count, 3, side, side) that no code of the tiny model gives exactly."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3)) * 1.6 - 0.8


def codes_of(results: list[Code | WranganError]) -> list[Code]:
    """The results of an inversion in which none may fail."""
    codes = [result for result in results if isinstance(result, Code)]
    assert len(codes) == len(results)
    return codes
