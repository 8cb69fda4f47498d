"""One training run, whatever is learnt: epochs, evaluation, early stop, log, checkpoints, resume.

A `Job` says what is trained on what; `train` does the rest. Everything random follows from the seed
and the epoch, so a run that stops in the middle of an epoch goes on to the same bytes.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vlserve.errors import TrainingError
from vlserve.training.distributed import (
    SharedLosses,
    barrier,
    is_first,
    mean_of,
    on_any,
    rank,
    share_buffers,
    size,
)
from vlserve.training.optimisers import needs_second_order
from vlserve.training.options import TrainOptions
from vlserve.training.run_folder import LAST, WEIGHTS
from vlserve.training.run_log import LogTo, RunLog, open_log
from vlserve.training.state import (
    TrainState,
    load_facts,
    load_state,
    new_state,
    save_state,
    save_weights,
)

NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")
"""How torch says it, beside its own exception."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: items read, of one file and then of the other; items encoded, likewise,
    where a part of the network is frozen; steps of all epochs, with the losses of the last as
    ``figures``; or epochs trained, with the figures of the last."""

    stage: Literal["read", "encode", "step", "train"]
    done: int
    total: int
    figures: Mapping[str, float] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class Job(Protocol):
    """What is trained, on what, towards what."""

    @property
    def trained(self) -> nn.Module:
        """The network, or the part of it that learns."""
        ...

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        ...

    @property
    def chosen_by(self) -> str:
        """The figure by which the best epoch is chosen; higher is better."""
        ...

    def batches(self, seed: int, epoch: int) -> Iterator[Any]:
        """Yield the same batches for the same seed and epoch, ``steps`` of them."""
        ...

    def losses(self, network: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        """Return losses by name, whose sum is minimised."""
        ...

    def figures(self, network: nn.Module) -> Mapping[str, float]:
        """Return what the validation items say of the averaged network."""
        ...

    def checkpoint(self, network: nn.Module) -> Mapping[str, Tensor]:
        """Return every tensor of model.safetensors, with those of ``network`` for what was
        trained."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a run stands: an epoch, counted from 1, and the steps done in it."""

    epoch: int
    step: int = 0
    losses: tuple[float, ...] = ()
    """Of the steps done."""


@dataclass(frozen=True)
class Watch:
    """Whom a run tells what it does: its log, and who asked for its progress."""

    log: RunLog | None
    """None where another process writes."""
    progress: OnProgress
    epochs: int
    steps: int

    def step(self, epoch: int, step: int, losses: Mapping[str, float], rate: float) -> None:
        """Tell of a step, counted from 1."""
        if self.log:
            self.log.step(epoch, step, losses, rate)
        count, total = (epoch - 1) * self.steps + step, self.epochs * self.steps
        self.progress(Progress("step", count, total, losses))

    def draw(self) -> None:
        """Draw the log's curves."""
        if self.log:
            self.log.draw()

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()

    def epoch(self, line: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Tell of an epoch."""
        if self.log:
            self.log.epoch(line)
        self.progress(Progress("train", line["epoch"], self.epochs, figures))


def train(
    job: Job,
    options: TrainOptions,
    seed: int,
    out: Path,
    *,
    facts: Mapping[str, Any],
    resume: bool = False,
    progress: OnProgress | None = None,
    log_to: LogTo = "jsonl",
) -> list[dict[str, Any]]:
    """Train until the last epoch, or until none got better for ``patience``; return the figures of
    every epoch. The best epoch's weights are model.safetensors in ``out``, the state after the last
    step last.safetensors; log.jsonl has a line a step or so, and curves.png shows it.

    ``facts`` are kept with the state. Ctrl-C ends the run after the step that is under way:
    KeyboardInterrupt, and ``resume`` goes on. Raises TrainingError, which names the step, for a
    loss that is no longer a number and for lack of memory. With other processes, see
    `vlserve.training.distributed`: the first one writes.
    """
    steps = steps_of(job)
    batches = options.epochs * steps
    if batches < options.accumulate:
        raise TrainingError(
            f"accumulate: {options.accumulate} batches make a step, and the run has {batches}: "
            "lower accumulate or batch_size, or train for more epochs"
        )
    if size() > 1 and needs_second_order(options):
        raise TrainingError(f"{options.optimiser} learns in one process alone")
    state = new_state(job.trained, options, batches)
    losses_of = SharedLosses(state.network, job.losses)
    epochs: list[dict[str, Any]] = []
    place = Place(1)
    if resume:
        load_state(out / LAST, state)
        losses_of.add_restored()
        facts_before = load_facts(out / LAST)
        epochs = facts_before["epochs"]
        place = Place(len(epochs) + 1, *_steps_done(facts_before))
    barrier()
    log = open_log(out, log_to, steps, place.epoch, place.step) if is_first() else None
    watch = Watch(log, progress or (lambda _: None), options.epochs, steps)
    with closing(watch), _interrupts() as stop:
        while place.epoch <= options.epochs and not _stale(epochs, job.chosen_by, options):
            start = time.monotonic()
            now = {**facts, "epochs": epochs}
            losses = _epoch(state, losses_of, job, options, seed, place, out, now, stop, watch)
            share_buffers(state.network, state.average)
            figures: dict[str, Any] = {
                "train_loss": float(np.mean(losses)),
                "learning_rate": state.learning_rate,
                **job.figures(state.average.module),
                "seconds": time.monotonic() - start,
            }
            state.end_epoch(figures[job.chosen_by])
            epochs.append({"epoch": place.epoch, **figures})
            if best_epoch(epochs, job.chosen_by) == place.epoch and is_first():
                save_weights(out / WEIGHTS, job.checkpoint(state.average.module))
            save_state(out / LAST, state, {**facts, "epochs": epochs})
            watch.epoch(epochs[-1], figures)
            place = Place(place.epoch + 1)
            if on_any(stop.is_set()):  # in its last step, or while it was measured
                watch.draw()
                raise KeyboardInterrupt
        watch.draw()
    barrier()
    return epochs


def steps_of(job: Job) -> int:
    """Return how many steps an epoch has, each of a batch on every rank."""
    if job.steps < size():
        raise TrainingError(
            f"an epoch has {job.steps} batches for {size()} processes: lower batch_size"
        )
    return job.steps // size()


def first_step(
    job: Job, options: TrainOptions, seed: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """Take one step, of a run that is not kept: the shapes of its batch by name, and its losses.
    Raises what `train` does."""
    state = new_state(job.trained, options, options.epochs * job.steps)
    batch = next(iter(job.batches(seed, 1)))
    state.network.train()
    losses_of = SharedLosses(state.network, job.losses)
    losses = _step(state, losses_of, options, batch, "step 1 of epoch 1")
    return _shapes(batch), losses


def _shapes(batch: Any) -> dict[str, tuple[int, ...]]:
    if isinstance(batch, Mapping):
        return {name: tuple(x.shape) for name, x in batch.items() if isinstance(x, Tensor)}
    return {str(place): tuple(x.shape) for place, x in enumerate(batch)}


def best_epoch(epochs: list[dict[str, Any]], metric: str) -> int:
    """Return the first of the epochs with the best figure."""
    return int(max(epochs, key=lambda epoch: epoch[metric])["epoch"])


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return what everything random of an epoch follows from; ``rank``: of a process, on its
    own."""
    entropy = (seed, epoch, rank) if rank else (seed, epoch)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _stale(epochs: list[dict[str, Any]], metric: str, options: TrainOptions) -> bool:
    """Return whether enough epochs passed without a better one."""
    if len(epochs) < options.least_epochs:
        return False
    return len(epochs) - best_epoch(epochs, metric) >= options.patience


def _steps_done(facts: Mapping[str, Any]) -> tuple[int, tuple[float, ...]]:
    within = facts.get("within", {})
    return within.get("step", 0), tuple(within.get("losses", ()))


def _epoch(
    state: TrainState,
    losses_of: SharedLosses,
    job: Job,
    options: TrainOptions,
    seed: int,
    place: Place,
    out: Path,
    facts: Mapping[str, Any],
    stop: threading.Event,
    watch: Watch,
) -> list[float]:
    """Train from ``place`` to the end of its epoch; the losses of all its steps."""
    losses = list(place.losses)
    state.network.train()
    with torch.random.fork_rng(devices=[]):
        # dropout draws from the global generator
        torch.manual_seed(epoch_seed(seed, place.epoch, rank()))
        own = islice(job.batches(seed, place.epoch), rank(), watch.steps * size(), size())
        for step, batch in enumerate(own):
            if step < place.step:  # drawn again, so that what follows is drawn as it was
                continue
            if step == place.step and step:
                state.restore_random()
            parts = _step(
                state, losses_of, options, batch, f"step {step + 1} of epoch {place.epoch}"
            )
            losses.append(sum(parts.values()))
            watch.step(place.epoch, step + 1, parts, state.learning_rate)
            if on_any(stop.is_set()) and step + 1 < watch.steps:
                within = {"step": step + 1, "losses": losses}
                save_state(out / LAST, state, {**facts, "within": within})
                watch.draw()
                raise KeyboardInterrupt
    return losses


def _step(
    state: TrainState, losses_of: SharedLosses, options: TrainOptions, batch: Any, place: str
) -> dict[str, float]:
    """Take one step down; return the losses by name, means over ranks."""
    try:
        with losses_of.alone(state.backwards + 1 < state.accumulate):
            with options.autocast():
                losses = losses_of(batch)
            means = mean_of({name: float(loss.detach()) for name, loss in losses.items()})
            _check_finite(means, options, place)
            state.step(torch.stack(list(losses.values())).sum())
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(x in str(error) for x in NO_MEMORY):
            raise
        raise TrainingError(
            f"{place}: out of memory: train with a smaller batch_size than {options.batch_size}; "
            "accumulate keeps the number of items in a step of the optimizer"
        ) from error
    return means


def _check_finite(losses: Mapping[str, float], options: TrainOptions, place: str) -> None:
    """Raise TrainingError for a loss that is no longer a number."""
    wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        raise TrainingError(
            f"{place}: the loss {', '.join(wrong)} is no longer a number: train with a lower "
            f"learning_rate than {options.learning_rate}, or with clip below {options.clip}"
        )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    if size() > 1:
        signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())  # torchrun's way to end
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as in a shell's background: what the caller ignores stays so
        yield stop
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
        if stop.is_set():  # between two epochs, whose state is kept
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
