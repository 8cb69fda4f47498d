"""Whether stable's answers drift away from its training data: watched while somebody looks."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from vlserve.control.judge.drift import Drift, take_in
from vlserve.control.rollouts.answer_history import AnswerHistory
from vlserve.control.rollouts.log_reader import Cursor
from vlserve.runtime.manifest import Manifest

ALPHA = 0.05
"""Probability that an alarm is false, ever."""
MARGIN = 0.1
"""The total variation distance from the training data that is tolerated."""


@dataclass(frozen=True)
class DriftReport:
    """``since``: when the watch began, UTC, ISO 8601; it begins anew with the control service."""

    since: str
    drift: Drift
    alpha: float = ALPHA
    margin: float = MARGIN

    @property
    def threshold(self) -> float:
        """The e-value of an alarm."""
        return 1 / self.alpha

    @property
    def alarms(self) -> bool:
        return self.drift.peak_e >= self.threshold


@dataclass
class _Watched:
    """``cursor``: behind the answers that were taken in. It begins at the log's end, because
    whoever looks may do so for what was answered before, and the bound on false alarms holds for a
    beginning that does not depend on the answers."""

    cursor: Cursor
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    drift: Drift = field(default_factory=Drift)


class DriftWatch:
    """Thread-safe. In memory: it begins anew with the service, and for each version."""

    def __init__(self, history: AnswerHistory) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._watched: dict[tuple[str, int], _Watched] = {}

    def look(self, manifest: Manifest) -> DriftReport | None:
        """Take in the new answers of a version, and return the evidence; None where its archive
        does not say which labels its training data had, or an item has several."""
        training = training_labels(manifest)
        if not training:
            return None
        with self._lock:
            key = (manifest.model, manifest.version)
            if key not in self._watched:
                self._watched[key] = _Watched(cursor=self._history.end())
            watched = self._watched[key]
            lines, watched.cursor = self._history.unread(*key, watched.cursor)
            labels = [next(iter(line.scores)) for line in lines if line.scores]
            watched.drift = take_in(watched.drift, labels, training, MARGIN)
            return DriftReport(watched.since, watched.drift)


def training_labels(manifest: Manifest) -> Mapping[str, int]:
    """Return label -> items of the training data; empty where it is not known."""
    told = (manifest.training or {}).get("label_items")
    if manifest.multi_label or not isinstance(told, dict):
        return {}
    return {label: count for label, count in told.items() if isinstance(count, int) and count > 0}
