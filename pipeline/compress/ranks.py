"""Training by several processes that torchrun started: each takes a share of every batch.

After the backward pass the gradients of all processes are gathered and added in the order of their ranks, so
every process takes the same step, and the same number of processes always gives the same bits. Batch norm
that learns sees its process's share, as in torch's DistributedDataParallel; its statistics are averaged after
each step.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paredown.targets.errors import UsageError

WAIT_DAYS = 30  # for a process that is at other stages


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: of it; 0 is the one that writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, images: Tensor, labels: Any) -> tuple[Tensor, Any]:
        """This process's part of a batch: images (N, ...) and their N labels, or None.

        Raises:
            UsageError: the batch has no equal parts.
        """
        if self.size == 1:
            return images, labels
        if len(images) % self.size:
            raise UsageError(f"a batch of {len(images)} has no {self.size} equal parts", where="torchrun",
                             hint="change recover.batch or squantize.batch")  # fmt: skip
        each = len(images) // self.size
        part = slice(self.rank * each, (self.rank + 1) * each)
        if labels is None:
            return images[part], None
        if not isinstance(labels, (Tensor, Sequence)) or len(labels) != len(images):
            raise UsageError("this app's labels cannot be shared out image by image", where="torchrun")
        return images[part], labels[part]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every process the mean of all processes' gradients."""
        self._average([p.grad for p in parameters if p.grad is not None])

    def average_statistics(self, network: nn.Module) -> None:
        """Gives every process the mean of all processes' batch norm statistics."""
        self._average([buffer for buffer in network.buffers() if buffer.is_floating_point()])

    def mean(self, value: float) -> float:
        """The mean of all processes' values; where one is not finite, neither is it."""
        tensor = torch.tensor([value], dtype=torch.float64)
        self._average([tensor])
        return float(tensor)

    def _average(self, tensors: Sequence[Tensor]) -> None:
        if self.size == 1 or not tensors:
            return
        from torch.distributed import all_gather

        flat = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])
        found = [torch.empty_like(flat) for _ in range(self.size)]
        all_gather(found, flat)
        total, same = found[0].clone(), torch.ones_like(flat, dtype=torch.bool)
        for each in found[1:]:
            total += each
            same &= each == found[0]
        total = torch.where(same, found[0], total / self.size)  # a third of three times a value is another
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def ranks() -> Ranks:
    """This process among those of torchrun, which it joins; alone without torchrun.

    Raises:
        UsageError: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return Ranks()
    from torch import distributed

    if not distributed.is_initialized():
        try:
            distributed.init_process_group("gloo", timeout=datetime.timedelta(days=WAIT_DAYS))
        except (RuntimeError, ValueError) as error:  # torch's own errors of a store or a socket are these
            reason = " ".join(str(error).split())
            raise UsageError(f"the processes do not find each other: {reason}", where="torchrun") from error
    return Ranks(distributed.get_rank(), distributed.get_world_size())
