"""Inversion of the frames of a clip: one ε for all frames, and a few steps for each.

1. Key frames: the losses of Algorithm 1 are summed over them; each has a w, and all share one ε.
2. Each frame in turn: its w starts at the neighbour's. The frame adds a small low-rank ε (shared_offsets.py),
which also starts at the neighbour's, so that similar frames get similar codes.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.runtime import random_generator
from wrangan_cli.engine.inversion import wrangan
from wrangan_cli.engine.inversion.batch import Batch
from wrangan_cli.engine.inversion.fit import Fit
from wrangan_cli.engine.inversion.inverter import Inverter
from wrangan_cli.engine.inversion.learning_rates import LearningRates, rates_of_w_and_offsets
from wrangan_cli.engine.inversion.method_settings import WranganSettings
from wrangan_cli.engine.inversion.offsets import random_weights, small_offsets
from wrangan_cli.engine.inversion.optimizers import make_optimizer
from wrangan_cli.engine.inversion.variables import Variables
from wrangan_cli.engine.models.rendering import synthesize
from wrangan_cli.engine.models.shared_offsets import Factors, product

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class FrameFit:
    """What is stored for one frame; on the CPU, rounded as in the file."""

    w: Tensor
    """float32 (style_dim,)."""
    factors: Factors
    """The low-rank ε that the frame adds to the clip's: float16."""
    distortion: dict[str, float]


class ClipInverter:
    """Inverts the frames of one clip with `inverter`, which must use the method wrangan.

    rank: rank of the ε that each frame adds (0: none). steps, lr, alpha: settings for each frame.
    """

    def __init__(self, inverter: Inverter, rank: int, steps: int, lr: float, alpha: float) -> None:
        settings = inverter.settings
        assert isinstance(settings, WranganSettings)
        self.inverter, self.rank, self.alpha = inverter, rank, alpha
        self.key_settings = settings
        self.frame_settings = replace(settings, steps=steps, lr=lr, decay=1.0, epsilon_warmup=0.0)

    def fit_key_frames(self, images: Sequence[Tensor], on_step: OnStep) -> tuple[Tensor, dict[str, Tensor]]:
        """Fit one ε to all images (3, S, S) in [-1, 1].

        Returns w (K, style_dim) in float32, and ε by the weight's name, (O, I, k, k), rounded to float16;
        both on the CPU. Raises WranganError if they are not finite.
        """
        model, settings = self.inverter.model, self.key_settings
        stacked = torch.stack(list(images)).to(model.device)
        with self.inverter.fitted_model.generator.cached_weights():
            fit = self.inverter.fit(stacked, self.inverter.initial_w(stacked), on_step, features_at_once=1)
            w = fit.initial_w.clone().requires_grad_(True)
            weights = random_weights(model)
            epsilon = {
                name: value.requires_grad_(True)
                for name, value in small_offsets(weights, w[:1].detach(), settings).items()
            }

            def losses(progress: float) -> Iterable[Tensor]:
                for rows in torch.arange(len(w)).split(min(fit.at_once, len(w))):
                    shared = {
                        name: value.expand(len(rows), -1, -1, -1, -1) for name, value in epsilon.items()
                    }
                    yield wrangan.loss(fit, self._batch(fit, Variables(w[rows], shared), rows, progress))[0]

            self._optimise(fit, rates_of_w_and_offsets(w, epsilon, settings), losses)
            visible = fit.visible(epsilon)
            if self.inverter.powered is not None:
                visible = self.inverter.powered.to_original(visible)
        found = {name: value.detach()[0].half().float().cpu() for name, value in visible.items()}
        if not all(bool(value.isfinite().all()) for value in [w, *found.values()]):
            raise WranganError("inverting the key frames diverged: values are not finite")
        return w.detach().float().cpu(), found

    def initial_factors(self, shapes: dict[str, torch.Size]) -> Factors:
        """Where the factors of the first frame start: a product of zero (left is 0), in a random subspace."""
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
        self, image: Tensor, shared: dict[str, Tensor], w: Tensor, factors: Factors, on_step: OnStep
    ) -> FrameFit:
        """Fit one frame (3, S, S), starting at its neighbour's w (style_dim,) and `factors`. WranganError if
        the result is not finite."""
        model, settings = self.inverter.model, self.frame_settings
        device = model.device
        base = {name: value.to(device) for name, value in shared.items()}
        free_w = w.to(device).to(model.w_mean.dtype)[None].clone().requires_grad_(True)
        free = {name: (_leaf(left, free_w), _leaf(right, free_w)) for name, (left, right) in factors.items()}
        count = sum(value.numel() for value in base.values())
        with model.generator.cached_weights():
            # The ε of a frame is small, and added to one in units of the model's σ: no power of σ here.
            fit = replace(self.inverter, settings=settings, powered=None).fit(
                image[None].to(device), free_w, on_step
            )

            def losses(progress: float) -> Iterable[Tensor]:
                added = {name: product(*parts, base[name].shape) for name, parts in free.items()}
                variables = self._variables(free_w, base, added)
                batch = self._batch(fit, variables, torch.arange(1), progress)
                generated = synthesize(
                    model.generator,
                    free_w,
                    epsilon=fit.visible(variables.epsilon),
                    side=fit.rendered_side(batch),
                )
                loss = fit.data_loss(generated, batch)[0]
                square = sum((value.square().sum() for value in added.values()), start=loss.new_zeros(()))
                yield loss + self.alpha * square / count

            parts = [part for pair in free.values() for part in pair]
            self._optimise(fit, rates_of_w_and_offsets(free_w, parts, settings), losses)
            kept = {
                name: (left.detach().half().cpu(), right.detach().half().cpu())
                for name, (left, right) in free.items()
            }
            added = {name: product(*pair, base[name].shape).to(device) for name, pair in kept.items()}
            distortion = fit.distortion(self._variables(free_w.detach(), base, added))[0]
        if not all(map(math.isfinite, distortion.values())):
            raise WranganError("wrangan diverged: values are not finite")
        return FrameFit(free_w.detach()[0].float().cpu(), kept, distortion)

    @torch.no_grad()
    def rendered(self, w: Tensor, shared: dict[str, Tensor], factors: Factors, side: int) -> Tensor:
        """The image of a frame as stored: (3, side, side) in [-1, 1], clipped, on the CPU."""
        device = self.inverter.model.device
        base = {name: value.to(device) for name, value in shared.items()}
        added = {name: product(*parts, base[name].shape).to(device) for name, parts in factors.items()}
        epsilon = self._variables(w[None].to(device), base, added).epsilon
        image = synthesize(self.inverter.model.generator, w[None].to(device), epsilon=epsilon, side=side)
        return image[0].clamp(-1, 1).cpu()

    @staticmethod
    def _variables(w: Tensor, base: dict[str, Tensor], added: dict[str, Tensor]) -> Variables:
        whole = {name: value + added[name] if name in added else value for name, value in base.items()}
        return Variables(w=w, epsilon={name: value[None].to(w.dtype) for name, value in whole.items()})

    @staticmethod
    def _batch(fit: Fit[WranganSettings], variables: Variables, rows: Tensor, progress: float) -> Batch:
        target = None if fit.target is None else [features[rows] for features in fit.target]
        return Batch(variables, fit.images[rows], target, rows, [], progress)

    @staticmethod
    def _optimise(
        fit: Fit[WranganSettings], rates: LearningRates, losses: Callable[[float], Iterable[Tensor]]
    ) -> None:
        """Minimise the sum of the losses, whose gradients are computed one loss at a time."""
        total = fit.settings.loop_steps
        optimizer = make_optimizer(fit.settings, rates.groups, lambda: rates.free[0])
        for step in range(total):
            optimizer.zero_grad()
            summed = torch.zeros(())
            for loss in losses(step / total):
                loss.sum().backward()
                summed = loss.detach()
            optimizer.step(summed, rates.factors(step / total))
            fit.on_step(step + 1)
        optimizer.settle()


def _leaf(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like, copy=True).requires_grad_(True)
