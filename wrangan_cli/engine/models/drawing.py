"""One image for each row of offsets to a generator: of its weights, noise maps, or any parameter."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, cat, nn
from torch.func import functional_call

from wrangan_cli.engine.models.stylegan2 import Generator

Offsets = Mapping[str, Tensor]


def draw(
    generator: Generator,
    w: Tensor,
    epsilon: Offsets | None = None,
    delta: Offsets | None = None,
    noise: Offsets | None = None,
    parameters: Offsets | None = None,
    without_noise: bool = False,
) -> Tensor:
    """Images (B, 3, R, R), not clipped, of a generator that may differ from image to image.

    w, epsilon, delta: as `Generator.synthesis` takes them, with a batch axis. noise: by the index of
    the styled convolution ("0", "1", …), (B, side, side) added to the stored map. parameters: by
    name in the state dict, (B, *shape) added to the parameter; images are then drawn one by one,
    since no convolution serves several generators. without_noise: leave all noise out. Gradients
    flow to all that is given.
    """
    maps: Any = "none" if without_noise else noise_maps(generator, noise) if noise else "const"
    if not parameters:
        return generator.synthesis(w, epsilon=epsilon, delta=delta, noise=maps)
    own = dict(generator.named_parameters())
    synthesis, images = _Synthesis(generator), []
    # Taken apart at once: the gradient of value[row] is as large as the whole batch, for every row.
    rows = {name: value.unbind() for name, value in parameters.items()}
    epsilons, deltas = _ones(epsilon), _ones(delta)
    for row, one in enumerate(w.split(1)):
        tuned = {f"generator.{name}": own[name] + value[row] for name, value in rows.items()}
        given = {
            "epsilon": {name: values[row] for name, values in epsilons.items()},
            "delta": {name: values[row] for name, values in deltas.items()},
            "noise": maps if isinstance(maps, str) else [m[row : row + 1] if len(m) > 1 else m for m in maps],
        }
        images.append(functional_call(synthesis, tuned, (one,), given))
    return cat(images)


def _ones(offsets: Offsets | None) -> dict[str, tuple[Tensor, ...]]:
    """Each row by itself, with its batch axis."""
    return {name: value.split(1) for name, value in (offsets or {}).items()}


def noise_maps(generator: Generator, noise: Offsets) -> list[Tensor]:
    """The map of each styled convolution: (B, 1, side, side), or (1, 1, side, side) where it is the
    stored one."""
    maps = []
    for index in range(generator.config.num_styled_convs):
        stored: Tensor = getattr(generator.noises, f"noise_{index}")
        offset = noise.get(str(index))
        maps.append(stored if offset is None else stored + offset[:, None])
    return maps


def layers_with_noise(generator: Generator) -> dict[int, str]:
    """Index and name of the styled convolutions that noise reaches: their strength is not 0, as it
    is everywhere in a generator without noise inputs."""
    layers = enumerate(generator.styled_convs().items())
    return {index: name for index, (name, layer) in layers if bool(layer.noise.weight.any())}


def tuned_parameters(generator: Generator) -> dict[str, nn.Parameter]:
    """All parameters that an image depends on when w is given and ε is 0, by name in the state dict:
    the constant, convolutions, modulation, biases, noise strengths, toRGB; not the mapping, not σ."""
    return {
        name: parameter
        for name, parameter in generator.named_parameters()
        if not name.startswith("style.") and not name.endswith("conv.std")
    }


class _Synthesis(nn.Module):
    """`synthesis` as the call that functional_call makes."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, w: Tensor, **given: Any) -> Tensor:
        return self.generator.synthesis(w, **given)
