"""The device memory that a training will need, computed without allocating it.

Weights, gradients and Adam's two moments are counted. Activations are measured: the
losses are computed on PyTorch's `meta` device, where tensors have shapes and no values,
and what autograd keeps for the backward pass is summed. Not included: gradients of
activations, the workspace of cuDNN and oneDNN, and the fragmentation of the allocator.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wrangan_cli.engine.models.generator import Generator
from wrangan_cli.engine.models.projected import projected_discriminator_loss, projected_generator_loss
from wrangan_cli.engine.training.adversarial import AdversarialTrainer
from wrangan_cli.engine.training.encoder import ImageTrainer
from wrangan_cli.engine.training.losses import (
    discriminator_loss,
    generator_loss,
    path_lengths,
    r1_penalty,
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    weights: int
    """All networks, averages included."""
    gradients: int
    """The gradients of the networks that are trained."""
    optimisers: int
    """Adam's moments."""
    activations: dict[str, int]
    """What autograd keeps, by pass; only one pass is in memory at a time."""

    @property
    def total(self) -> int:
        """With the activations of the largest pass."""
        return self.weights + self.gradients + self.optimisers + max(self.activations.values())


def parameter_count(network: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def adversarial_memory(trainer: AdversarialTrainer) -> Memory:
    """Memory of one process when training G and D."""
    settings, shards = trainer.settings, trainer.shards
    generator = copy.deepcopy(trainer.generator).to("meta").requires_grad_(True)
    native = trainer.discriminator
    discriminator = copy.deepcopy(native).to("meta").requires_grad_(True) if native else None
    projected = copy.deepcopy(trainer.projected).to("meta") if trainer.projected else None
    batch, half = len(shards.parts[0]), len(shards.half_parts[0])
    side, colours = generator.config.resolution, generator.config.image_channels
    real = torch.empty(batch, colours, side, side, device="meta")
    per_image = getattr(settings, "epsilon_per", "batch") == "image"

    def judge(images: Tensor) -> Tensor:
        assert discriminator is not None
        return discriminator(images)

    def discriminate() -> Tensor:
        with torch.no_grad():
            fake, _ = _generate(generator, batch, per_image)
        losses = [discriminator_loss(judge(real), judge(fake))] if trainer.native else []
        if projected:
            losses.append(projected_discriminator_loss(projected(real), projected(fake)))
        return torch.stack(losses).sum()

    def penalise_gradient() -> Tensor:
        images = real.detach().requires_grad_(True)
        return r1_penalty(judge(images), images)

    def generate() -> Tensor:
        if discriminator:
            discriminator.requires_grad_(False)
        fake, _ = _generate(generator, batch, per_image)
        losses = [generator_loss(judge(fake))] if trainer.native else []
        if projected:
            losses.append(projected_generator_loss(projected(fake)))
        return torch.stack(losses).sum()

    def penalise_path_length() -> Tensor:
        images, w = _generate(generator, half, per_image)
        return path_lengths(images, w, torch.empty_like(images)).square().mean()

    passes: dict[str, Callable[[], Tensor]] = {
        "discriminator": discriminate,
        "generator": generate,
    }
    if trainer.native:
        passes["R1"] = penalise_gradient
    if settings.path_length_weight > 0:
        passes["path length"] = penalise_path_length
    trained: list[nn.Module] = [trainer.generator, *([native] if native and trainer.native else [])]
    networks: list[nn.Module] = [trainer.generator, *([native] if native else []), trainer.ema]
    constant: list[nn.Module] = [generator, *([discriminator] if discriminator else [])]
    if trainer.projected and projected:
        trained.append(trainer.projected.heads)
        networks.append(trainer.projected)
        constant.append(projected)
    return _memory(networks, trained, {n: _kept(p, constant) for n, p in passes.items()})


def encoder_memory(trainer: ImageTrainer[Any]) -> Memory:
    """Memory of one process when training an encoder; if it makes several passes, all are equally large."""
    twin, side = trainer.on_meta(), trainer.side
    count = len(trainer.rows)
    real = torch.empty(count, 3, side, side, device="meta")
    z = torch.empty(count, trainer.model.generator.config.style_dim, device="meta")
    kept = _kept(lambda: twin.losses(real, z), twin.networks())
    return _memory(trainer.networks(), [trainer.encoder], {"encoder": kept})


def _generate(generator: Generator, batch: int, epsilon_per_image: bool) -> tuple[Tensor, Tensor]:
    config = generator.config
    w = generator.mapping(torch.empty(batch, config.style_dim, device="meta"))
    w = w[:, None].repeat(1, config.num_latents, 1)
    leading = (batch,) if epsilon_per_image else ()
    epsilon = {
        name: torch.empty(*leading, *weight.shape, device="meta")
        for name, weight in generator.random_weights().items()
    }
    maps = [given.map for given in generator.noise_inputs().values()]
    noise = [torch.empty(batch, *stored.shape[1:], device="meta") for stored in maps]
    return generator.synthesis(w, epsilon=epsilon, noise=noise), w


def _kept(loss: Callable[[], Tensor], constant: Iterable[nn.Module]) -> int:
    """Bytes of the tensors held by the graph of a loss, each counted once, except weights of `constant`."""
    known = {
        tensor.untyped_storage()._cdata
        for network in constant
        for tensor in [*network.parameters(), *network.buffers()]
    }
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in held.values())


def _memory(all_networks: list[nn.Module], trained: list[nn.Module], activations: dict[str, int]) -> Memory:
    def size(networks: list[nn.Module], with_buffers: bool) -> int:
        tensors = [t for n in networks for t in [*n.parameters(), *(n.buffers() if with_buffers else ())]]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    gradients = size(trained, with_buffers=False)
    return Memory(size(all_networks, with_buffers=True), gradients, 2 * gradients, activations)
