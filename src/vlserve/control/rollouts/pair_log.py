"""The log of shadow pairs in which the two versions differ: what people look at, mark and export.
The judge does not need it.

One JSON line a pair. After a restart of the control service a pair may be there twice.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from vlserve.control.domain import Rollout
from vlserve.control.log_rotation import renamed, rotate
from vlserve.control.rollouts.log_evidence import AnsweredCopy, compare

MOST_A_TICK = 50
"""Pairs that one tick of one rollout logs, the worst of them."""
MOST_READ = 1000
"""Pairs that one look reads, the newest."""
LOG_BYTES = 8 * 1024 * 1024
LOGS_KEPT = 1

Kind = Literal["failed", "label", "score", "answer"]
"""How two answers differ: the candidate failed; another best label; the same one, with a score
further off than the gate score_distance tolerates; or, without labels, other answers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DifferingPair:
    """Two answers to one request. ``stable_scores``, ``candidate_scores``: label -> score, best
    first. ``distance``: of the scores of stable's best label, from 0 to 1."""

    at: str
    """When it was read: UTC, ISO 8601."""
    request_id: str
    model: str
    rollout: int
    stable: int
    candidate: int
    kind: Kind
    distance: float
    stable_scores: Mapping[str, float] = field(default_factory=dict)
    candidate_scores: Mapping[str, float] = field(default_factory=dict)
    schema: Literal[1] = 1

    @property
    def stable_label(self) -> str:
        """Stable's best label; empty where it named none."""
        return next(iter(self.stable_scores), "")

    @property
    def candidate_label(self) -> str:
        """The candidate's; empty where it named none, or failed."""
        return next(iter(self.candidate_scores), "")

    @property
    def badness(self) -> tuple[bool, bool, float]:
        """The larger, the worse."""
        return self.kind == "failed", self.kind != "score", self.distance


_LINE = TypeAdapter(DifferingPair)


class PairLog:
    """Thread-safe: a line is written at once. Never raises where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failing = False

    def write(self, rollout: Rollout, copies: Sequence[AnsweredCopy], ceiling: float) -> None:
        """Log those of ``copies`` that differ; the scores of one label do if they are further
        apart than ``ceiling``."""
        pairs = list(_differing(rollout, copies, ceiling))
        if not pairs:
            return
        pairs.sort(key=lambda pair: pair.badness, reverse=True)
        lines = "".join(f"{json.dumps(asdict(pair))}\n" for pair in pairs[:MOST_A_TICK])
        try:
            rotate(self._path, LOG_BYTES, LOGS_KEPT)
            with self._path.open("a", encoding="utf-8") as log:
                log.write(lines)
        except OSError as error:
            if not self._failing:
                logger.warning("pairs that differ are not logged: %s", error)
            self._failing = True
        else:
            self._failing = False

    def newest(self, model: str) -> list[DifferingPair]:
        """Return the `MOST_READ` newest pairs of a model, the newest first, each once."""
        pairs: dict[tuple[str, int, int], DifferingPair] = {}
        for pair in islice(self._read(model), MOST_READ):
            pairs.setdefault((pair.request_id, pair.stable, pair.candidate), pair)
        return list(pairs.values())

    def _read(self, model: str) -> Iterator[DifferingPair]:
        """Yield the pairs of a model, the newest first."""
        needle = f'"model": {json.dumps(model)}'.encode()
        for file in (self._path, renamed(self._path, 1)):
            text = b""
            with suppress(OSError):
                text = file.read_bytes()
            for line in reversed(text.splitlines()):
                if needle in line:
                    with suppress(ValidationError):  # cut off, or of a newer schema
                        yield _LINE.validate_json(line)


def _differing(
    rollout: Rollout, copies: Sequence[AnsweredCopy], ceiling: float
) -> Iterator[DifferingPair]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    for copy in copies:
        comparison = compare(copy.stable, copy.candidate)
        kind = kind_of(copy, ceiling)
        if kind is not None:
            yield DifferingPair(
                at=at,
                request_id=copy.request_id,
                model=rollout.model,
                rollout=rollout.id,
                stable=rollout.stable,
                candidate=rollout.candidate,
                kind=kind,
                distance=round(comparison.score_distance, 6),
                stable_scores=copy.stable.scores,
                candidate_scores=copy.candidate.scores if copy.candidate else {},
            )


def kind_of(copy: AnsweredCopy, ceiling: float) -> Kind | None:
    """Return how the two answers differ; None where they do not."""
    if copy.candidate is None or copy.candidate.failed:
        return "failed"
    if copy.stable.label is None:
        return "answer" if copy.candidate.digest != copy.stable.digest else None
    comparison = compare(copy.stable, copy.candidate)
    if not comparison.agree:
        return "label"
    return "score" if comparison.score_distance > ceiling else None
