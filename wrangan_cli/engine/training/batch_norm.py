"""Batch normalisation over the images of all processes, on any device."""

import torch
from torch import Tensor, nn

from wrangan_cli.engine.base.distributed import differentiable_mean, world_size


class SharedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with mean and variance of the whole batch; every process has equally many images."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), same shape out."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        mean = differentiable_mean(x.mean(dim=(0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = differentiable_mean(centred.square().mean(dim=(0, 2, 3)))
        self._follow(mean.detach(), variance.detach(), x.numel() // x.shape[1] * world_size())
        factor = (variance + self.eps).rsqrt() * self.weight
        return centred * factor[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1


def share_batch_norm(network: nn.Module) -> nn.Module:
    """Replace every nn.BatchNorm2d inside `network`, keeping weights and state-dict keys."""
    for name, child in network.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.load_state_dict(child.state_dict())
            setattr(network, name, shared)
        else:
            share_batch_norm(child)
    return network
