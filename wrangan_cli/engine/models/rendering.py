"""Render one image per row of offsets to a generator's weights, noise maps, or any parameter."""

from typing import Any

from torch import Tensor, cat, nn
from torch.func import functional_call

from wrangan_cli.engine.models.generator import Generator, NoiseInput, Offsets


def synthesize(
    generator: Generator,
    w: Tensor,
    epsilon: Offsets | None = None,
    delta: Offsets | None = None,
    noise: Offsets | None = None,
    parameters: Offsets | None = None,
    without_noise: bool = False,
    side: int | None = None,
) -> Tensor:
    """Images (B, 3, R, R), not clipped, of a generator that may differ from image to image.

    w, epsilon, delta, side: as `Generator.synthesis` takes them, with a batch axis. noise: by the
    number of the noise input ("0", "1", …), (B, side, side) added to the stored map. parameters: by
    name in the state dict, (B, *shape) added to the parameter; images are then rendered one by one,
    since a convolution has the weights of one generator. without_noise: leave out all noise. Gradients
    flow to all inputs.
    """
    maps: Any = "none" if without_noise else noise_maps(generator, noise) if noise else "const"
    if not parameters:
        return generator.synthesis(w, epsilon=epsilon, delta=delta, noise=maps, side=side)
    own = dict(generator.named_parameters())
    synthesis, images = _Synthesis(generator), []
    # Unbound at once: the gradient of each value[row] would be as large as the whole batch.
    rows = {name: value.unbind() for name, value in parameters.items()}
    epsilons, deltas = _ones(epsilon), _ones(delta)
    for row, one in enumerate(w.split(1)):
        tuned = {f"generator.{name}": own[name] + value[row] for name, value in rows.items()}
        given = {
            "epsilon": {name: values[row] for name, values in epsilons.items()},
            "delta": {name: values[row] for name, values in deltas.items()},
            "noise": maps if isinstance(maps, str) else [m[row : row + 1] if len(m) > 1 else m for m in maps],
            "side": side,
        }
        images.append(functional_call(synthesis, tuned, (one,), given))
    return cat(images)


def _ones(offsets: Offsets | None) -> dict[str, tuple[Tensor, ...]]:
    """Each row separately, with its batch axis."""
    return {name: value.split(1) for name, value in (offsets or {}).items()}


def noise_maps(generator: Generator, noise: Offsets) -> list[Tensor]:
    """The map of each noise input: (B, 1, side, side), or (1, 1, side, side) for the stored one."""
    return [
        given.map + noise[number][:, None] if number in noise else given.map
        for number, given in generator.noise_inputs().items()
    ]


def active_noise(generator: Generator) -> dict[str, NoiseInput]:
    """The noise inputs that affect the image, those of nonzero strength; none in a generator without
    noise."""
    return {number: given for number, given in generator.noise_inputs().items() if bool(given.strength.any())}


class _Synthesis(nn.Module):
    """A module that calls `synthesis`, for functional_call."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, w: Tensor, **given: Any) -> Tensor:
        return self.generator.synthesis(w, **given)
