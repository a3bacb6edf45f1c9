"""The discriminator between w of the generator and encoded latents (e4e, section 4)."""

from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.runtime import adam
from wrangan_cli.engine.training.losses import discriminator_loss, generator_loss
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import EncoderSettings

SEED_OFFSET = 2**33
"""Offset between the seed of the training's stream and that of the pools."""


class LatentDiscriminator(nn.Sequential):
    """Four linear layers with leaky ReLU 0.2 between them: w (…, style_dim) → logits (…, 1)."""

    def __init__(self, style_dim: int, layers: int = 4) -> None:
        hidden: list[nn.Module] = []
        for _ in range(layers - 1):
            hidden += [nn.Linear(style_dim, style_dim), nn.LeakyReLU(0.2)]
        super().__init__(*hidden, nn.Linear(style_dim, 1))


class CodePool:
    """A pool of earlier codes, from which half of the discriminator's codes are taken (Shrivastava
    et al. 2017)."""

    def __init__(self, size: int, style_dim: int, rng: torch.Generator) -> None:
        self.size, self.rng = size, rng
        self.codes = torch.empty(0, style_dim)

    def exchanged(self, codes: Tensor) -> Tensor:
        """codes (B, style_dim), on the CPU: each is returned, or is swapped at random with an older one
        from the pool. While the pool is not full, it keeps a copy of each."""
        chosen = []
        for code in codes:
            if len(self.codes) < self.size:
                self.codes = torch.cat([self.codes.to(code.dtype), code[None]])
            elif self.size and torch.rand([], generator=self.rng) < 0.5:
                place = int(torch.randint(self.size, [], generator=self.rng))
                older = self.codes[place].clone()
                self.codes[place] = code
                code = older
            chosen.append(code)
        return torch.stack(chosen)


class LatentAdversary:
    """The latent discriminator with its optimiser, its pools and their stream of random numbers.

    Under torchrun every process gets the codes of all and makes the same steps.
    """

    def __init__(self, style_dim: int, settings: EncoderSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.network = LatentDiscriminator(style_dim).to(device).requires_grad_(False)
        self.optimizer = adam(self.network.parameters(), lr=settings.latent_lr)
        self.rng = torch.Generator().manual_seed((settings.seed + SEED_OFFSET) % 2**63)
        self.pools = {
            name: CodePool(settings.latent_pool, style_dim, self.rng) for name in ("real", "encoded")
        }
        self.steps = 0

    def encoder_loss(self, codes: Tensor) -> Tensor:
        """The adversarial loss of the encoder for codes (B, rows, style_dim), a scalar."""
        return generator_loss(self.network(codes))

    def step(self, real: Tensor, encoded: Tensor) -> Report:
        """One update from w of the generator (B, style_dim) and codes (B, rows, style_dim), all on
        the CPU; the discriminator sees one random row of each code."""
        chosen = torch.randint(encoded.shape[1], (len(encoded),), generator=self.rng)
        encoded = encoded[torch.arange(len(encoded)), chosen]
        real = self.pools["real"].exchanged(real).to(self.device)
        encoded = self.pools["encoded"].exchanged(encoded).to(self.device)
        settings = self.settings
        self.network.requires_grad_(True)
        loss = discriminator_loss(self.network(real), self.network(encoded))
        self._descend(loss)
        report = {"loss/latent discriminator": float(loss.detach())}
        if self.steps % settings.latent_r1_interval == 0 and settings.latent_r1_gamma > 0:
            codes = real.requires_grad_(True)
            (slope,) = torch.autograd.grad(self.network(codes).sum(), codes, create_graph=True)
            penalty = slope.square().sum(dim=1).mean()
            self._descend(settings.latent_r1_gamma / 2 * settings.latent_r1_interval * penalty)
            report["loss/latent R1"] = float(penalty.detach())
        self.network.requires_grad_(False)
        self.steps += 1
        return report

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pools": {name: pool.codes for name, pool in self.pools.items()},
            "rng": self.rng.get_state(),
            "steps": self.steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, pool in self.pools.items():
            # A copy: the pool changes in place.
            pool.codes = state["pools"][name].clone()
        self.rng.set_state(state["rng"])
        self.steps = state["steps"]
