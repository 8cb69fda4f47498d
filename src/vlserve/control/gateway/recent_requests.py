"""Figures of the last minutes from the gateway's access log, for people.

Nothing is counted until somebody asks. Of many requests some of each model are read, and the counts
scaled up.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from vlserve.control.gateway.log_lines import AccessLine, is_probe, parse_access_line
from vlserve.control.gateway.model_lines import ModelLines

MINUTES = 15
KEPT_S = 5.0
"""Within this time the same answer is given again, to however many ask."""
_MINUTE_S = 60
_LONGEST_REQUEST_S = 60.0
"""Lines are written when a request ends, and tell when it began."""


@dataclass(frozen=True)
class Tally:
    """Requests of some time. Latencies: ms, of those that were answered; None without any."""

    requests: int = 0
    failed: int = 0
    """Answered with a 5xx, or not at all while the client waited."""
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Minute(Tally):
    """``start``: Unix time, s."""

    start: int = 0


@dataclass(frozen=True)
class VersionTraffic(Tally):
    """What one version answered in the last `MINUTES`."""

    version: int = 0


@dataclass(frozen=True)
class ModelTraffic(Tally):
    """One model's requests in the last `MINUTES`.

    ``per_second``: over the last whole minute that has ended. ``minutes``: oldest first, the one
    under way last. ``steps``: step of a rollout -> version -> requests that its weights routed.
    ``estimated``: the counts are scaled up from a part of the requests.
    """

    model: str = ""
    per_second: float = 0.0
    minutes: tuple[Minute, ...] = ()
    versions: tuple[VersionTraffic, ...] = ()
    steps: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    estimated: bool = False


@dataclass(frozen=True)
class _Request:
    began: float
    version: int | None
    step: str
    failed: bool
    latency_ms: float
    """From its last byte to the answer's."""


class RecentRequests:
    """The last `MINUTES` of an access log and of the one before it. Thread-safe."""

    def __init__(self, log: Path, now: Callable[[], float] = time.time) -> None:
        self._lines = ModelLines(log)
        self._now = now
        self._lock = threading.Lock()
        self._read_at = -np.inf
        self._figures: Mapping[str, ModelTraffic] = {}

    def figures(self) -> Mapping[str, ModelTraffic]:
        """Return model -> its figures; models without a request are left out."""
        with self._lock:
            moment = time.monotonic()
            if moment - self._read_at >= KEPT_S:
                self._figures = _figures(self._lines, self._now())
                self._read_at = moment
            return self._figures


def _figures(lines: ModelLines, now: float) -> Mapping[str, ModelTraffic]:
    """Read the last `MINUTES` before ``now`` (Unix time, s): model -> its figures."""
    since = now - MINUTES * _MINUTE_S
    figures: dict[str, ModelTraffic] = {}
    for model, sample in sorted(lines.since(since - _LONGEST_REQUEST_S, _began).items()):
        candidates = (request for line in sample.lines if (request := _parsed(line)) is not None)
        requests = [request for request in candidates if since <= request.began <= now]
        if requests:
            figures[model] = _traffic(model, requests, now, sample.scale)
    return figures


def _traffic(model: str, requests: Sequence[_Request], now: float, scale: float) -> ModelTraffic:
    first = int(now // _MINUTE_S) - MINUTES + 1
    by_minute: dict[int, list[_Request]] = defaultdict(list)
    by_version: dict[int, list[_Request]] = defaultdict(list)
    steps: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for request in requests:
        by_minute[int(request.began // _MINUTE_S)].append(request)
        if request.version is not None:
            by_version[request.version].append(request)
            if request.step:
                steps[request.step][request.version] += scale
    minutes = tuple(
        Minute(**_tally(by_minute.get(minute, ()), scale), start=minute * _MINUTE_S)
        for minute in range(first, first + MINUTES)
    )
    return ModelTraffic(
        **_tally(requests, scale),
        model=model,
        per_second=minutes[-2].requests / _MINUTE_S,
        minutes=minutes,
        versions=tuple(
            VersionTraffic(**_tally(of_version, scale), version=version)
            for version, of_version in sorted(by_version.items())
        ),
        steps={step: {v: round(n) for v, n in shares.items()} for step, shares in steps.items()},
        estimated=scale > 1,
    )


def _tally(requests: Sequence[_Request], scale: float) -> dict[str, Any]:
    latencies = [request.latency_ms for request in requests if not request.failed]
    p50_ms, p99_ms = np.percentile(latencies, (50, 99)) if latencies else (None, None)
    return {
        "requests": round(len(requests) * scale),
        "failed": round(sum(request.failed for request in requests) * scale),
        "p50_ms": None if p50_ms is None else round(float(p50_ms), 3),
        "p99_ms": None if p99_ms is None else round(float(p99_ms), 3),
    }


def _began(line: bytes) -> float | None:
    """Return the time of any line of the log, whatever it is of."""
    try:
        return _time_of(parse_access_line(line))
    except ValueError:  # pydantic's too
        return None


def _time_of(line: AccessLine) -> float:
    return datetime.fromisoformat(line.at).replace(tzinfo=UTC).timestamp()


def _parsed(line: bytes) -> _Request | None:
    """Return one line's request; None for the stack's own probes, and for what is no such line."""
    try:
        record = parse_access_line(line)
        began = _time_of(record)
    except ValueError:  # pydantic's too
        return None
    if is_probe(record):
        return None
    status = record.status or 0
    answered = 0 < status < HTTPStatus.INTERNAL_SERVER_ERROR
    return _Request(
        began,
        record.number,
        record.step or "",
        failed=not answered and not record.client_left,
        latency_ms=record.waited_ms,
    )
