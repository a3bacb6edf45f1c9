"""Random weights θ = μ + σ⊙ε of the last styled convolutions (paper, section 3.3–3.4)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.models.stylegan2 import Generator, ModulatedConv2d

SMALL_STD = 1e-3
"""Below this |σ| a weight counts as frozen (paper, Table 6)."""
_TINY = 1e-8


def randomized_layers(generator: Generator) -> dict[str, ModulatedConv2d]:
    """The convolutions that have a σ, by layer name, in order of use."""
    return {
        name: layer.conv for name, layer in generator.styled_convs().items() if layer.conv.std is not None
    }


def tunable_layers(generator: Generator) -> dict[str, ModulatedConv2d]:
    """What weight tuning may move: the random layers, or all styled convs where none is."""
    return randomized_layers(generator) or {
        name: layer.conv for name, layer in generator.styled_convs().items()
    }


def num_randomized(generator: Generator) -> int:
    """Random weights in total."""
    return sum(conv.weight.numel() for conv in randomized_layers(generator).values())


def draw_epsilon(
    generator: Generator,
    batch: int | None = None,
    scale: float = 1.0,
    rng: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """ε ~ N(0, scale²) by layer name.

    batch=None: (O, I, 3, 3), one draw for all images of a call (Algorithm 2);
    batch=B: (B, O, I, 3, 3), one draw per image.
    Raises UsageError for a generator without random weights.
    """
    if not randomized_layers(generator):
        raise UsageError("the model has no random weights: there is nothing that epsilon could scale")
    leading = () if batch is None else (batch,)
    drawn = {}
    for name, conv in randomized_layers(generator).items():
        shape = (*leading, *conv.weight.shape[1:])
        values = torch.randn(shape, generator=rng, device=conv.weight.device if rng is None else rng.device)
        drawn[name] = values.to(conv.weight.device) * scale
    return drawn


def randomize(generator: Generator, num_layers: int, std: float = 1.0) -> Generator:
    """A copy of `generator` whose last `num_layers` styled convs have σ = `std`.

    μ starts at the given weights (Algorithm 2). An existing σ is replaced.
    Raises ValueError if there are fewer layers.
    """
    config = replace(generator.config, randomized_layers=num_layers)
    random = Generator(config)
    state = {k: v for k, v in generator.state_dict().items() if not k.endswith(".conv.std")}
    random.load_state_dict(state, strict=False)
    random.to(generator.conv1.conv.weight.device)
    for conv in randomized_layers(random).values():
        assert isinstance(conv.std, nn.Parameter)
        nn.init.constant_(conv.std, std)
    return random


def parametrise_std(generator: Generator, form: str) -> None:
    """Train σ in another form, in place: `raw` (as it is), `softplus` or `log`, which keep it positive.

    The σ of before is kept, without its sign. Undone by `with_plain_std`.
    """
    if form == "raw":
        return
    for conv in randomized_layers(generator).values():
        parametrize.register_parametrization(conv, "std", _Softplus() if form == "softplus" else _Log())


def with_plain_std(generator: Generator) -> Generator:
    """The generator with σ as plain weights: itself, or a copy where σ has another form."""
    if not any(parametrize.is_parametrized(conv, "std") for conv in randomized_layers(generator).values()):
        return generator
    # Not a deep copy: it would share the class that parametrize has made, and spoil the original.
    state = {k: v for k, v in generator.state_dict().items() if ".parametrizations." not in k}
    state |= {
        f"{n}.conv.std": conv.std.detach()
        for n, conv in randomized_layers(generator).items()
        if conv.std is not None
    }
    plain = Generator(generator.config)
    plain.load_state_dict(state)
    return plain.to(generator.conv1.conv.weight.device).train(generator.training)


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


def small_std_share(generator: Generator) -> dict[str, float]:
    """Share of |σ| < 1e-3 in each random layer, 0…1 (paper, Table 6)."""
    return {
        name: (conv.std.detach().abs() < SMALL_STD).double().mean().item()
        for name, conv in randomized_layers(generator).items()
        if conv.std is not None
    }
