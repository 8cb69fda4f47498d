"""One process of a run of several: trains what the tests compare, and writes what came out.

``python two_ranks.py FOLDER [stopped]``, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as
torchrun sets them; alone without them.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.training import distributed
from vlserve.training.objectives.momentum import Queue
from vlserve.training.options import TrainOptions, parse_options
from vlserve.training.run import train

ITEMS, STEPS = 16, 4
"""Of an epoch, and its steps of the joint batch."""
ACCUMULATE, STOPPED_AT = 3, 5
"""Batches to a step of the optimizer, and the one after which two wait for a third."""


@dataclass
class JoinedJob:
    """Points of a plane; ``batch_size`` items a batch, in the same order whatever it is. ``at`` is
    called before each step's losses."""

    trained: nn.Module
    batch_size: int
    at: Callable[[int], None] = lambda step: None
    done: int = 0

    chosen_by = "fit"

    @property
    def steps(self) -> int:
        return ITEMS // self.batch_size

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        yield from torch.rand(ITEMS, 3, generator=generator).split(self.batch_size)

    def losses(self, network: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        self.done += 1
        self.at(self.done)
        return {"plane": F.mse_loss(network(batch), batch.sum(dim=1, keepdim=True))}

    def figures(self, network: nn.Module) -> Mapping[str, float]:
        rows = torch.eye(3).unsqueeze(1)
        with torch.no_grad():
            losses = distributed.over_ranks(rows, lambda row: float(network(row) - 1))
        return {"fit": -sum(loss * loss for loss in losses)}

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        return network.state_dict()


def new_job(**more: Any) -> JoinedJob:
    """The same weights in every process; a step of all has ITEMS / STEPS items."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return JoinedJob(network, ITEMS // STEPS // distributed.size(), **more)


def options(**more: Any) -> TrainOptions:
    """Of the compared runs."""
    return parse_options(TrainOptions, {"epochs": 3, "batch_size": 4, **more})


def main(folder: Path, *words: str) -> None:
    """Train as the words say: stopped in between, or not."""
    torch.set_num_threads(1)
    with distributed.joined():
        work = train_stopped if words else train_whole
        work(folder)


def train_stopped(folder: Path) -> None:
    """Train in ``whole``, and in ``stopped``: there the second process is asked to end while
    gradients wait, and all go on afterwards."""

    def stop(step: int) -> None:
        if step == STOPPED_AT and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    own = options(accumulate=ACCUMULATE)
    train(new_job(), own, 1, folder / "whole", facts={})
    with suppress(KeyboardInterrupt):
        train(new_job(at=stop), own, 1, folder / "stopped", facts={})
    distributed.barrier()  # the first one has written
    rest = new_job()
    train(rest, own, 1, folder / "stopped", facts={}, resume=True)
    assert rest.done == own.epochs * STEPS - STOPPED_AT


def train_whole(folder: Path) -> None:
    """Train, and fill a queue by rows of every rank."""
    train(new_job(), options(), 1, folder, facts={})
    queue = Queue(2, 8)
    number = float(distributed.rank() + 1)
    rows, ids = torch.full((2, 2), number), torch.full((2,), int(number))
    queue.put(*(distributed.gathered(x) for x in (rows, rows, ids)))
    values = {"ids": queue.ids[0, : 2 * distributed.size()], "images": queue.images[:, :4]}
    weight = torch.full((1, 1), number, requires_grad=True)
    distributed.gathered_with_gradient(weight).sum().backward()
    record = {**values, "gradient": weight.grad, "any": distributed.on_any(number == 2)}
    torch.save(record, folder / f"rank-{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
