"""One JSON line for each answer: what a release is judged by, and nothing that a client sent.

    {"schema", "at", "request_id", "model", "version", "stage_ms", "digest", "scores"}
    {"schema", "at", "request_id", "model", "version", "stage_ms", "error": code}

All workers of an engine append to one file, a line at a time; when it is renamed, they go on in a
new one.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, BatchResult, ItemError

SCORES_KEPT = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerLine:
    """One line. Archives keep the code that writes it, so the lines of every earlier version are
    read for ever: fields are added with a default, and only another meaning is another schema.
    Lines of before 0.1.0 have no number; they are schema 1."""

    request_id: str
    model: str
    version: int
    at: str = ""
    """UTC, ISO 8601."""
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    """Of the whole batch."""
    digest: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Label -> score, the best SCORES_KEPT first; empty where the answer has no labels."""
    error: str | None = None
    """The code of the error that was the answer."""
    schema: Literal[1] = 1

    def to_json(self) -> str:
        """Return the line without its end."""
        absent_fields = ("digest", "scores") if self.error is not None else ("error",)
        return json.dumps(
            {name: value for name, value in vars(self).items() if name not in absent_fields}
        )


_LINE = TypeAdapter(AnswerLine)


def read_answer_line(fields: Mapping[str, Any]) -> AnswerLine:
    """Read one parsed line, of this or an earlier version.

    Raises:
        pydantic.ValidationError: it is no line of an answer log, or has a newer schema.
    """
    return _LINE.validate_python(fields)


class AnswerLog:
    """Writes to ``path``; to nowhere if that is None. Never raises: an answer that cannot be
    logged is still an answer."""

    def __init__(self, path: Path | None) -> None:
        self._handler = None if path is None else _handler(path)
        self._failing = False

    def close(self) -> None:
        if self._handler is not None:
            self._handler.close()

    def write(
        self, manifest: Manifest, task: Task[Any], request_ids: Sequence[str], result: BatchResult
    ) -> None:
        """Write one line for each item of a batch, in its order."""
        if self._handler is None:
            return
        try:
            for line in _lines(manifest, task, request_ids, result):
                self._handler.emit(logging.makeLogRecord({"msg": line.to_json()}))
        except Exception as error:  # a full disk, a folder that is gone, a task's own scores
            if not self._failing:
                logger.warning("answers are not logged: %s", error)
            self._failing = True
        else:
            self._failing = False


def _lines(
    manifest: Manifest, task: Task[Any], request_ids: Sequence[str], result: BatchResult
) -> Iterator[AnswerLine]:
    stage_ms = {name: round(value, 3) for name, value in result.stage_ms.items()}
    for request_id, answer in zip(request_ids, result.answers, strict=True):
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = AnswerLine(request_id, manifest.model, manifest.version, at, stage_ms)
        if isinstance(answer, ItemError):
            yield replace(line, error=answer.code.value)
        else:
            scores = dict(list(task.scores(answer).items())[:SCORES_KEPT])
            yield replace(line, digest=digest(answer), scores=scores)


def digest(answer: Answer) -> str:
    """Return a digest, the same for equal answers: 16 hexadecimal digits of the sha256 of its
    sorted JSON."""
    text = json.dumps(answer, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _handler(path: Path) -> WatchedFileHandler | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        logger.warning("answers are not logged: %s", error)
        return None
