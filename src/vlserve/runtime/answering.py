"""An archive's answers to a batch, as its entry points hand them to an engine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlserve.runtime.answer_log import AnswerLog
from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import Answer, ItemError

HTTP_STATUS = {
    ErrorCode.BODY_UNREADABLE: 400,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.BODY_TOO_COMPLEX: 413,
    ErrorCode.TOO_MANY_ITEMS: 413,
    ErrorCode.ITEMS_TOO_LATE: 503,
    ErrorCode.FIELD_INVALID: 422,
    ErrorCode.IMAGE_UNREADABLE: 400,
    ErrorCode.IMAGE_TOO_LARGE: 413,
    ErrorCode.IMAGE_TOO_COMPLEX: 413,
    ErrorCode.IMAGE_DAMAGED: 400,
    ErrorCode.VIDEO_UNREADABLE: 400,
    ErrorCode.VIDEO_TOO_LARGE: 413,
    ErrorCode.VIDEO_TOO_COMPLEX: 413,
    ErrorCode.VIDEO_UNSUPPORTED: 415,
    ErrorCode.FEATURES_UNREADABLE: 400,
    ErrorCode.FEATURES_TOO_LARGE: 413,
    ErrorCode.TEXT_UNREADABLE: 400,
    ErrorCode.TEXT_TOO_LONG: 413,
    ErrorCode.INFERENCE_FAILED: 500,
    ErrorCode.REQUEST_KILLED_WORKER: 500,
}
"""Code of an item's error -> the status that a client sees."""


@dataclass(frozen=True)
class Answered:
    """What the clients of a batch get, in its order.

    ``statuses``: of HTTP. ``bodies``: in JSON. ``stage_ms``: stage -> milliseconds, of the whole
    batch.
    """

    statuses: list[int]
    bodies: list[bytes]
    stage_ms: Mapping[str, float]

    @property
    def timing(self) -> str:
        """The value of Server-Timing."""
        return ", ".join(f"{stage};dur={value:.3f}" for stage, value in self.stage_ms.items())


class Answering:
    """One worker of one version. Not thread-safe: an engine gives a worker one batch at a time."""

    def __init__(self, folder: Path, threads: int, batch_size: int, log: Path | None) -> None:
        """Open the unpacked archive in ``folder`` and answer its probes in batches of every size.

        Raises:
            ArchiveError: it is not what was packed, or the runtime that is imported is not its own.
        """
        self.pipeline = open_folder(folder, threads, frozen=True)
        self.pipeline.warm_up(batch_size)
        self._log = AnswerLog(log)

    def answer(self, data: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Answered:
        """Answer a batch, and log the answers. Nothing raises for what is in a request.

        Args:
            data: the fields of each request, or its ``body``.
            ids: the name of each request in answers and logs.
        """
        manifest = self.pipeline.manifest
        started = time.perf_counter()
        requests = [read_request(*item) for item in zip(data, ids, strict=True)]
        parsed_at = time.perf_counter()
        result = self.pipeline.run(requests)
        answered_at = time.perf_counter()
        answers = [
            answer if isinstance(answer, ItemError) else text
            for answer, text in zip(result.answers, result.texts, strict=True)
        ]
        bodies = [write_body(manifest, *item) for item in zip(ids, answers, strict=True)]
        stage_ms = dict(result.stage_ms)
        stage_ms["decode"] += (parsed_at - started) * 1000
        stage_ms["serialise"] += (time.perf_counter() - answered_at) * 1000
        self._log.write(manifest, self.pipeline.task, ids, replace(result, stage_ms=stage_ms))
        return Answered([_status(answer) for answer in result.answers], bodies, stage_ms)

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def _status(answer: Answer | ItemError) -> int:
    return HTTP_STATUS[answer.code] if isinstance(answer, ItemError) else 200
