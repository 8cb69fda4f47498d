"""What a run says of itself while it goes: log.jsonl, events for TensorBoard, curves.png."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlserve.errors import ExtraMissing
from vlserve.extras import missing_extra
from vlserve.training.plots import plot_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LogTo = Literal["jsonl", "tensorboard"]
LOG, CURVES, EVENTS = "log.jsonl", "curves.png", "tensorboard"
LOG_SECONDS = 10.0
"""A step is logged when the last line is older, and every epoch's first and last step."""
OF_THE_RUN = ("epoch", "seconds", "learning_rate")
"""What a line of an epoch says beside its figures."""


@dataclass
class RunLog:
    """The log of a run in the folder ``out``, of epochs of ``steps`` steps. ``events``: where
    TensorBoard's go, if they are wanted."""

    out: Path
    steps: int
    events: "SummaryWriter | None" = None
    _logged: float = field(default=0.0, init=False)

    def step(self, epoch: int, step: int, losses: Mapping[str, float], rate: float) -> None:
        """Take note of a step, counted from 1, if it is its turn."""
        now = time.monotonic()
        if 1 < step < self.steps and now - self._logged <= LOG_SECONDS:
            return
        self._logged = now
        self._write({"epoch": epoch, "step": step, **losses, "learning_rate": rate})
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        self._send({**scalars, "learning_rate": rate}, (epoch - 1) * self.steps + step)

    def epoch(self, figures: Mapping[str, Any]) -> None:
        """Take note of the figures of an epoch."""
        self._write(figures)
        scalars = {f"figure/{name}": x for name, x in figures.items() if name not in OF_THE_RUN}
        self._send(scalars, figures["epoch"] * self.steps)

    def draw(self) -> None:
        """Draw the curves of the whole log."""
        if (lines := read_log(self.out)) and self.steps:
            plot_curves(self.out / CURVES, lines, self.steps)

    def close(self) -> None:
        """Write what TensorBoard's events still wait for."""
        if self.events is not None:
            self.events.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        with (self.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _send(self, values: Mapping[str, float], step: int) -> None:
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)


def open_log(out: Path, to: LogTo, steps: int, epoch: int, step: int) -> RunLog:
    """Return the log of a run that goes on after ``step`` steps of ``epoch``: lines of later ones,
    which a run wrote that was killed, are left out. ExtraMissing without the package of
    TensorBoard."""
    lines = [line for line in read_log(out) if _place(line) <= (epoch, step)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / LOG).write_text(text, encoding="utf-8")
    if to == "jsonl":
        return RunLog(out, steps)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ExtraMissing(missing_extra("tensorboard", "tensorboard")) from error
    begin = (epoch - 1) * steps + step + 1
    writer = SummaryWriter(out / EVENTS, purge_step=begin)
    return RunLog(out, steps, writer)


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of log.jsonl; a last one that was cut short is left out."""
    if not (out / LOG).is_file():
        return []
    lines = []
    for line in (out / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _place(line: Mapping[str, Any]) -> tuple[int, float]:
    """Return where a line stands; that of a whole epoch behind its steps."""
    return int(line["epoch"]), float(line.get("step", float("inf")))
