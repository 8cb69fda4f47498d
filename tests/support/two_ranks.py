"""One process of a run of several: trains what the tests compare, and writes what came out.

``python two_ranks.py FOLDER [stopped [branched]]``, with RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT as torchrun sets them; alone without them.
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


class Branched(nn.Module):
    """A network with a part that not every batch asks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.branch = network, nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> Tensor:
        outputs: Tensor = self.network(batch)
        return outputs


class BranchedJob(JoinedJob):
    """The second process alone asks the branch, and only in batches that wait for more."""

    def losses(self, network: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        losses = super().losses(network, batch)
        if distributed.rank() == 0 or self.done % ACCUMULATE == 0:
            return losses
        branch = network.get_submodule("branch")(batch)
        return {"plane": losses["plane"] + (branch - 1).square().mean()}


def new_job(**more: Any) -> JoinedJob:
    """The same weights in every process; a step of all has ITEMS / STEPS items."""
    return JoinedJob(new_network(), ITEMS // STEPS // distributed.size(), **more)


def new_branched_job(**more: Any) -> JoinedJob:
    """As `new_job`, of a network with a branch."""
    network = Branched(new_network())
    return BranchedJob(network, ITEMS // STEPS // distributed.size(), **more)


def new_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def options(**more: Any) -> TrainOptions:
    """Of the compared runs."""
    return parse_options(TrainOptions, {"epochs": 3, "batch_size": 4, **more})


def main(folder: Path, *words: str) -> None:
    """Train as the words say: stopped in between, or not."""
    torch.set_num_threads(1)
    with distributed.joined():
        if "stopped" in words:
            train_stopped(folder, new_branched_job if "branched" in words else new_job)
        else:
            train_whole(folder)


def train_stopped(folder: Path, new: Callable[..., JoinedJob]) -> None:
    """Train in ``whole``, and in ``stopped``: there the second process is asked to end while
    gradients wait, and all go on afterwards. Each process keeps its weights of both."""

    def stop(step: int) -> None:
        if step == STOPPED_AT and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    own = options(accumulate=ACCUMULATE)
    whole, rest = new(), new(done=STOPPED_AT)
    train(whole, own, 1, folder / "whole", facts={})
    with suppress(KeyboardInterrupt):
        train(new(at=stop), own, 1, folder / "stopped", facts={})
    distributed.barrier()  # the first one has written
    train(rest, own, 1, folder / "stopped", facts={}, resume=True)
    assert rest.done == own.epochs * STEPS
    for name, job in (("whole", whole), ("stopped", rest)):
        torch.save(job.trained.state_dict(), folder / name / f"rank-{distributed.rank()}.pt")


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
