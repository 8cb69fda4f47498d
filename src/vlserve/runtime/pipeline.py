"""Requests in, answers out, for any engine: preprocess each, infer together, postprocess each.

A bad item leaves the batch with an error of its own; its neighbours never notice.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vlserve.runtime.body import parse_fields
from vlserve.runtime.contract import Answer, Arrays, BatchResult, ItemError, Request, Sample
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """One item's place in the outputs of the run that it was part of."""

    outputs: Arrays
    index: int


class Pipeline:
    """One version, ready to answer. Thread-safe as far as its task and backends are."""

    def __init__(self, manifest: Manifest, task: Task[Any]) -> None:
        self.manifest = manifest
        self.task = task

    def run(self, items: Sequence[Request | ItemError]) -> BatchResult:
        """Answers in the order of ``items``, an ItemError where one cannot be answered.

        An item that the engine could not even read comes in as an ItemError and goes out as it is.
        Never raises for a request, whatever is in it.
        """
        stage_ms: dict[str, float] = {}
        requests = {place: item for place, item in enumerate(items) if isinstance(item, Request)}
        done: dict[int, Answer | ItemError] = {
            place: item for place, item in enumerate(items) if isinstance(item, ItemError)
        }
        parsed: dict[int, BaseModel] = {}
        samples: dict[int, Sample] = {}
        with _timed(stage_ms, "preprocess"):
            for place, request in requests.items():
                try:
                    parsed[place] = parse_fields(self.task.fields, request.fields)
                    samples[place] = self.task.preprocess(parsed[place])
                except Exception as error:
                    done[place] = _item_error(error, request)
        with _timed(stage_ms, "infer"):
            rows = dict(zip(samples, self._infer(list(samples.values())), strict=True))
        with _timed(stage_ms, "postprocess"):
            for place, row in rows.items():
                try:
                    done[place] = self._answer(row, parsed[place])
                except Exception as error:
                    done[place] = _item_error(error, requests[place])
        return BatchResult([done[place] for place in range(len(items))], stage_ms)

    def warm_up(self, batch_size: int) -> None:
        """Answer the archive's own probes alone and as a full batch, so that the first client
        does not wait for buffers and caches."""
        probes = [Request(probe.fields, "warm-up") for probe in self.manifest.probes]
        if probes:
            self.run(probes[:1])
            self.run((probes * batch_size)[:batch_size])

    def _infer(self, samples: Sequence[Sample]) -> list[_Row | Exception]:
        """One run where it goes well; else halves, until the guilty item stands alone."""
        if not samples:
            return []
        try:
            outputs = self.task.infer(self.task.collate(samples))
            for name, array in outputs.items():
                if len(array) != len(samples):
                    raise ValueError(f"{name} has {len(array)} rows for {len(samples)} items")
        except Exception as error:
            if len(samples) == 1:
                return [error]
            half = len(samples) // 2
            return self._infer(samples[:half]) + self._infer(samples[half:])
        return [_Row(outputs, index) for index in range(len(samples))]

    def _answer(self, row: _Row | Exception, fields: BaseModel) -> Answer:
        if isinstance(row, Exception):
            raise row
        answer = self.task.postprocess(row.outputs, row.index, fields)
        json.dumps(answer, allow_nan=False)  # what JSON cannot carry must not fail the whole batch
        return answer


def _item_error(error: Exception, request: Request) -> ItemError:
    if isinstance(error, RequestError):
        return ItemError(error.code, error.message)
    logger.error("request %s failed", request.request_id, exc_info=error)
    return ItemError(
        ErrorCode.INFERENCE_FAILED, f"the model failed on this item ({type(error).__name__})"
    )


@contextmanager
def _timed(stage_ms: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        stage_ms[stage] = (time.perf_counter() - start) * 1000
