"""One JSON line for each answer: what a release is judged by, and nothing that a client sent.

    {"at", "request_id", "model", "version", "digest", "scores": {label: score}, "stage_ms"}
    {"at", "request_id", "model", "version", "error": code, "stage_ms"}

All workers of an engine append to one file, a line at a time; when it is renamed, they go on in a
new one.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, BatchResult, ItemError

SCORES_KEPT = 5

logger = logging.getLogger(__name__)


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
        """One line for each item of a batch, in its order."""
        if self._handler is None:
            return
        try:
            for line in _lines(manifest, task, request_ids, result):
                self._handler.emit(logging.makeLogRecord({"msg": json.dumps(line)}))
        except Exception as error:  # a full disk, a folder that is gone, a task's own scores
            if not self._failing:
                logger.warning("answers are not logged: %s", error)
            self._failing = True
        else:
            self._failing = False


def _lines(
    manifest: Manifest, task: Task[Any], request_ids: Sequence[str], result: BatchResult
) -> Iterator[dict[str, Any]]:
    stage_ms = {name: round(value, 3) for name, value in result.stage_ms.items()}
    about = {"model": manifest.model, "version": manifest.version, "stage_ms": stage_ms}
    for request_id, answer in zip(request_ids, result.answers, strict=True):
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        yield {"at": at, "request_id": request_id, **about, **_said(task, answer)}


def digest(answer: Answer) -> str:
    """The same for equal answers: 16 hexadecimal digits of the sha256 of its sorted JSON."""
    text = json.dumps(answer, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(task: Task[Any], answer: Answer | ItemError) -> Mapping[str, Any]:
    if isinstance(answer, ItemError):
        return {"error": answer.code}
    scores = dict(list(task.scores(answer).items())[:SCORES_KEPT])
    return {"digest": digest(answer), "scores": scores}


def _handler(path: Path) -> WatchedFileHandler | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        logger.warning("answers are not logged: %s", error)
        return None
