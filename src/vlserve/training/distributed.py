"""Several processes that train one network: torch.distributed, as torchrun starts them.

Batch i of a job is rank i's, i + size is its next one: a step of all ranks sees the items that a
step of one process with a batch of ``size`` times as many would see.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.nn.parallel import DistributedDataParallel

Part = TypeVar("Part")
Result = TypeVar("Result")
Losses = Callable[[nn.Module, Any], Mapping[str, Tensor]]
BACKENDS = "cpu:gloo,cuda:nccl"
"""By where a tensor is."""
JOIN_TIMEOUT = timedelta(minutes=2)
"""torchrun starts those that give up once more."""
STEP_TIMEOUT = timedelta(minutes=30)
"""As torch has it: one process may evaluate for long while the others wait."""


def rank() -> int:
    """Return the number of this process, from 0; 0 without others."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes train."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started with this one; alone where it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backends = BACKENDS if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backends, timeout=JOIN_TIMEOUT)
    _set_pg_timeout(STEP_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all."""
    if size() > 1:
        dist.barrier()


def over_ranks(parts: Iterable[Part], work: Callable[[Part], Result]) -> list[Result]:
    """Return the result of each part, in their order, on every rank. A rank does every ``size``-th
    part, none twice."""
    if size() == 1:
        return [work(part) for part in parts]
    every = list(parts)
    own = [work(part) for part in every[rank() :: size()]]
    gathered_parts: list[Any] = [None] * size()
    dist.all_gather_object(gathered_parts, own)
    return [gathered_parts[number % size()][number // size()] for number in range(len(every))]


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """Return rows of every rank, in their order; without a gradient."""
    if size() == 1:
        return tensor
    own = tensor.contiguous()
    every = [torch.empty_like(own) for _ in range(size())]
    dist.all_gather(every, own)
    return torch.cat(every)


def gathered_with_gradient(tensor: Tensor) -> Tensor:
    """Return rows of every rank, in their order; a gradient goes back to the rank that a row is
    of."""
    if size() == 1:
        return tensor
    rows: Tensor = _Gathered.apply(tensor)  # type: ignore[no-untyped-call]
    return rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gathered(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(size())[rank()]


def mean_of(values: Mapping[str, float]) -> dict[str, float]:
    """Return means over ranks, the same on each."""
    if size() == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, (total / size()).tolist(), strict=True))


def on_any(flag: bool) -> bool:
    """Return whether a flag is set on any rank."""
    if size() == 1:
        return flag
    total = torch.tensor(int(flag))
    dist.all_reduce(total)
    return bool(total)


@torch.no_grad()
def share_buffers(*networks: nn.Module) -> None:
    """Give every rank the buffers of the first, such as a norm's running means."""
    if size() > 1:
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class _Losses(nn.Module):
    """What DistributedDataParallel wraps: a network's losses of a batch."""

    def __init__(self, network: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.network, self.losses = network, losses

    def forward(self, batch: Any, touch_waiting: bool) -> dict[str, Tensor]:
        losses = dict(self.losses(self.network, batch))
        if touch_waiting:
            name = next(iter(losses))
            losses[name] = losses[name] + _nothing_of_waiting(self.network)
        return losses


def _nothing_of_waiting(network: nn.Module) -> Tensor | float:
    """Return 0, with a gradient of 0 for every parameter whose gradient waits."""
    waiting = (x for x in network.parameters() if x.requires_grad and x.grad is not None)
    return sum((x.flatten()[:0].sum() for x in waiting), start=0.0)


class SharedLosses:
    """Losses of a batch whose gradients are means over ranks.

    DistributedDataParallel averages what a rank used since the last mean. Of gradients that were
    read from a file it knows nothing: one that a single rank has would stay on that rank.
    """

    def __init__(self, network: nn.Module, losses: Losses) -> None:
        self._module: nn.Module = _Losses(network, losses)
        self._restored = False
        if size() > 1:
            self._module = DistributedDataParallel(
                self._module, forward_sync_buffers=False, find_unused_parameters=True
            )

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        touch = self._restored and bool(getattr(self._module, "require_backward_grad_sync", False))
        self._restored = self._restored and not touch
        losses: dict[str, Tensor] = self._module(batch, touch)
        return losses

    def add_restored(self) -> None:
        """Have gradients that were read from a file in the next mean over ranks."""
        self._restored = size() > 1

    def alone(self, more_to_come: bool) -> AbstractContextManager[None]:
        """Keep gradients on their rank meanwhile, because more are to be added to them."""
        if more_to_come and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()
