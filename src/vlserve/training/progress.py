"""How far a training run is, and how long the rest takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from vlserve.batch.progress import duration
from vlserve.training.run import Progress

LINE_SECONDS = 10.0
"""Between two plain lines on the steps of a run."""
UNITS = {"read": "items", "encode": "items", "step": "steps"}
NAMES = (
    *("train_loss", "accuracy", "macro_f1", "map", "mean_recall"),
    *("answer_log_prob", "caption_log_prob", "cider_d"),
)
"""Figures that are shown of an epoch."""


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(rate_of(task))


@contextmanager
def training_progress(title: str, console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show ``title``, and what a run says: bars with rate and time left on a terminal, lines every
    LINE_SECONDS or so where ``console`` is none."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    bars = Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    console.print(title, markup=False)
    with bars:
        yield _Shown(bars)


@dataclass
class _Shown:
    bars: Bars
    tasks: dict[str, TaskID] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def __call__(self, step: Progress) -> None:
        if step.stage == "train":
            self.bars.console.print(f"  {describe_epoch(step)}", markup=False)
            return
        if step.stage not in self.tasks:
            self.tasks[step.stage] = self.bars.add_task(step.stage, total=step.total)
        number = self.tasks[step.stage]
        self.bars.update(number, completed=step.done, total=step.total)
        now = time.monotonic()
        if self.bars.disable and (now - self.last > LINE_SECONDS or step.done == step.total):
            self.last = now
            task = next(task for task in self.bars.tasks if task.id == number)
            self.bars.console.print(f"  {describe_task(step, task)}", markup=False)


def describe_task(step: Progress, task: Task) -> str:
    """Return one line on a stage: how far it is, how fast, how long the rest takes."""
    losses = "".join(f", {name} {value:.3f}" for name, value in step.figures.items())
    left_s = task.time_remaining
    rest = "" if left_s is None or step.done == step.total else f", {duration(left_s)} left"
    rate = rate_of(task)
    return f"{step.stage} {step.done} of {step.total}{losses}{rate and f', {rate}'}{rest}"


def rate_of(task: Task) -> str:
    """Return a stage's rate; empty where it is not known yet."""
    unit = UNITS.get(task.description, task.description)
    return "" if not task.speed else f"{task.speed:.3g} {unit}/s"


def describe_epoch(step: Progress) -> str:
    """Return one line on an epoch's figures."""
    figures = [f"{name} {step.figures[name]:.3f}" for name in NAMES if name in step.figures]
    line = f"epoch {step.done} of {step.total}: {', '.join(figures)}"
    if step.figures.get("converged", True):
        return line
    return f"{line}; the search ended before the optimum"
