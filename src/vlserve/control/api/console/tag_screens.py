"""What the page Tags over time shows. Pure, but for `gather`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlserve.control.api.console.screens import Screen
from vlserve.control.captures import InputSummary
from vlserve.control.rollouts.answer_history import (
    DAY_S,
    DAYS_BEFORE,
    AnsweredTime,
    Quantiles,
    quantiles,
)
from vlserve.control.rollouts.drift_watch import training_labels
from vlserve.control.service import ControlService

MOST_LABELS = 50
KIB = 1024


@dataclass(frozen=True)
class LabelRow:
    """Shares of one label, from 0 to 1; None where there is nothing to count."""

    label: str
    training: float | None
    day: float | None
    before: float | None


def gather(service: ControlService, name: str) -> Screen:
    """Gather what the page shows of stable's answers. ModelNotFound."""
    history = service.answers
    model = service.model(name)
    stable = next((each for each in model.versions if each.version == model.stable), None)
    if stable is None:
        return {"name": name, "stable": None}
    now = time.time()
    day, week = now - DAY_S, now - (1 + DAYS_BEFORE) * DAY_S
    of_day = history.answered(name, stable.version, day, None)
    before = history.answered(name, stable.version, week, day)
    return {
        "name": name,
        "stable": stable.version,
        "day": of_day,
        "before": before,
        "days_before": DAYS_BEFORE,
        "rows": label_rows(training_labels(stable.manifest), of_day, before),
        "drift": service.drift.look(stable.manifest),
        "asked": history.asked(name, day),
        **input_figures(service.captures.newest_summaries(name)),
    }


def label_rows(
    training: Mapping[str, int], day: AnsweredTime, before: AnsweredTime
) -> list[LabelRow]:
    """Return the labels with their shares, those that are most frequent somewhere first."""
    shares = [_shares(each) for each in (training, day.labels, before.labels)]
    labels = {label for each in shares if each for label in each}
    rows = [
        LabelRow(label, *(None if each is None else each.get(label, 0.0) for each in shares))
        for label in labels
    ]
    rows.sort(key=lambda row: (-max(row.training or 0, row.day or 0, row.before or 0), row.label))
    return rows[:MOST_LABELS]


def input_figures(summaries: Sequence[InputSummary]) -> dict[str, Quantiles]:
    """Return lengths of titles (characters) and sizes of images (KiB) of inputs that were kept."""
    images = [size / KIB for each in summaries for size in each.images.values()]
    return {
        "text_lengths": quantiles([each.text_chars for each in summaries if each.text_chars]),
        "image_sizes": quantiles(images),
    }


def _shares(counts: Mapping[str, int]) -> dict[str, float] | None:
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()} if total else None
