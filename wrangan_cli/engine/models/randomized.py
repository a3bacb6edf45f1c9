"""Random weights θ = μ + σ⊙ε of some styled convolutions (paper, section 3.3–3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wrangan_cli.engine.base.choices import StdForm
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.models.architectures import build_generator
from wrangan_cli.engine.models.generator import Generator, RandomLayers, StyledWeight

SMALL_STD = 1e-3
"""A weight with |σ| below this counts as frozen (paper, Table 6)."""
_TINY = 1e-8


def tunable_weights(generator: Generator) -> dict[str, StyledWeight]:
    """The weights that weight tuning moves: the random ones, or if there are none, those of all styled
    convolutions."""
    return generator.random_weights() or generator.weights()


def num_randomized(generator: Generator) -> int:
    """Total number of random weights."""
    return sum(weight.shape.numel() for weight in generator.random_weights().values())


def draw_epsilon(
    generator: Generator,
    batch: int | None = None,
    scale: float = 1.0,
    rng: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """ε ~ N(0, scale²) by the weight's name.

    batch=None: (O, I, k, k), one sample for all images of a call (Algorithm 2);
    batch=B: (B, O, I, k, k), one sample per image.
    Raises UsageError for a generator without random weights.
    """
    weights = generator.random_weights()
    if not weights:
        raise UsageError("the model has no random weights, so epsilon does not apply")
    leading = () if batch is None else (batch,)
    drawn = {}
    for name, weight in weights.items():
        device = weight.mean.device
        values = torch.randn(
            (*leading, *weight.shape), generator=rng, device=device if rng is None else rng.device
        )
        drawn[name] = values.to(device) * scale
    return drawn


def randomize(generator: Generator, which: RandomLayers, std: float = 1.0) -> Generator:
    """A copy of `generator` in which the weights `which` have σ = `std`, and no others have one.

    μ starts at the given weights (Algorithm 2). An existing σ is replaced.
    Raises ValueError if there are no such layers.
    """
    random = build_generator(generator.config.with_random(which))
    random.load_state_dict(_without_std(generator), strict=False)
    random.to(generator.device)
    for weight in random.random_weights().values():
        assert weight.std is not None
        nn.init.constant_(weight.std, std)
    return random


def _without_std(generator: Generator) -> dict[str, Tensor]:
    """The state dict without σ, whatever the form in which it is trained."""
    of_std = tuple(
        f"{weight.key}.{name}"
        for weight in generator.random_weights().values()
        for name in ("std", "parametrizations.")
    )
    return {name: value for name, value in generator.state_dict().items() if not name.startswith(of_std)}


def parametrise_std(generator: Generator, form: StdForm) -> None:
    """Train σ in another form, in place: `raw` (itself), `softplus` or `log`, which keep it positive.

    The previous σ is kept, without its sign. Undone by `with_plain_std`.
    """
    if form == "raw":
        return
    for weight in generator.random_weights().values():
        parametrize.register_parametrization(
            weight.owner, "std", _Softplus() if form == "softplus" else _Log()
        )


def with_plain_std(generator: Generator) -> Generator:
    """The generator with σ as plain weights: itself, or a copy if σ has another form."""
    weights = generator.random_weights().values()
    if not any(parametrize.is_parametrized(weight.owner, "std") for weight in weights):
        return generator
    # Not a deep copy, which would share the class made by parametrize, and so damage the original.
    state = _without_std(generator)
    state |= {f"{weight.key}.std": weight.std.detach() for weight in weights if weight.std is not None}
    plain = build_generator(generator.config)
    plain.load_state_dict(state)
    return plain.to(generator.device).train(generator.training)


class _Softplus(nn.Module):
    """σ = log(1 + exp(ρ))."""

    def forward(self, rho: Tensor) -> Tensor:
        return F.softplus(rho)

    def right_inverse(self, std: Tensor) -> Tensor:
        std = std.abs().clamp_min(_TINY)
        return std + (-torch.expm1(-std)).log()


class _Log(nn.Module):
    """σ = exp(ρ)."""

    def forward(self, rho: Tensor) -> Tensor:
        return rho.exp()

    def right_inverse(self, std: Tensor) -> Tensor:
        return std.abs().clamp_min(_TINY).log()


def small_std_fraction(generator: Generator) -> dict[str, float]:
    """Fraction of |σ| < 1e-3 in each random weight, 0…1 (paper, Table 6)."""
    return {
        name: (weight.std.detach().abs() < SMALL_STD).double().mean().item()
        for name, weight in generator.random_weights().items()
        if weight.std is not None
    }
