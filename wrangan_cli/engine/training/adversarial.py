"""The adversarial training loop: StyleGAN2 as published, and with random weights (Algorithm 2)."""

import copy
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.errors import UsageError, WranganError
from wrangan_cli.engine.models.config import StyleGAN2Config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.randomized import draw_epsilon, randomized_layers
from wrangan_cli.engine.models.stylegan2 import Generator, NoiseMode
from wrangan_cli.engine.training.augment import AdaptiveAugment, augment
from wrangan_cli.engine.training.losses import (
    discriminator_loss,
    generator_loss,
    path_lengths,
    r1_penalty,
)
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import AdversarialSettings, RandomizeSettings


class AdversarialTrainer:
    """Generator, discriminator, moving average, optimisers: everything a step changes.

    The networks are trained in place on `device`; `ema` is the generator to use.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: AdversarialSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).to(memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        path_interval = settings.path_length_interval if settings.path_length_weight > 0 else 0
        self.optimizer_g = _adam(self.generator, settings.lr, path_interval)
        self.optimizer_d = _adam(self.discriminator, settings.lr, settings.r1_interval)
        self._silence()
        self.images = 0
        self.steps = 0
        self.path_mean = torch.zeros([], device=self.device)
        self.adaptive = AdaptiveAugment(settings.augment_target) if settings.augment == "ada" else None
        self.fixed_augment = _fixed_augment(settings.augment)

    def step(self, real: Tensor) -> Report:
        """One update of D, one of G and one of the average; returns the losses as floats.

        real: (B, 3, R, R) in [-1, 1], on any device.
        """
        settings = self.settings
        real = real.to(self.device).contiguous(memory_format=torch.channels_last)
        report: dict[str, Tensor] = {}
        report |= self._update_discriminator(real)
        if self.steps % settings.r1_interval == 0:
            report |= self._penalise_gradient(real)
        report |= self._update_generator(real.shape[0])
        if settings.path_length_weight > 0 and self.steps % settings.path_length_interval == 0:
            report |= self._penalise_path_length(max(1, real.shape[0] // 2))
        self.steps += 1
        self.images += real.shape[0]
        self._average(real.shape[0])
        values = {name: value.item() for name, value in report.items()}
        if not all(map(math.isfinite, values.values())):
            raise WranganError(f"training diverged at image {self.images}: {values}")
        if self.adaptive:
            values["augment/probability"] = self.adaptive.probability
        return values

    def _update_discriminator(self, real: Tensor) -> dict[str, Tensor]:
        self.generator.requires_grad_(False)
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake, _ = self._generate(real.shape[0])
        real_logits = self.discriminator(self._augment(real))
        fake_logits = self.discriminator(self._augment(fake))
        loss = discriminator_loss(real_logits, fake_logits)
        _minimise(self.optimizer_d, loss)
        if self.adaptive:
            self.adaptive.observe(real_logits)
        return {
            "loss/discriminator": loss.detach(),
            "logits/real": real_logits.detach().mean(),
            "logits/fake": fake_logits.detach().mean(),
            "logits/real_sign": real_logits.detach().sign().mean(),
        }

    def _penalise_gradient(self, real: Tensor) -> dict[str, Tensor]:
        images = real.detach().requires_grad_(True)
        penalty = r1_penalty(self.discriminator(self._augment(images)), images)
        weight = self.settings.r1_gamma / 2 * self.settings.r1_interval
        _minimise(self.optimizer_d, penalty * weight)
        return {"loss/r1": penalty.detach()}

    def _update_generator(self, batch: int) -> dict[str, Tensor]:
        self.generator.requires_grad_(True)
        self.discriminator.requires_grad_(False)
        fake, _ = self._generate(batch)
        loss = generator_loss(self.discriminator(self._augment(fake)))
        _minimise(self.optimizer_g, loss)
        return {"loss/generator": loss.detach()}

    def _penalise_path_length(self, batch: int) -> dict[str, Tensor]:
        images, w = self._generate(batch)
        lengths = path_lengths(images, w)
        self.path_mean = self.path_mean.lerp(lengths.mean().detach(), 0.01)
        penalty = (lengths - self.path_mean).square().mean()
        weight = self.settings.path_length_weight * self.settings.path_length_interval
        _minimise(self.optimizer_g, penalty * weight)
        return {"loss/path_length": penalty.detach(), "path_length": self.path_mean}

    def _generate(self, batch: int) -> tuple[Tensor, Tensor]:
        """Images and their w (B, L, style_dim), styles mixed, ε drawn anew."""
        config = self.generator.config
        z = torch.randn(2, batch, config.style_dim, device=self.device)
        w = self.generator.mapping(z[0])[:, None].repeat(1, config.num_latents, 1)
        if torch.rand([]) < self.settings.style_mixing:
            other = self.generator.mapping(z[1])[:, None]
            start = int(torch.randint(1, config.num_latents, []))
            rows = torch.arange(config.num_latents, device=self.device)[None, :, None]
            w = torch.where(rows < start, w, other)
        epsilon = None
        if randomized_layers(self.generator):
            per_image = isinstance(self.settings, RandomizeSettings) and self.settings.epsilon_per == "image"
            epsilon = draw_epsilon(self.generator, batch if per_image else None)
        noise: NoiseMode = "random" if self.settings.noise else "none"
        return self.generator.synthesis(w, epsilon=epsilon, noise=noise), w

    def _augment(self, images: Tensor) -> Tensor:
        if self.adaptive:
            return self.adaptive(images)
        return augment(images, self.fixed_augment) if self.fixed_augment else images

    @torch.no_grad()
    def _silence(self) -> None:
        """Without noise inputs their strengths are 0, so that the stored maps change nothing either."""
        if not self.settings.noise:
            for network in (self.generator, self.ema):
                for layer in network.styled_convs().values():
                    layer.noise.weight.zero_()

    @torch.no_grad()
    def _average(self, batch: int) -> None:
        half_life = float(self.settings.ema_images)
        if self.settings.ema_rampup > 0:
            half_life = min(half_life, self.images * self.settings.ema_rampup)
        decay = 0.5 ** (batch / max(half_life, 1e-8))
        for average, current in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for kept, newest in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(newest)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "settings": asdict(self.settings),
            "config": self.generator.config.to_json(),
            "images": self.images,
            "steps": self.steps,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "path_mean": self.path_mean,
            "augment": self.adaptive.state() if self.adaptive else None,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; networks must have the shapes that it was saved with."""
        if "discriminator" not in state:
            raise UsageError("the folder holds another kind of training: choose another --out")
        if StyleGAN2Config.from_json(state["config"]) != self.generator.config:
            raise UsageError("the snapshot's network differs from the one asked for")
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self._silence()
        # Settings may be changed between two runs: the new learning rate counts.
        path_interval = self.settings.path_length_interval if self.settings.path_length_weight > 0 else 0
        for optimizer, interval in (
            (self.optimizer_g, path_interval),
            (self.optimizer_d, self.settings.r1_interval),
        ):
            optimizer.param_groups[0]["lr"] = self.settings.lr * _lazy_ratio(interval)
        self.images, self.steps = state["images"], state["steps"]
        self.path_mean = state["path_mean"].to(self.device)
        if self.adaptive and state["augment"]:
            self.adaptive.restore(state["augment"])
        torch.set_rng_state(state["rng"])


def _lazy_ratio(interval: int) -> float:
    return interval / (interval + 1) if interval else 1.0


def _adam(network: torch.nn.Module, lr: float, interval: int) -> torch.optim.Adam:
    """Adam corrected for a regulariser that is applied every `interval` steps only."""
    ratio = _lazy_ratio(interval)
    return torch.optim.Adam(network.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)


def _minimise(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _fixed_augment(text: str) -> float:
    if text in ("none", "ada"):
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"augment {text!r}: expected ada, none, or a probability in 0…1")
    return value
