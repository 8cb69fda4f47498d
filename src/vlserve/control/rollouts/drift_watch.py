"""Whether stable's answers drift away from its training data.

The evidence lies in a file and outlives the service. It grows while somebody looks, and at no other
time: nothing is to be spent while the console is closed, and answers may be passed over, as long as
what they say does not decide it. So an alarm comes when somebody looks, on the newest answers.
"""

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from vlserve.control.judge.drift import Drift, take_in
from vlserve.control.rollouts.answer_history import AnswerHistory
from vlserve.control.rollouts.log_reader import Cursor
from vlserve.runtime.manifest import Manifest
from vlserve_worker.storage import write_whole

ALPHA = 0.05
"""Probability that an alarm is false, ever."""
MARGIN = 0.1
"""The total variation distance from the training data that is tolerated."""
MOST_VERSIONS = 200
"""That are kept: of more, those that were looked at last."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DriftReport:
    """``since``: when the watch began, UTC, ISO 8601."""

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


@dataclass(frozen=True)
class Watched:
    """A version under watch. ``cursor``: behind the answers that were taken in. It begins at the
    log's end, because whoever looks may do so for what was answered before, and the bound on false
    alarms holds for a beginning that does not depend on the answers."""

    cursor: Cursor
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    drift: Drift = field(default_factory=Drift)


@dataclass(frozen=True)
class Kept:
    """The file of the watch: ``model/version`` -> its evidence, those looked at last at the end."""

    versions: dict[str, Watched] = field(default_factory=dict)
    schema: Literal[1] = 1


_KEPT = TypeAdapter(Kept)


class DriftWatch:
    """Thread-safe."""

    def __init__(self, history: AnswerHistory, file: Path) -> None:
        """``file``: of the evidence. One that cannot be read is begun anew; one that cannot be
        written leaves the evidence in memory."""
        self._history = history
        self._file = file
        self._lock = threading.Lock()
        self._versions: dict[str, Watched] | None = None

    def look(self, manifest: Manifest) -> DriftReport | None:
        """Take in the new answers of a version, and return the evidence; None where its archive
        does not say which labels its training data had, or an item has several."""
        training = training_labels(manifest)
        if not training:
            return None
        with self._lock:
            if self._versions is None:
                self._versions = _read(self._file)
            name = f"{manifest.model}/{manifest.version}"
            before = self._versions.pop(name, None)
            watch = self._take_in(manifest, training, before or Watched(self._history.end()))
            self._versions[name] = watch
            if watch != before:
                self._keep()
            return DriftReport(watch.since, watch.drift)

    def _take_in(self, manifest: Manifest, training: Mapping[str, int], watch: Watched) -> Watched:
        lines, cursor = self._history.unread(manifest.model, manifest.version, watch.cursor)
        if cursor == watch.cursor:
            return watch
        labels = [next(iter(line.scores)) for line in lines if line.scores]
        drift = take_in(watch.drift, labels, training, MARGIN)
        return Watched(cursor, watch.since, drift)

    def _keep(self) -> None:
        assert self._versions is not None
        for name in list(self._versions)[:-MOST_VERSIONS]:
            del self._versions[name]
        try:
            write_whole(self._file, _KEPT.dump_json(Kept(self._versions)))
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._file, error)


def _read(file: Path) -> dict[str, Watched]:
    try:
        record = _KEPT.validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError, TypeError, ValueError) as error:
        logger.warning("%s cannot be read, and the watch begins anew: %s", file, error)
        return {}
    return {name: watch for name, watch in record.versions.items() if _is_sound(watch.drift)}


def _is_sound(drift: Drift) -> bool:
    """Return whether the evidence can be added to."""
    whole = drift.purses.shape == Drift().purses.shape
    return whole and all(map(math.isfinite, (*drift.purses.tolist(), drift.peak_e)))


def training_labels(manifest: Manifest) -> Mapping[str, int]:
    """Return label -> items of the training data; empty where it is not known."""
    counts = (manifest.training or {}).get("label_items")
    if manifest.multi_label or not isinstance(counts, dict):
        return {}
    return {label: count for label, count in counts.items() if isinstance(count, int) and count > 0}
