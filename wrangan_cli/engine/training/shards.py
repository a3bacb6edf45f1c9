"""Split the images of one step into parts: one per process and micro-batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wrangan_cli.engine.base.distributed import rank, world_size
from wrangan_cli.engine.base.errors import UsageError


class Shards:
    """The rows of the whole batch that this process works on, micro-batch by micro-batch.

    batch: images per step over all processes. group: images that the discriminator judges
    together (None: all of them). accumulate: micro-batches per process. A group is never split, and the
    images of a part are ordered so that they form the same groups as in the whole batch
    (image i belongs to group i mod (batch / group)), so the parts have the same losses as the whole.
    Raises UsageError if the batch cannot be split in this way.
    """

    def __init__(self, batch: int, group: int | None, accumulate: int = 1) -> None:
        count = world_size() * accumulate
        if count == 1:
            group = min(group or batch, batch)
        elif group is None:
            raise UsageError("this D compares all images of a batch: use one process and --accumulate 1")
        # The path-length penalty takes half a batch, cut into equally many parts.
        unit = group if count == 1 else count * (group if group % 2 == 0 else 2 * group)
        if batch % unit:
            parts = f" in each of {count} parts" if count > 1 else ""
            raise UsageError(
                f"batch {batch}: expected a multiple of {unit}, since D judges {group} images together{parts}"
            )
        self.batch = batch
        mine = range(rank() * accumulate, (rank() + 1) * accumulate)
        columns = torch.arange(batch).reshape(group, batch // group).chunk(count, dim=1)
        self.parts: list[Tensor] = [columns[part].flatten() for part in mine]
        half = max(1, batch // 2)
        self.half_parts: list[Tensor] = [torch.arange(half).chunk(count)[part] for part in mine]
        self.half = half

    @property
    def rows(self) -> Tensor:
        """All rows of this process, in the order that `cut` expects."""
        return torch.cat(self.parts)

    def cut(self, images: Tensor) -> Sequence[Tensor]:
        """The images of this process, in the order of `rows`, as micro-batches."""
        return images.chunk(len(self.parts))
