"""What stands in for triton_model.py in an archive that was packed before Triton was an engine.

The archive's folder stands first on ``sys.path`` when this module is imported, so that its own
frozen runtime answers. That is an older one: what is used here is what all of them have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.folder import open_folder

if TYPE_CHECKING:
    from vlserve.runtime.answer_log import AnswerLog
    from vlserve.runtime.types import ItemError
else:  # runtimes from before 0.1.0 call the modules otherwise

    def _module(name: str, earlier: str) -> Any:
        return import_module(name if find_spec(name) else earlier)

    AnswerLog = _module("vlserve.runtime.answer_log", "vlserve.runtime.answerlog").AnswerLog
    ItemError = _module("vlserve.runtime.types", "vlserve.runtime.contract").ItemError

HTTP_STATUS = {
    "body_unreadable": 400,
    "body_too_large": 413,
    "body_too_complex": 413,
    "too_many_items": 413,
    "items_too_late": 503,
    "field_invalid": 422,
    "image_unreadable": 400,
    "image_too_large": 413,
    "image_too_complex": 413,
    "image_damaged": 400,
    "video_unreadable": 400,
    "video_too_large": 413,
    "video_too_complex": 413,
    "video_unsupported": 415,
    "features_unreadable": 400,
    "features_too_large": 413,
    "text_unreadable": 400,
    "text_too_long": 413,
    "inference_failed": 500,
    "request_killed_worker": 500,
}
"""Code of an item's error -> the status that a client sees, as vlserve.runtime.answering has it."""


class TritonModel:
    """One worker of one version, with the methods of the class of that name in triton_model.py."""

    def __init__(self, folder: Path, threads: int, batch_size: int, log: Path | None) -> None:
        """Open the unpacked archive in ``folder`` and answer its probes in batches of every size.

        Raises:
            ArchiveError: it is not what was packed, or the runtime that is imported is not its own.
        """
        self._pipeline = open_folder(folder, threads, frozen=True)
        self._pipeline.warm_up(batch_size)
        self._log = AnswerLog(log)

    def answer(
        self, data: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> list[tuple[int, str, bytes]]:
        """Return status, Server-Timing and JSON body of each request, in order."""
        manifest = self._pipeline.manifest
        started_at = time.perf_counter()
        requests = [read_request(*item) for item in zip(data, ids, strict=True)]
        parsed_at = time.perf_counter()
        result = self._pipeline.run(requests)
        answered_at = time.perf_counter()
        answers = [
            answer if isinstance(answer, ItemError) else text
            for answer, text in zip(result.answers, result.texts, strict=True)
        ]
        bodies = [write_body(manifest, *item) for item in zip(ids, answers, strict=True)]
        stage_ms = dict(result.stage_ms)
        stage_ms["decode"] += (parsed_at - started_at) * 1000
        stage_ms["serialise"] += (time.perf_counter() - answered_at) * 1000
        self._log.write(manifest, self._pipeline.task, ids, replace(result, stage_ms=stage_ms))
        timing = ", ".join(f"{stage};dur={value:.3f}" for stage, value in stage_ms.items())
        return [
            (_status(answer), timing, body)
            for answer, body in zip(result.answers, bodies, strict=True)
        ]

    def close(self) -> None:
        self._log.close()


def _status(answer: Any) -> int:
    return HTTP_STATUS.get(answer.code.value, 500) if isinstance(answer, ItemError) else 200
