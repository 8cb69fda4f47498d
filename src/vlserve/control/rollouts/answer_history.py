"""What a version answered of late: samples of the log of answers, and of the gateway's log.

Nothing is read until somebody asks.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from vlserve.control.gateway.log_lines import AccessLine, is_probe, parse_access_line
from vlserve.control.log_rotation import LOGS_KEPT, renamed
from vlserve.control.log_sampling import sample_lines
from vlserve.control.rollouts.log_reader import Cursor, end_of, is_within, name_of, unix_time
from vlserve.runtime.answer_log import AnswerLine, read_answer_line
from vlserve_worker.own_ids import is_own

DAY_S = 24 * 3600
DAYS_BEFORE = 7
MOST_LINES = 1000
"""Of each log and each time; they are parsed in about 10 ms."""
MOST_UNREAD = 1024 * 1024
"""Bytes of new answers that one look takes in; older ones are passed over."""


@dataclass(frozen=True)
class Quantiles:
    """Of some values; None without any."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None


@dataclass(frozen=True)
class AnsweredTime:
    """A sample of what a version answered in some time.

    ``labels``: best label -> answers. ``errors``: code -> requests that were refused by it.
    """

    answers: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AskedTime:
    """A sample of a model's requests in some time. ``refused``: HTTP status -> requests, scaled up.
    ``body_bytes``: sizes of their bodies."""

    requests: int = 0
    refused: Mapping[int, int] = field(default_factory=dict)
    body_bytes: Quantiles = field(default_factory=Quantiles)


class AnswerHistory:
    """The two logs of one stack. Thread-safe: it keeps nothing."""

    def __init__(self, answers: Path, requests: Path) -> None:
        self._answers = answers
        self._requests = requests

    def answered(self, model: str, version: int, since: float, until: float | None) -> AnsweredTime:
        """Return what a version answered from ``since`` to ``until`` (Unix time, s; None: now)."""
        sample = sample_lines(_files(self._answers), since, until, MOST_LINES, _answered_at)
        lines = [
            line
            for line in _answer_lines(sample.lines, model, version)
            if is_within(line.at, since, until)
        ]
        labels = Counter(next(iter(line.scores)) for line in lines if line.scores)
        errors = Counter(line.error for line in lines if line.error)
        return AnsweredTime(len(lines), dict(labels.most_common()), dict(errors.most_common()))

    def asked(self, model: str, since: float) -> AskedTime:
        """Return what a model was asked since ``since`` (Unix time, s)."""
        sample = sample_lines(_files(self._requests), since, None, MOST_LINES, _began_at)
        access_lines = (line for raw in sample.lines if (line := _access_line(raw)) is not None)
        lines = [
            each
            for each in access_lines
            if each.model == model and is_within(each.at, since) and not is_probe(each)
        ]
        refusals = Counter(line.status for line in lines if 400 <= (line.status or 0) < 500)
        sizes = [line.bytes_in for line in lines if line.bytes_in]
        return AskedTime(
            round(len(lines) * sample.scale),
            {status or 0: round(n * sample.scale) for status, n in sorted(refusals.items())},
            quantiles(sizes),
        )

    def end(self) -> Cursor:
        """Return the cursor after the answers that are logged now."""
        return end_of(self._answers)

    def unread(self, model: str, version: int, cursor: Cursor) -> tuple[list[AnswerLine], Cursor]:
        """Return the answers of a version after ``cursor``, of the last `MOST_UNREAD` bytes alone,
        and the cursor after them."""
        text, cursor = _tail_after(self._answers, cursor, MOST_UNREAD)
        return list(_answer_lines(text.splitlines(), model, version)), cursor


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return the median and the 95th percentile."""
    if not values:
        return Quantiles()
    p50, p95 = np.percentile(values, (50, 95))
    return Quantiles(len(values), float(p50), float(p95))


def _files(log: Path) -> list[Path]:
    """Return a log with its renamed predecessors, oldest first."""
    return [renamed(log, number) for number in range(LOGS_KEPT, 0, -1)] + [log]


def _answer_lines(lines: Sequence[bytes], model: str, version: int) -> Iterator[AnswerLine]:
    needle = f'"{model}"'.encode()
    for raw in lines:
        if needle in raw and (record := _json(raw)) is not None:
            with suppress(ValidationError):
                line = read_answer_line(record)
                of_version = (line.model, line.version) == (model, version)
                if of_version and not is_own(line.request_id):
                    yield line


def _answered_at(raw: bytes) -> float | None:
    record = _json(raw)
    return None if record is None else unix_time(str(record.get("at")))


def _began_at(raw: bytes) -> float | None:
    line = _access_line(raw)
    return None if line is None else unix_time(line.at)


def _access_line(raw: bytes) -> AccessLine | None:
    try:
        return parse_access_line(raw)
    except ValidationError:
        return None


def _json(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _tail_after(log: Path, cursor: Cursor, most: int) -> tuple[bytes, Cursor]:
    """Return the whole lines of ``log`` after ``cursor``, the last ``most`` bytes of them."""
    try:
        with log.open("rb") as stream:
            name = name_of(stream.readline())
            size = stream.seek(0, 2)
            offset = cursor.offset if cursor.first_line == name else 0
            start = max(offset, size - most)
            stream.seek(start)
            text = stream.read(size - start)
    except OSError:
        return b"", cursor
    if start > offset:
        text = text[text.find(b"\n") + 1 :]
    whole = text[: text.rfind(b"\n") + 1]
    end = size - (len(text) - len(whole))
    return whole, Cursor(name, end) if name else cursor
