"""Networks, optimisers and random numbers of an adversarial training, and the parts of its step."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import average_gradients, mean_over_ranks
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.runtime import adam
from wrangan_cli.engine.models.architectures import read_generator_config
from wrangan_cli.engine.models.discriminator import Discriminator
from wrangan_cli.engine.models.generator import Generator, GeneratorConfig
from wrangan_cli.engine.models.projected import (
    load_projected,
    projected_discriminator_loss,
    projected_generator_loss,
)
from wrangan_cli.engine.models.randomized import parametrise_std
from wrangan_cli.engine.ops.dispatch import activation_layout
from wrangan_cli.engine.training.augment import AdaptiveAugment, apply_transforms, draw_transforms
from wrangan_cli.engine.training.losses import discriminator_loss, generator_loss
from wrangan_cli.engine.training.random_streams import Inputs, RandomStreams
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import AdversarialSettings, RandomizeSettings
from wrangan_cli.engine.training.shards import Shards

Losses = Iterator[tuple[Tensor, dict[str, Tensor]]]
"""For each micro-batch in turn: the loss to minimise, and the values to report."""


class AdversarialState:
    """Generator, discriminator, moving average, optimisers: everything a step changes.

    The networks are trained in place on `device`; `ema` is the generator to use. Under
    torchrun each process works on its shard of the batch and all make
    the same step: gradients are averaged by one explicit sum (docs/training.md explains why).
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator | None,
        settings: AdversarialSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.generator = generator.to(self.device).train()
        if isinstance(settings, RandomizeSettings):
            parametrise_std(self.generator, settings.std_form)
        self.layout = activation_layout(self.device)
        # A D that is not used is kept unchanged, for later runs that use it.
        self.native = settings.discriminator != "projected"
        if discriminator is None and self.native:
            raise UsageError(
                f"discriminator {settings.discriminator}: the model has none; use --discriminator projected"
            )
        self.discriminator = discriminator
        if discriminator is not None:
            discriminator.to(self.device).to(memory_format=self.layout).train()
            discriminator.set_precision(settings.precision, settings.low_precision_resolutions)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.generator.set_precision(settings.precision, settings.low_precision_resolutions)
        # Without StyleGAN2's D no images are judged together.
        group = 1 if discriminator is None else discriminator.config.stddev_group
        self.shards = Shards(settings.batch, group, settings.accumulate)
        path_interval = settings.path_length_interval if settings.path_length_weight > 0 else 0
        self.optimizer_g = _adam(self.generator, settings.lr, path_interval)
        self.optimizer_d = discriminator and _adam(discriminator, settings.lr, settings.r1_interval)
        self.projected = self.optimizer_projected = None
        self.optimizers_d = [self.optimizer_d] if self.native and self.optimizer_d else []
        if settings.discriminator != "stylegan2":
            self.projected = load_projected(settings.projected_side, self.device).train()
            self.optimizer_projected = _adam(self.projected.heads, settings.lr, interval=0)
            self.optimizers_d.append(self.optimizer_projected)
        self._without_noise()
        self.images = 0
        self.steps = 0
        self.path_mean = torch.zeros([], device=self.device)
        self.adaptive = AdaptiveAugment(settings.augment_target) if settings.augment == "ada" else None
        self.fixed_augment = _fixed_augment(settings.augment)
        self.streams = RandomStreams(settings.seed, self.device)
        # Compiled code has no second derivatives: the two penalties use the uncompiled networks.
        self.synthesis: Callable[..., Tensor] = self.generator.synthesis
        self.judge: Callable[..., Tensor] = discriminator or _absent
        if settings.compile:
            self.synthesis = torch.compile(self.generator.synthesis)
            self.judge = torch.compile(discriminator) if discriminator else _absent

    def minimise(self, losses: Losses, *optimizers: torch.optim.Adam) -> dict[str, Tensor]:
        """Take one step on the mean of the micro-batches' losses; returns the mean of their reports."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        reports: list[dict[str, Tensor]] = []
        for loss, report in losses:
            (loss / len(self.shards.parts)).backward()
            reports.append(report)
        for optimizer in optimizers:
            parameters = optimizer.param_groups[0]["params"]
            average_gradients(parameters)
            if self.settings.precision == "fp16":
                _bound_gradients(parameters)
            optimizer.step()
        return {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}

    def train_only(self, which: Literal["G", "D"]) -> None:
        """Enable gradients for that network only."""
        self.generator.requires_grad_(which == "G")
        if self.discriminator:
            self.discriminator.requires_grad_(which == "D")
        if self.projected:
            self.projected.heads.requires_grad_(which == "D")

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D on images (b, 3, R, R), summed over both discriminators if there are two, and what to
        report."""
        losses: list[Tensor] = []
        report: dict[str, Tensor] = {}
        if self.projected:
            real_logits, fake_logits = self.projected(real), self.projected(fake)
            losses.append(projected_discriminator_loss(real_logits, fake_logits))
            report["loss/projected_discriminator"] = losses[-1].detach()
        if self.native:
            real_logits, fake_logits = self.judge(real), self.judge(fake)
            losses.append(discriminator_loss(real_logits, fake_logits))
            report["loss/discriminator"] = losses[-1].detach()
        # Of StyleGAN2's D if there are both.
        report |= {
            "logits/real": real_logits.detach().mean(),
            "logits/fake": fake_logits.detach().mean(),
            "logits/real_sign": real_logits.detach().sign().mean(),
        }
        return torch.stack(losses).sum(), report

    def generator_loss(self, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_G of generated images (b, 3, R, R), and what to report."""
        losses: list[Tensor] = []
        report: dict[str, Tensor] = {}
        if self.native:
            losses.append(generator_loss(self.judge(fake)))
            report["loss/generator"] = losses[-1].detach()
        if self.projected:
            judged = projected_generator_loss(self.projected(fake))
            report["loss/projected_generator"] = judged.detach()
            losses.append(self.settings.projected_weight * judged)
        return torch.stack(losses).sum(), report

    def end_step(self, report: dict[str, Tensor]) -> Report:
        """Count the step, update the average, adapt the augmentation; returns the report of the whole batch
        as floats, the same in every process. WranganError if it is not finite."""
        self.steps += 1
        self.images += self.shards.batch
        self._average(self.shards.batch)
        # One message and one wait for the device, however much there is to report.
        means = mean_over_ranks(torch.stack(list(report.values()))).tolist()
        values = dict(zip(report, means, strict=True))
        if not all(map(math.isfinite, values.values())):
            raise WranganError(f"training diverged at image {self.images}: {values}")
        if self.adaptive:
            self.adaptive.observe(values["logits/real_sign"], self.shards.batch)
            values["augment/probability"] = self.adaptive.probability
        return values

    def sample_inputs(self, half: bool = False) -> list[Inputs]:
        """z, ε and noise ~ N(0, 1) for the images of each part of the batch (or of half of it)."""
        shards = self.shards
        batch, parts = (shards.half, shards.half_parts) if half else (shards.batch, shards.parts)
        settings = self.settings
        per_image = isinstance(settings, RandomizeSettings) and settings.epsilon_per == "image"
        return self.streams.inputs(
            self.generator, batch, parts, settings.style_mixing, settings.noise, per_image
        )

    def map_to_w(self, given: Inputs) -> Tensor:
        """w = f(z) of the inputs: (B, L, style_dim), styles mixed."""
        layers = self.generator.config.num_latents
        w = self.generator.mapping(given.z[0])[:, None].repeat(1, layers, 1)
        if given.crossover is None:
            return w
        other = self.generator.mapping(given.z[1])[:, None]
        rows = torch.arange(layers, device=self.device)[None, :, None]
        return torch.where(rows < given.crossover, w, other)

    def augmentation(self) -> Callable[[Tensor, int], Tensor]:
        """Sample transforms for the whole batch; returns a function of the images of micro-batch k, and k."""
        probability = self.adaptive.probability if self.adaptive else self.fixed_augment
        if probability <= 0:
            return lambda images, _: images
        side = self.generator.config.resolution
        drawn = draw_transforms(self.shards.batch, probability, side, self.streams.host)
        parts = self.shards.parts
        return lambda images, part: apply_transforms(images, drawn.rows(parts[part]))

    @torch.no_grad()
    def _without_noise(self) -> None:
        """Set the strengths of the noise inputs to 0, so that the stored maps change nothing either."""
        if not self.settings.noise:
            for network in (self.generator, self.ema):
                for given in network.noise_inputs().values():
                    given.strength.zero_()

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
            "architecture": self.generator.config.architecture,
            "config": self.generator.config.to_json(),
            "images": self.images,
            "steps": self.steps,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator else None,
            "ema": self.ema.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict() if self.optimizer_d else None,
            "projected": self.projected.trained_state() if self.projected else None,
            "optimizer_projected": self.optimizer_projected.state_dict()
            if self.optimizer_projected
            else None,
            "path_mean": self.path_mean,
            "augment": self.adaptive.state() if self.adaptive else None,
            "draws": self.streams.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the networks must have the shapes with which it was saved."""
        if "discriminator" not in state:
            raise UsageError("the folder holds a run of another kind of training: choose another --out")
        if _config_of(state) != self.generator.config:
            raise UsageError("the snapshot's network differs from the requested one: choose another --out")
        form = getattr(self.settings, "std_form", "raw")
        if form != (begun := state["settings"].get("std_form", "raw")):
            raise UsageError(f"std_form {form}: the run was started with {begun}")
        self.generator.load_state_dict(state["generator"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        if self.discriminator and self.optimizer_d:
            self.discriminator.load_state_dict(state["discriminator"])
            self.optimizer_d.load_state_dict(state["optimizer_d"])
        # A newly added discriminator starts from its random weights.
        if self.projected and self.optimizer_projected and state.get("projected"):
            self.projected.restore(state["projected"])
            self.optimizer_projected.load_state_dict(state["optimizer_projected"])
        self._without_noise()
        # Settings may change between two runs: the new learning rate applies.
        path_interval = self.settings.path_length_interval if self.settings.path_length_weight > 0 else 0
        for optimizer, interval in (
            (self.optimizer_g, path_interval),
            (self.optimizer_d, self.settings.r1_interval),
            (self.optimizer_projected, 0),
        ):
            if optimizer:
                optimizer.param_groups[0]["lr"] = self.settings.lr * _lazy_ratio(interval)
        self.images, self.steps = state["images"], state["steps"]
        self.path_mean = state["path_mean"].to(self.device)
        if self.adaptive and state["augment"]:
            self.adaptive.restore(state["augment"])
        # Early snapshots have the state of PyTorch's global stream, which is no longer used.
        if "draws" in state:
            self.streams.restore(state["draws"], self.images)


def _config_of(state: dict[str, Any]) -> GeneratorConfig:
    """The configuration in a snapshot; older ones name no architecture."""
    named = {"architecture": state["architecture"]} if "architecture" in state else {}
    return read_generator_config({**named, "generator": state["config"]})


def _absent(images: Tensor) -> Tensor:  # noqa: ARG001
    raise AssertionError("a missing discriminator was called")


def _lazy_ratio(interval: int) -> float:
    return interval / (interval + 1) if interval else 1.0


def _adam(network: torch.nn.Module, lr: float, interval: int) -> torch.optim.Adam:
    """Adam corrected for a regulariser that is applied every `interval` steps only."""
    ratio = _lazy_ratio(interval)
    return adam(network.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)


def _bound_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients that overflowed in fp16 by large or zero ones, as NVIDIA's training does."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num_(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5)


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
