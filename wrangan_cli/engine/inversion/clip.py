"""The inversion of the frames of a clip: one ε for all of them, and few steps from frame to frame.

1. Key frames: the losses of Algorithm 1 are summed over them; each has its own w, and all have one ε.
2. Each frame, in their order: its w starts at its neighbour's, and what its own ε adds is of low rank
   (shared_offsets.py), small, and starts at the neighbour's too. So neighbours agree where they look alike.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion.batch import Target
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.methods import METHOD_TABLE, Moment
from wrangan_cli.engine.inversion.optimizers import make_optimizer
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.rendering import synthesize
from wrangan_cli.engine.models.shared_offsets import Factors, product

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class FrameFit:
    """What is stored of one frame. All on the CPU, rounded as the file has it."""

    w: Tensor
    """float32 (style_dim,)."""
    own: Factors
    """What its ε adds to the clip's: float16."""
    distortion: dict[str, float]


class ClipInverter:
    """Inverts the frames of one clip with `inverter`, of the method wrangan.

    rank: of what a frame's own ε adds (0: nothing). steps, lr, alpha: of each frame.
    """

    def __init__(self, inverter: Inverter, rank: int, steps: int, lr: float, alpha: float) -> None:
        self.inverter, self.rank, self.alpha = inverter, rank, alpha
        self.frame_settings = replace(inverter.settings, steps=steps, lr=lr, decay=1.0, epsilon_warmup=0.0)

    def fit_key_frames(self, images: Sequence[Tensor], on_step: OnStep) -> tuple[Tensor, dict[str, Tensor]]:
        """One ε for images (3, S, S) in [-1, 1]: w (K, style_dim) in float32, and ε by the weight's name,
        (O, I, k, k), rounded to float16; both on the CPU. WranganError where they are not finite."""
        model, settings = self.inverter.model, self.inverter.settings
        stacked = torch.stack(list(images)).to(model.device)
        targets = [self.inverter.features(image[None]) for image in stacked]
        with model.generator.cached_weights():
            start = METHOD_TABLE["wrangan"].start(model, self.inverter.initial_w(stacked), settings)
            w = start.w.requires_grad_(True)
            epsilon = {name: value[:1].clone().requires_grad_(True) for name, value in start.epsilon.items()}

            def losses(moment: Moment) -> Iterable[Tensor]:
                for rows in torch.arange(len(w)).split(min(self.inverter.at_once, len(w))):
                    shared = {
                        name: value.expand(len(rows), -1, -1, -1, -1) for name, value in epsilon.items()
                    }
                    target = _joined([targets[row] for row in rows.tolist()])
                    variables = Variables(w=w[rows], epsilon=shared)
                    yield self.inverter.loss(variables, stacked[rows], target, moment)[0]

            free = Variables(w=w, epsilon=epsilon, free=[w, *epsilon.values()])
            self._optimise(free, settings, losses, on_step)
            shown = self.inverter.offsets(free, stacked.shape[-1])["epsilon"]
        found = {name: value.detach()[0].half().float().cpu() for name, value in shown.items()}
        if not all(bool(value.isfinite().all()) for value in [w, *found.values()]):
            raise WranganError("the key frames gave values that are not finite")
        return w.detach().float().cpu(), found

    def first_own(self, shapes: dict[str, torch.Size]) -> Factors:
        """What the first frame's own ε starts from: nothing (left is 0), in a random subspace."""
        rng = random_generator(self.inverter.settings.seed)
        return {
            name: (
                torch.zeros(shape[0], self.rank),
                torch.randn(self.rank, math.prod(shape[1:]), generator=rng) / math.sqrt(self.rank),
            )
            for name, shape in shapes.items()
            if self.rank
        }

    def fit_frame(
        self, image: Tensor, shared: dict[str, Tensor], w: Tensor, own: Factors, on_step: OnStep
    ) -> FrameFit:
        """One frame (3, S, S), from w (style_dim,) and `own` of its neighbour. WranganError where the result
        is not finite."""
        model, settings = self.inverter.model, self.frame_settings
        device = model.device
        images = image[None].to(device)
        target = self.inverter.features(images)
        base = {name: value.to(device) for name, value in shared.items()}
        free_w = w.to(device).to(model.w_mean.dtype)[None].clone().requires_grad_(True)
        factors = {name: (_leaf(left, free_w), _leaf(right, free_w)) for name, (left, right) in own.items()}
        count = sum(value.numel() for value in base.values())

        def losses(moment: Moment) -> Iterable[Tensor]:
            added = {name: product(*parts, base[name].shape) for name, parts in factors.items()}
            loss = self.inverter.data_loss(self._variables(free_w, base, added), images, target, moment)[0]
            square = sum((value.square().sum() for value in added.values()), start=loss.new_zeros(()))
            yield loss + self.alpha * square / count

        with model.generator.cached_weights():
            free = Variables(w=free_w, free=[free_w, *(part for parts in factors.values() for part in parts)])
            self._optimise(free, settings, losses, on_step)
            kept = {
                name: (left.detach().half().cpu(), right.detach().half().cpu())
                for name, (left, right) in factors.items()
            }
            added = {name: product(*parts, base[name].shape).to(device) for name, parts in kept.items()}
            stored = self._variables(free_w.detach(), base, added)
            distortion = self.inverter.distortion(stored, images, target)[0]
        if not all(map(math.isfinite, distortion.values())):
            raise WranganError("wrangan gave values that are not finite")
        return FrameFit(free_w.detach()[0].float().cpu(), kept, distortion)

    @torch.no_grad()
    def drawn(self, w: Tensor, shared: dict[str, Tensor], own: Factors, side: int) -> Tensor:
        """The frame as it is stored: (3, side, side) in [-1, 1], clipped, on the CPU."""
        device = self.inverter.model.device
        base = {name: value.to(device) for name, value in shared.items()}
        added = {name: product(*parts, base[name].shape).to(device) for name, parts in own.items()}
        epsilon = self._variables(w[None].to(device), base, added).epsilon
        image = synthesize(self.inverter.model.generator, w[None].to(device), epsilon=epsilon, side=side)
        return image[0].clamp(-1, 1).cpu()

    @staticmethod
    def _variables(w: Tensor, base: dict[str, Tensor], added: dict[str, Tensor]) -> Variables:
        whole = {name: value + added[name] if name in added else value for name, value in base.items()}
        return Variables(w=w, epsilon={name: value[None].to(w.dtype) for name, value in whole.items()})

    def _optimise(
        self, free: Variables, settings: Any, losses: Callable[[Moment], Iterable[Tensor]], on_step: OnStep
    ) -> None:
        """Steps of Adam by the summed losses, which are graded one after the other."""
        method, total = METHOD_TABLE["wrangan"], settings.loop_steps
        optimizer = make_optimizer(settings, method.groups(free, settings), lambda: free.w)
        rng = random_generator(settings.seed)
        for step in range(total):
            moment = Moment(self.inverter.model, settings, self.inverter.perceptual, rng, step / total)
            optimizer.zero_grad()
            summed = torch.zeros(())
            for loss in losses(moment):
                loss.sum().backward()
                summed = loss.detach()
            optimizer.step(summed, method.factors(settings, step / total))
            on_step(step + 1)
        optimizer.settle()


def _leaf(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like, copy=True).requires_grad_(True)


def _joined(targets: Sequence[Target]) -> Target:
    if not targets or targets[0] is None:
        return None
    return [
        torch.cat(maps) for maps in zip(*(target for target in targets if target is not None), strict=True)
    ]
