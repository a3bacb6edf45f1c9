"""Several processes as started by torchrun: the number of this process, its shard, and collective exchange.

With one process (no `WORLD_SIZE` in the environment) every function here is a no-op, so
callers need no special case. The functions that move data are collective: every
process must call them, in the same order.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wrangan_cli.engine.base.errors import UsageError, WranganError, cause_of

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long one process waits for the others: the first may be decoding a data set or computing KID."""


def rank() -> int:
    """Number of this process, 0 … world_size() - 1."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def local_gpu() -> torch.device:
    """The GPU of this process: under torchrun the one numbered LOCAL_RANK, otherwise the current one.

    Raises UsageError if the machine has fewer GPUs than processes.
    """
    if "WORLD_SIZE" not in os.environ:
        return torch.device("cuda")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise UsageError(f"process {local + 1} of this machine has no GPU: there are {count}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's other processes for the duration of the block; without torchrun nothing happens.

    Tensors on a GPU are sent by NCCL, those on the CPU by gloo. Call it before
    `resolve_device`, which gives each process a separate GPU.
    """
    if "WORLD_SIZE" not in os.environ or _joined():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # torchrun's store outlives a restart, and then holds the addresses of the previous processes.
    store, this_rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    fresh = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=fresh, rank=this_rank, world_size=count, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has called this."""
    any_rank(False)


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if world_size() == 1:
        return flag
    value = torch.tensor([float(flag)])
    _all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a tensor of the same shape in every process; a new tensor, float32 at least."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    _all_reduce(total, dist.ReduceOp.SUM)
    return total / world_size()


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient in each is the sum of the gradients in all."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        total = tensor.clone()
        _all_reduce(total, dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        _all_reduce(total, dist.ReduceOp.SUM)
        return total


def differentiable_mean(tensor: Tensor) -> Tensor:
    """`mean_over_ranks` with gradients to the tensors of all processes."""
    return tensor if world_size() == 1 else _Sum.apply(tensor) / world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _all_reduce(flat, dist.ReduceOp.SUM)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_objects(obj: T) -> list[T]:
    """The objects of all processes (anything that can be pickled), in order of rank, in every process."""
    if world_size() == 1:
        return [obj]
    gathered: list[Any] = [None] * world_size()
    with _clear_errors():
        dist.all_gather_object(gathered, obj)
    return gathered


def broadcast(obj: T) -> T:
    """The object of the main process, in every process."""
    if world_size() == 1:
        return obj
    box: list[Any] = [obj]
    with _clear_errors():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def local_shard(sequence: Sequence[T]) -> Sequence[T]:
    """This process's shard: every world_size()-th element, from the rank()-th on."""
    return sequence[rank() :: world_size()]


def gather_shards(local: Sequence[T]) -> list[T]:
    """The results for all elements of a sequence, in order, in every process.

    local: this process's results, one for each element of its `local_shard`, in order.
    """
    shards = gather_objects(local)
    count, processes = sum(map(len, shards)), len(shards)
    return [shards[index % processes][index // processes] for index in range(count)]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce(tensor: Tensor, operation: Any) -> None:
    with _clear_errors():
        dist.all_reduce(tensor, operation)


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WranganError(f"connection to the other processes lost ({cause_of(error)})") from error
