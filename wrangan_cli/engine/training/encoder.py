"""Training of encoders: what all kinds share, and the one into W (paper, section 4)."""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base import weights
from wrangan_cli.engine.base.distributed import average_gradients, local_shard, mean_over_ranks, world_size
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.runtime import adam
from wrangan_cli.engine.models.efficientnet import load_pretrained
from wrangan_cli.engine.models.encoders import AnyEncoder, Encoder, EncoderConfig, Hypernet, incompatibility
from wrangan_cli.engine.models.encoders.blocks import DEFAULT_BLOCKS, EFFICIENTNET, resized
from wrangan_cli.engine.models.folder import W_SAMPLES, Model, sample_w
from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.pairs import Pairs
from wrangan_cli.engine.models.perceptual import PerceptualDistance, for_loss
from wrangan_cli.engine.training.batch_norm import share_batch_norm
from wrangan_cli.engine.training.pair_batches import PairBatches
from wrangan_cli.engine.training.run import Report
from wrangan_cli.engine.training.settings import EncoderSettings

N = TypeVar("N", bound=AnyEncoder)


class ImageTrainer(ABC, Generic[N]):
    """A network that sees photographs, its moving average and its optimiser; the generator is
    not trained. Under torchrun each process works on its shard of the batch, and the normalisation
    uses the statistics of the whole batch.
    """

    encoder: N
    ema: N
    loss_names: tuple[str, ...] = ("total", "mse", "perceptual")
    """Names of the values of `losses`; `perceptual` is replaced by the name of the distance."""

    def __init__(
        self,
        model: Model,
        settings: EncoderSettings,
        perceptual: PerceptualDistance,
        start: N | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        """start: a network to continue from, with its sizes; changed in place. pairs: made by the model's
        generator.

        Raises UsageError for sizes and batches that do not fit.
        """
        torch.manual_seed(settings.seed)
        self.model, self.settings, self.perceptual = model, settings, perceptual
        self.side = min(settings.image_side or model.resolution, model.resolution)
        if settings.batch % world_size():
            raise UsageError(f"batch {settings.batch}: expected a multiple of the {world_size()} processes")
        try:
            self.encoder = start or self.network()
        except ValueError as error:
            raise UsageError(str(error)) from error
        unfit = incompatibility(self.encoder, model)
        if unfit:
            raise UsageError(f"the encoder to start from does not fit: {unfit}")
        self.encoder.requires_grad_(True)
        share_batch_norm(self.encoder)
        self.encoder.to(model.device).train()
        if not isinstance(self.encoder, Hypernet):
            self.encoder.w_mean.copy_(model.w_mean)
        self.ema = copy.deepcopy(self.encoder)
        self.ema.eval().requires_grad_(False)
        self.optimizer = adam(self.encoder.parameters(), lr=settings.lr)
        self.images = 0
        self.per_step = settings.batch or settings.pair_batch
        # As in random_streams.py: every process samples for the whole batch and keeps the rows of its shard.
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.rows = list(local_shard(range(settings.batch)))
        self.pairs = self._batches_of(pairs) if pairs else None
        self.metric = w_metric(model.generator, settings.w_power) if settings.w_power else None

    def _batches_of(self, pairs: Pairs) -> PairBatches:
        settings = self.settings
        if settings.pair_batch % world_size():
            raise UsageError(
                f"pair_batch {settings.pair_batch}: expected a multiple of the {world_size()} processes"
            )
        rows, side = list(local_shard(range(settings.pair_batch))), self.encoder.config.input_side
        return PairBatches(pairs, settings.pair_batch, side, settings.seed, rows, settings.pair_augment)

    @abstractmethod
    def network(self) -> N:
        """A new network with the sizes of the settings; ValueError if they do not fit together."""

    @abstractmethod
    def losses(self, real: Tensor, z: Tensor) -> Tensor:
        """The loss to minimise, and its terms without their weights, in the order of `loss_names`.

        real: (B, 3, side, side). z: (B, style_dim), latents of equally many generated images. For a network
        with several passes: the losses of the first.
        """

    @abstractmethod
    def reconstructed(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, side, side) by the averaged network, to look at; without gradients."""

    def backward(self, real: Tensor, z: Tensor) -> Tensor:
        """Add the gradients of a step; returns the `losses` of the last pass, detached."""
        losses = self.losses(real, z)
        losses[0].backward()
        return losses.detach()

    def after(self, z: Tensor) -> Report:  # noqa: ARG002
        """What remains of a step after the update of the network. z: (batch, style_dim), on the CPU."""
        return {}

    def step(self, real: Tensor) -> Report:
        """One update from the real images (B, 3, side, side) in `rows`, and the accompanying latents."""
        settings = self.settings
        z = torch.randn(settings.batch, self.model.generator.config.style_dim, generator=self.rng)
        self.optimizer.param_groups[0]["lr"] = self._lr()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(real.to(self.model.device), z[self.rows].to(self.model.device))
        average_gradients(self.encoder.parameters())
        self.optimizer.step()
        more = self.after(z)
        self.images += self.per_step
        self._average(self.per_step)
        names = [self.perceptual.name if name == "perceptual" else name for name in self.loss_names]
        means = mean_over_ranks(losses).tolist()
        report = {f"loss/{name}": value for name, value in zip(names, means, strict=True)} | more
        if not math.isfinite(report["loss/total"]):
            raise WranganError(f"encoder training diverged at image {self.images}: {report}")
        return report

    def target_of(self, real: Tensor) -> list[Tensor]:
        """The features of real images, computed once for all passes over them."""
        with torch.no_grad():
            return self.perceptual.features(for_loss(real))

    def reconstruction(self, generated: Tensor, real: Tensor, target: list[Tensor]) -> list[Tensor]:
        """[weighted sum, squared error, perceptual distance] of images (B, 3, R, R), each a mean."""
        loss_l2 = (generated - real).square().mean()
        features = self.perceptual.features(for_loss(generated))
        loss_perceptual = self.perceptual.distance(features, target).mean()
        settings = self.settings
        total = settings.l2_weight * loss_l2 + settings.perceptual_weight * loss_perceptual
        return [total, loss_l2, loss_perceptual]

    def known(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Known w (B, style_dim) and their images: the next pairs (B, 3, input_side, input_side), or images
        generated from latents z (B, 3, side, side). Neither has gradients."""
        if self.pairs:
            return self.pairs.next_batch(self.model.device)
        with torch.no_grad():
            w = self.model.generator.mapping(z)
            return w, self.synthesis(w).clamp(-1, 1)

    def synthesis(self, codes: Tensor, delta: dict[str, Tensor] | None = None) -> Tensor:
        """Images (B, 3, side, side) of codes; delta as in Generator.synthesis."""
        return self.model.generator.synthesis(codes, delta=delta, side=self.side)

    def w_error(self, codes: Tensor, true_w: Tensor) -> Tensor:
        """Mean squared distance of codes (B, style_dim) in W or (B, num_latents, style_dim) in W+ to
        w (B, style_dim), by the metric of the settings; 1 in the mean for the mean of W."""
        difference = codes - (true_w if codes.ndim == 2 else true_w[:, None])
        if self.metric is None:
            return difference.square().sum(dim=-1).mean() / self.model.w_std**2
        return ((difference @ self.metric) * difference).sum(dim=-1).mean()

    def networks(self) -> list[nn.Module]:
        """All networks in memory."""
        return [self.encoder, self.ema, self.model.generator, self.perceptual]

    def on_meta(self) -> Self:
        """A copy whose networks are on the `meta` device, only to compute `losses` (memory.py)."""
        twin = copy.copy(self)
        twin.encoder = copy.deepcopy(self.encoder)
        twin.encoder.to("meta")
        twin.perceptual = copy.deepcopy(self.perceptual).to("meta")
        generator = copy.deepcopy(self.model.generator).to("meta")
        twin.model = replace(self.model, generator=generator, w_mean=self.model.w_mean.to("meta"))
        twin.pairs = self.pairs.on_meta() if self.pairs else None
        twin.metric = None if self.metric is None else self.metric.to("meta")
        return twin

    def _lr(self) -> float:
        progress = min(1.0, self.images / self.settings.images)
        fall = 0.5 - 0.5 * math.cos(math.pi * max(0.0, progress - 0.5) / 0.5)
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
            **({"pairs_seen": self.pairs.seen} if self.pairs else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; UsageError if it belongs to another model, kind or size."""
        kind = state["settings"].get("kind", "w") if "encoder" in state else None
        if kind != self.settings.kind:
            raise UsageError("the run's snapshot is of another kind of training: choose another --out")
        if state["model_sha256"] != self.model.sha256:
            raise UsageError("the snapshot's encoder was trained for another model: choose another --out")
        shapes = {name: tensor.shape for name, tensor in self.encoder.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in state["encoder"].items()}:
            raise UsageError(
                "the snapshot's network differs in size from the requested one: choose another --out"
            )
        self.encoder.load_state_dict(state["encoder"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images = state["images"]
        self.rng.set_state(state["rng"])
        if self.pairs:
            self.pairs.seen = state.get("pairs_seen", 0)


class EncoderTrainer(ImageTrainer[Encoder]):
    """The encoder into W.

    For real images x the loss is L2 and LPIPS of G(E(x)) against x. For images of known w, generated or from
    pairs, it is the distance of E(G(w)) to w, which keeps the codes inside W. Pairs need no pass of the
    generator.
    """

    loss_names = ("total", "mse", "perceptual", "w")

    def __init__(
        self,
        model: Model,
        settings: EncoderSettings,
        perceptual: PerceptualDistance,
        start: Encoder | None = None,
        pairs: Pairs | None = None,
    ) -> None:
        """As ImageTrainer. UsageError if there are neither real images nor pairs."""
        super().__init__(model, settings, perceptual, start, pairs)
        if not (settings.batch or pairs):
            raise UsageError("batch 0: training without real images needs pairs")

    def network(self) -> Encoder:
        """A network with the sizes of the settings."""
        settings, dim = self.settings, self.model.generator.config.style_dim
        if settings.backbone == EFFICIENTNET:
            encoder = Encoder(EncoderConfig(dim, (), (), settings.input_side, EFFICIENTNET))
            if settings.pretrained:
                load_pretrained(encoder.body, classifier())
            return encoder
        widths, blocks = body_sizes(settings, "ir-se")
        return Encoder(EncoderConfig(dim, widths, blocks, settings.input_side))

    def losses(self, real: Tensor, z: Tensor) -> Tensor:
        """(4,), see `loss_names`."""
        true_w, known = self.known(z)
        side = self.encoder.config.input_side
        codes = self.encoder(torch.cat([resized(images, side) for images in (real, known) if len(images)]))
        loss_w = self.w_error(codes[len(real) :], true_w)
        weight = 1.0 if self.settings.w_weight is None else self.settings.w_weight
        parts = [loss_w.new_zeros(())] * 3
        if len(real):
            parts = self.reconstruction(self.synthesis(codes[: len(real)]), real, self.target_of(real))
        return torch.stack([parts[0] + weight * loss_w, *parts[1:], loss_w])

    @torch.no_grad()
    def reconstructed(self, images: Tensor) -> Tensor:
        """Reconstructions (B, 3, side, side)."""
        return self.synthesis(self.ema(images))


def w_metric(generator: Generator, power: float) -> Tensor:
    """C^power (style_dim, style_dim) of the covariance C of w, such that the mean of W has an error of 1."""
    w = sample_w(generator, W_SAMPLES, seed=0)
    variances, directions = torch.linalg.eigh(torch.cov(w.T.double()))
    # With a negative power, directions of almost no variance must not count without bound.
    variances = variances.clamp_min(1e-6 * float(variances.max()))
    weights = variances**power / (variances ** (1 + power)).sum()
    return ((directions * weights) @ directions.T).float()


def classifier() -> dict[str, Tensor]:
    """EfficientNet-lite0's weights as a classifier of ImageNet; FileError or UsageError if they are
    missing."""
    path = weights.find_weights(weights.EFFICIENTNET_LITE0, "the encoder's body")
    found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def body_sizes(settings: EncoderSettings, backbone: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths and blocks of the stages, empty if the backbone has fixed sizes; UsageError if they are not
    numbers."""
    if backbone == EFFICIENTNET:
        return (), ()
    widths = numbers(settings.widths, "widths")
    blocks = numbers(settings.blocks, "blocks") if settings.blocks else DEFAULT_BLOCKS.get(backbone, ())
    return widths, blocks


def numbers(text: str, name: str) -> tuple[int, ...]:
    """`64,128` → (64, 128); otherwise a UsageError that names the option."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise UsageError(f"{name} {text!r}: expected positive whole numbers such as 64,128,256")
    return values
