"""The random numbers of an adversarial training, the same however the batch is split.

Every process samples for the whole batch from the same streams and keeps the rows of its shard. So
training with one process, several, or micro-batches gives the same result, and all processes have the
same state of the streams.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.randomized import draw_epsilon


@dataclass(frozen=True)
class Inputs:
    """The inputs of G for one micro-batch."""

    z: Tensor
    """(2, B, style_dim): the latents, and those of the second style."""
    crossover: int | None
    """First layer of the second style; None: styles are not mixed."""
    epsilon: dict[str, Tensor] | None
    """ε by the weight's name, one for all images (O, I, k, k) or one for each (B, O, I, k, k)."""
    noise: list[Tensor] | Literal["none"]
    """Noise maps (B, 1, side, side), one per noise input, or `none` when training without noise."""


class RandomStreams:
    """Two seeded streams: one on the CPU for small tensors, one on the device for large ones."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.host = torch.Generator().manual_seed(seed)
        self.local = torch.Generator(device).manual_seed((seed + 2**32) % 2**63)

    def normal(self, *shape: int) -> Tensor:
        """N(0, 1) on the device."""
        return torch.randn(shape, generator=self.local, device=self.device)

    def inputs(
        self,
        generator: Generator,
        batch: int,
        parts: list[Tensor],
        mixing: float,
        noise: bool,
        epsilon_per_image: bool,
    ) -> list[Inputs]:
        """Inputs of G for a batch of `batch` images, cut to the rows of each part."""
        config = generator.config
        z = torch.randn(2, batch, config.style_dim, generator=self.host)
        crossover = None
        if torch.rand([], generator=self.host) < mixing:
            crossover = int(torch.randint(1, config.num_latents, [], generator=self.host))
        shared = None
        if generator.random_weights() and not epsilon_per_image:
            shared = draw_epsilon(generator, rng=self.local)
        each = self._epsilon_rows(generator, batch, parts) if epsilon_per_image else None
        maps = self._noise_maps(generator, batch, parts) if noise else None
        return [
            Inputs(
                z[:, rows].to(self.device),
                crossover,
                shared if each is None else each[k],
                "none" if maps is None else maps[k],
            )
            for k, rows in enumerate(parts)
        ]

    def _noise_maps(self, generator: Generator, batch: int, parts: list[Tensor]) -> list[list[Tensor]]:
        kept: list[list[Tensor]] = [[] for _ in parts]
        for given in generator.noise_inputs().values():
            maps = self.normal(batch, 1, *given.map.shape[2:])
            for part, rows in zip(kept, parts, strict=True):
                part.append(maps[rows.to(self.device)])
        return kept

    def _epsilon_rows(
        self, generator: Generator, batch: int, parts: list[Tensor]
    ) -> list[dict[str, Tensor]] | None:
        """ε for the images of `parts` only: for the whole batch it may be larger than the network."""
        if not generator.random_weights():
            return None
        wanted = {int(row) for rows in parts for row in rows}
        held: dict[int, dict[str, Tensor]] = {}
        for row in range(batch):
            drawn = draw_epsilon(generator, rng=self.local)
            if row in wanted:
                held[row] = drawn
        return [
            {name: torch.stack([held[int(row)][name] for row in rows]) for name in held[int(rows[0])]}
            for rows in parts
        ]

    def state(self) -> dict[str, Any]:
        """The state of both streams; equal in every process."""
        return {
            "device": self.device.type,
            "host": self.host.get_state(),
            "local": self.local.get_state(),
        }

    def restore(self, state: dict[str, Any], images: int) -> None:
        """Continue from a state; on another kind of device its stream restarts from seed and `images`."""
        self.host.set_state(state["host"])
        if state["device"] == self.device.type:
            self.local.set_state(state["local"])
        else:
            self.local.manual_seed((self.seed + 2**32 + images) % 2**63)
