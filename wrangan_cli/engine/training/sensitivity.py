"""σ from the sensitivity of a generator's images to its weights: no data, no discriminator.

The perceptual loss of the inversion, L = 2·L2 + LPIPS, is a squared length |r(θ) − r(θ₀)|² of
scaled pixels and features. Around θ₀ a change δ of the weights costs δᵀJᵀJδ (Gauss–Newton, J =
∂r/∂θ). Its diagonal F is estimated by random probes: for v ~ N(0, 1) the square of Jᵀv has the
mean F (Hutchinson). With σᵢ = s / √(Fᵢ + λ) every weight costs the same, s², except those that
hardly matter, whose σ the floor λ bounds. s is found by sampling ε: the mean L between an image at
ε = 0 and one at a sampled ε is to be `distortion`. The root is an exponent of ½;
with 1, σᵢ = s / (Fᵢ + λ), the proportions are those of a diagonal Newton step
(docs/notebook.md says what each does to an inversion).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.models.generator import Generator, RandomLayers
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.models.randomized import draw_epsilon, num_randomized, randomize
from wrangan_cli.engine.training.settings import SensitivitySettings, Tie

L2_WEIGHT = 2.0
"""Weight of the squared error, as in the inversion (paper, section 4)."""
_CALIBRATION_IMAGES = 64
_CLOSE = 0.01
_GUESSES = 40


def randomize_by_sensitivity(
    generator: Generator,
    perceptual: PerceptualDistance,
    layers: RandomLayers,
    settings: SensitivitySettings,
    batch: int = 8,
    seed: int = 0,
    on_image: Callable[[int], None] | None = None,
) -> Generator:
    """A copy of `generator` (any device) whose weights `layers` have a σ by sensitivity.

    μ is the given weights; `on_image` gets the number of probes done. Raises WranganError
    if the images do not depend on the weights.
    """
    random = randomize(generator, layers).eval().requires_grad_(False)
    sensitivity = weight_sensitivity(
        random, perceptual, settings.probes, batch, seed, on_image, settings.side
    )
    set_std(random, tied(sensitivity, settings.tie), settings.floor, settings.exponent)
    scale_std(random, perceptual, settings.distortion, batch, seed, settings.side)
    return random


def weight_sensitivity(
    random: Generator,
    perceptual: PerceptualDistance,
    probes: int,
    batch: int = 8,
    seed: int = 0,
    on_image: Callable[[int], None] | None = None,
    side: int | None = None,
) -> dict[str, Tensor]:
    """F, the mean over images of diag(JᵀJ), by the weight's name, each (O, I, k, k), at ε = 0.

    side: larger images are reduced to it by area averaging.
    `random` has σ = 1 in its random weights, so that gradients of ε are gradients of θ.
    """
    device = random.device
    rng = random_generator(seed)
    total = {
        name: torch.zeros(weight.shape, dtype=torch.float64, device=device)
        for name, weight in random.random_weights().items()
    }
    done = 0
    while done < probes:
        count = min(batch, probes - done)
        w = _draw_w(random, count, rng)
        # One ε per image: squares must be taken before summing over images.
        epsilon = {
            name: torch.zeros((count, *value.shape), device=device, requires_grad=True)
            for name, value in total.items()
        }
        images = random.synthesis(w, epsilon=epsilon, side=side)
        pairing = torch.zeros([], device=device)
        for part in scaled_residuals(images, perceptual):
            probe = torch.randn(part.shape, generator=rng).to(device)
            pairing = pairing + (part * probe).sum()
        gradients = torch.autograd.grad(pairing, list(epsilon.values()))
        for name, gradient in zip(epsilon, gradients, strict=True):
            total[name] += gradient.double().square().sum(dim=0)
        done += count
        if on_image:
            on_image(done)
    return {name: value / probes for name, value in total.items()}


def scaled_residuals(images: Tensor, perceptual: PerceptualDistance) -> list[Tensor]:
    """r: tensors (B, …) whose summed squared differences are 2·L2 + perceptual distance, per image."""
    parts = [images * math.sqrt(L2_WEIGHT / images[0].numel())]
    for feature in perceptual.features(for_loss(images)):
        parts.append(feature / math.sqrt(feature.shape[2] * feature.shape[3]))
    return parts


def tied(sensitivity: dict[str, Tensor], tie: Tie) -> dict[str, Tensor]:
    """F replaced by its mean over each `weight`, `filter` (output channel), `layer`, or over `all`."""
    if tie == "all":
        mean = torch.cat([value.flatten() for value in sensitivity.values()]).mean()
        return {name: mean.expand_as(value) for name, value in sensitivity.items()}
    dims = {"weight": (), "filter": (1, 2, 3), "layer": (0, 1, 2, 3)}[tie]
    if not dims:
        return sensitivity
    return {name: value.mean(dim=dims, keepdim=True).expand_as(value) for name, value in sensitivity.items()}


def set_std(random: Generator, sensitivity: dict[str, Tensor], floor: float, exponent: float = 0.5) -> None:
    """σ in place, in proportion to (F + λ)^-exponent and with the root mean square that the exponent ½ gives;
    λ = floor · mean of F over all random weights."""
    mean = torch.cat([value.flatten() for value in sensitivity.values()]).mean()
    if not mean.isfinite() or mean <= 0:
        raise WranganError("the images do not depend on the weights: no sensitivity can be measured")
    even = {name: sensitivity[name] + floor * mean for name in random.random_weights()}
    std = {name: value.pow(-exponent) for name, value in even.items()}
    # So that the search for the scale begins where it does with ½.
    size = _root_mean_square({name: value.rsqrt() for name, value in even.items()}) / _root_mean_square(std)
    for name, weight in random.random_weights().items():
        assert weight.std is not None
        weight.std.data.copy_(std[name] * size)


def _root_mean_square(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in tensors.values()]).square().mean().sqrt()


@torch.no_grad()
def scale_std(
    random: Generator,
    perceptual: PerceptualDistance,
    distortion: float,
    batch: int = 8,
    seed: int = 0,
    side: int | None = None,
) -> float:
    """Multiply σ by one number, so that sampling ε costs `distortion` on average; returns the cost.

    Measured on 64 generated images (at `side`, as above), each with a different ε. Raises
    WranganError if no factor achieves it.
    """
    rng = random_generator(seed + 1)
    plan = []
    for start in range(0, _CALIBRATION_IMAGES, batch):
        w = _draw_w(random, min(batch, _CALIBRATION_IMAGES - start), rng)
        epsilon = draw_epsilon(random, len(w), rng=rng)
        plan.append((w, epsilon, scaled_residuals(random.synthesis(w, side=side), perceptual)))

    def cost(factor: float) -> float:
        total = 0.0
        for w, epsilon, still in plan:
            moved = random.synthesis(w, epsilon={k: v * factor for k, v in epsilon.items()}, side=side)
            parts = zip(scaled_residuals(moved, perceptual), still, strict=True)
            total += sum((a - b).square().sum().item() for a, b in parts)
        return total / _CALIBRATION_IMAGES

    # The first guess is Gauss–Newton's: while it is small, the cost grows with the square.
    # Rendering all images takes most of the time: each guess follows the slope between the previous two, on
    # logarithmic axes, within the bounds known so far.
    factor = 1e-2 * _factor_of_unit_cost(random)
    reached, slope, low, high = cost(factor), 2.0, 0.0, math.inf
    for _ in range(_GUESSES):
        if abs(reached / distortion - 1) < _CLOSE:
            break
        low, high = (factor, high) if reached < distortion else (low, factor)
        guess = factor * (distortion / max(reached, 1e-30)) ** (1 / slope)
        if not low < guess < high:
            guess = math.sqrt(low * high) if low and high < math.inf else (low * 4 or high / 4)
        before, passed = factor, reached
        factor, reached = guess, cost(guess)
        if reached > 0 and passed > 0:
            steepness = math.log(reached / passed) / math.log(factor / before)
            slope = min(max(steepness, 0.3), 2.0)
    else:
        raise WranganError(f"no σ makes the images change by {distortion}")
    for weight in random.random_weights().values():
        assert weight.std is not None
        weight.std.data.mul_(factor)
    return reached


def _factor_of_unit_cost(random: Generator) -> float:
    """s for which the weights' costs, s² each where F ≫ λ, add up to 1."""
    return 1 / math.sqrt(num_randomized(random))


@torch.no_grad()
def _draw_w(generator: Generator, count: int, rng: torch.Generator) -> Tensor:
    z = torch.randn(count, generator.config.style_dim, generator=rng)
    return generator.mapping(z.to(generator.device))
