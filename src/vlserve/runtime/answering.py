"""An archive's answers to a batch, as its entry points hand them to an engine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlserve.runtime.answer_log import AnswerLog
from vlserve.runtime.body import BODY, read_request, write_body
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.exchange import RAW_HEADERS, RawAnswer, failure, fields_of_client, raw_of
from vlserve.runtime.folder import open_folder
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Surroundings
from vlserve.runtime.types import Answer, ItemError, Request

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


_JSON: Mapping[str, str] = {"content-type": "application/json"}


@dataclass(frozen=True)
class Answered:
    """What the clients of a batch get, in its order.

    ``statuses``: of HTTP. ``headers``: of each answer, without ours. ``bodies``: in JSON, but of
    an adopted archive whatever its handler gave. ``stage_ms``: stage -> milliseconds, of the whole
    batch.
    """

    statuses: list[int]
    headers: list[Mapping[str, str]]
    bodies: list[bytes]
    stage_ms: Mapping[str, float]

    @property
    def timing(self) -> str:
        """The value of Server-Timing."""
        return ", ".join(f"{stage};dur={value:.3f}" for stage, value in self.stage_ms.items())


class Answering:
    """One worker of one version. Not thread-safe: an engine gives a worker one batch at a time."""

    def __init__(self, folder: Path, threads: int, around: Surroundings, log: Path | None) -> None:
        """Open the unpacked archive in ``folder`` and answer its probes in batches of every size.

        Raises:
            ArchiveError: it is not what was packed, or the runtime that is imported is not its own.
        """
        self.pipeline = open_folder(folder, threads, frozen=True)
        self.pipeline.task.start(around)
        self.pipeline.warm_up(around.batch_size)
        self._log = AnswerLog(log)

    def answer(self, data: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Answered:
        """Answer a batch, and log the answers. Nothing raises for what is in a request.

        Args:
            data: the fields of each request, or its ``body``; of a client's request to an adopted
                archive that and its ``headers``.
            ids: the name of each request in answers and logs.
        """
        manifest = self.pipeline.manifest
        started_at = time.perf_counter()
        raw = [self._is_raw(item) for item in data]
        requests = [
            Request(fields_of_client(item[RAW_HEADERS], item[BODY]), request_id)
            if is_raw
            else read_request(item, request_id)
            for item, request_id, is_raw in zip(data, ids, raw, strict=True)
        ]
        parsed_at = time.perf_counter()
        result = self.pipeline.run(requests)
        answered_at = time.perf_counter()
        replies = [
            _raw_reply(answer) if is_raw else _json_reply(manifest, request_id, answer, text)
            for answer, text, request_id, is_raw in zip(
                result.answers, result.texts, ids, raw, strict=True
            )
        ]
        stage_ms = dict(result.stage_ms)
        stage_ms["decode"] += (parsed_at - started_at) * 1000
        stage_ms["serialise"] += (time.perf_counter() - answered_at) * 1000
        self._log.write(manifest, self.pipeline.task, ids, replace(result, stage_ms=stage_ms))
        return Answered(
            [reply.status for reply in replies],
            [reply.headers for reply in replies],
            [reply.content for reply in replies],
            stage_ms,
        )

    def _is_raw(self, item: Mapping[str, Any]) -> bool:
        """Return whether that is a client's request to an adopted archive; our own programs ask it
        in JSON, and read JSON."""
        return self.pipeline.manifest.adopted is not None and RAW_HEADERS in item

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def _json_reply(
    manifest: Manifest, request_id: str, answer: Answer | ItemError, text: str
) -> RawAnswer:
    status = HTTP_STATUS[answer.code] if isinstance(answer, ItemError) else 200
    content = answer if isinstance(answer, ItemError) else text
    return RawAnswer(status, _JSON, write_body(manifest, request_id, content))


def _raw_reply(answer: Answer | ItemError) -> RawAnswer:
    if isinstance(answer, ItemError):
        return failure(HTTP_STATUS[answer.code], answer.message, answer.code.value)
    return raw_of(answer)
