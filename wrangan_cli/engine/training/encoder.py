"""Training of an encoder into W (paper, section 4: e4e's architecture and losses)."""

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.distributed import average_gradients, mean_over_ranks, own_share, world_size
from wrangan_cli.engine.errors import UsageError, WranganError
from wrangan_cli.engine.model_folder import Model, stored_weights
from wrangan_cli.engine.models.encoders import FILE, Encoder, EncoderConfig
from wrangan_cli.engine.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.tensorfile import write_tensors
from wrangan_cli.engine.training.batch_norm import share_batch_norm
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import EncoderSettings


class EncoderTrainer:
    """Encoder, its moving average and its optimiser; the generator stays as it is.

    Real images x are pulled by L2 and LPIPS of G(E(x)) against x; generated ones by the
    distance of E(G(w)) to their known w, which keeps the codes inside W. Under torchrun each
    process works on its share of the batch, and the normalisation takes all of it together.
    """

    def __init__(
        self,
        model: Model,
        settings: EncoderSettings,
        perceptual: PerceptualDistance,
        start: Encoder | None = None,
    ) -> None:
        """start: an encoder to go on from, whose sizes count; it is changed in place.

        Raises UsageError for sizes and batches that do not fit.
        """
        torch.manual_seed(settings.seed)
        self.model, self.settings, self.perceptual = model, settings, perceptual
        config = EncoderConfig(
            style_dim=model.generator.config.style_dim,
            widths=numbers(settings.widths, "widths"),
            blocks=numbers(settings.blocks, "blocks"),
            input_side=settings.input_side,
        )
        if settings.batch % world_size():
            raise UsageError(f"batch {settings.batch}: expected a multiple of the {world_size()} processes")
        if len(config.widths) != len(config.blocks):
            raise UsageError(f"{len(config.widths)} widths for {len(config.blocks)} stages of blocks")
        if start is not None and start.config.style_dim != config.style_dim:
            raise UsageError(
                f"the encoder to start from gives w of length {start.config.style_dim}, "
                f"model {model.name} wants {config.style_dim}"
            )
        self.encoder = (start or Encoder(config)).requires_grad_(True)
        share_batch_norm(self.encoder)
        self.encoder.to(model.device).train()
        self.encoder.w_mean.copy_(model.w_mean)
        self.ema = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=settings.lr)
        self.images = 0
        # As in draws.py: every process draws for the whole batch and keeps its own rows.
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.own = list(own_share(range(settings.batch)))

    def step(self, real: Tensor) -> Report:
        """One update from real images (B, 3, R, R), those in `own`, and as many generated ones."""
        settings = self.settings
        z = torch.randn(settings.batch, self.model.generator.config.style_dim, generator=self.rng)
        losses = self.losses(real.to(self.model.device), z[self.own].to(self.model.device))
        self.optimizer.param_groups[0]["lr"] = self._lr()
        self.optimizer.zero_grad(set_to_none=True)
        losses[0].backward()
        average_gradients(self.encoder.parameters())
        self.optimizer.step()
        self.images += settings.batch
        self._average(settings.batch)
        names = ("loss/total", "loss/mse", f"loss/{self.perceptual.name}", "loss/w")
        report = dict(zip(names, mean_over_ranks(losses.detach()).tolist(), strict=True))
        if not math.isfinite(report["loss/total"]):
            raise WranganError(f"encoder training diverged at image {self.images}: {report}")
        return report

    def losses(self, real: Tensor, z: Tensor) -> Tensor:
        """(4,): what is minimised, and its three parts without their weights.

        real: (B, 3, R, R). z: (B, style_dim), latents of the generated images.
        """
        settings, model = self.settings, self.model
        with torch.no_grad():
            true_w = model.generator.mapping(z)
            generated = model.generator.synthesis(true_w)
        w = self.encoder(torch.cat([real, generated.clamp(-1, 1)]))
        real_w, generated_w = w.chunk(2)
        variance = model.w_std**2
        loss_w = (generated_w - true_w).square().sum(dim=1).mean() / variance
        drawn = model.generator.synthesis(real_w)
        loss_l2 = (drawn - real).square().mean()
        with torch.no_grad():
            target = self.perceptual.features(for_loss(real))
        features = self.perceptual.features(for_loss(drawn))
        loss_perceptual = self.perceptual.distance(features, target).mean()
        loss = (
            settings.l2_weight * loss_l2
            + settings.perceptual_weight * loss_perceptual
            + settings.w_weight * loss_w
        )
        return torch.stack([loss, loss_l2, loss_perceptual, loss_w])

    def _lr(self) -> float:
        share = min(1.0, self.images / self.settings.images)
        fall = 0.5 - 0.5 * math.cos(math.pi * max(0.0, share - 0.5) / 0.5)
        return self.settings.lr * (1 - 0.9 * fall)

    @torch.no_grad()
    def _average(self, batch: int) -> None:
        half_life = min(self.settings.ema_images, self.images * 0.05)
        decay = 0.5 ** (batch / max(half_life, 1e-8))
        for average, current in zip(self.ema.parameters(), self.encoder.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for kept, now in zip(self.ema.buffers(), self.encoder.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(now, 1 - decay)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "settings": asdict(self.settings),
            "model_sha256": self.model.sha256,
            "images": self.images,
            "encoder": self.encoder.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`; UsageError if it belongs to another model."""
        if "encoder" not in state:
            raise UsageError("the run's snapshot is of another kind of training: choose another folder")
        if state["model_sha256"] != self.model.sha256:
            raise UsageError("the snapshot's encoder was trained for another model")
        self.encoder.load_state_dict(state["encoder"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images = state["images"]
        self.rng.set_state(state["rng"])


def save_encoder(folder: Path, encoder: Encoder, model: Model, record: dict[str, Any]) -> Path:
    """Write `encoder.safetensors` (fp16) for `model` into `folder`."""
    tensors = {
        name: tensor
        for name, tensor in stored_weights(encoder, torch.float16).items()
        if not name.endswith("num_batches_tracked")
    }
    path = folder / FILE
    about = {"kind": "encoder", "encoder": encoder.config.to_json(), "model_sha256": model.sha256}
    write_tensors(path, tensors, {**record, **about})
    return path


def numbers(text: str, name: str) -> tuple[int, ...]:
    """`64,128` → (64, 128); UsageError names the option if it is not that."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise UsageError(f"{name} {text!r}: expected positive whole numbers such as 64,128,256")
    return values
