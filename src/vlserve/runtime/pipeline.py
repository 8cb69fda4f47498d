"""Requests in, answers out, for any engine: decode each, tokenise and infer together, postprocess
each, write each as JSON. How long each of these stages took is told with the answers.

A bad item leaves the batch with an error of its own; its neighbours never notice.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from vlserve.runtime.body import answer_text, parse_fields
from vlserve.runtime.errors import ErrorCode, RequestError
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.task import Task
from vlserve.runtime.types import Answer, Arrays, BatchResult, ItemError, Request, Sample

logger = logging.getLogger(__name__)

Done = TypeVar("Done")

WARM_UP_S = 1.0


@dataclass(frozen=True)
class _Row:
    """One item's place in the outputs of the run that it was part of."""

    outputs: Arrays
    index: int


class _Batch:
    """The items of one batch by their places; one that fails has its error here."""

    def __init__(self, items: Sequence[Request | ItemError]) -> None:
        self.requests = {at: item for at, item in enumerate(items) if isinstance(item, Request)}
        self.errors = {at: item for at, item in enumerate(items) if isinstance(item, ItemError)}

    def each(self, places: Iterable[int], work: Callable[[int], Done]) -> dict[int, Done]:
        """Return what ``work`` makes of each place; not of those where it fails."""
        results: dict[int, Done] = {}
        for at in places:
            try:
                results[at] = work(at)
            except Exception as error:
                self.errors[at] = _item_error(error, self.requests[at])
        return results


class Pipeline:
    """One version, ready to answer. Thread-safe as far as its task and backends are."""

    def __init__(self, manifest: Manifest, task: Task[Any]) -> None:
        self.manifest = manifest
        self.task = task

    def run(self, items: Sequence[Request | ItemError]) -> BatchResult:
        """Return answers in the order of ``items``, an ItemError where one cannot be answered.

        An item that the engine could not even read comes in as an ItemError and goes out as it is.
        Never raises for a request, whatever is in it.
        """
        task, batch, stage_ms = self.task, _Batch(items), dict[str, float]()
        with _timed(stage_ms, "decode"):
            fields = batch.each(batch.requests, lambda at: self._fields(batch.requests[at]))
            samples = batch.each(fields, lambda at: task.preprocess(fields[at]))
        with _timed(stage_ms, "tokenise"):
            inputs = self._tokenised(batch, samples)
        with _timed(stage_ms, "infer"):
            rows = dict(zip(inputs, self._infer(list(inputs.values())), strict=True))
        with _timed(stage_ms, "postprocess"):
            answers = batch.each(rows, lambda at: self._answer(rows[at], fields[at]))
        with _timed(stage_ms, "serialise"):
            texts = batch.each(answers, lambda at: answer_text(answers[at]))
        places = range(len(items))
        return BatchResult(
            [answers[at] if at in texts else batch.errors[at] for at in places],
            [texts.get(at, "") for at in places],
            stage_ms,
        )

    def warm_up(self, batch_size: int) -> None:
        """Answer the archive's own probes in batches of every size, so that no client waits for
        buffers and caches: alone and full first, then the others, as far as WARM_UP_S goes."""
        if not self.task.warms_up:
            return
        probes = [Request(probe.fields, "warm-up") for probe in self.manifest.probes]
        until = time.perf_counter() + WARM_UP_S
        for number, size in enumerate([1, batch_size, *range(batch_size - 1, 1, -1)]):
            if probes and (number < 2 or time.perf_counter() < until):
                self.run((probes * size)[:size])

    def _fields(self, request: Request) -> BaseModel:
        return parse_fields(self.task.fields, request.fields)

    def _tokenised(self, batch: "_Batch", samples: Mapping[int, Sample]) -> dict[int, Sample]:
        """Tokenise all in one call where it goes well; else one by one."""
        try:
            results = self.task.tokenise(list(samples.values()))
            return dict(zip(samples, results, strict=True))
        except Exception:
            return batch.each(samples, lambda at: self.task.tokenise([samples[at]])[0])

    def _infer(self, samples: Sequence[Sample]) -> list[_Row | Exception]:
        """Run a batch at once where it goes well; else its halves, until the guilty item stands
        alone."""
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
        return self.task.postprocess(row.outputs, row.index, fields)


def _item_error(error: Exception, request: Request) -> ItemError:
    if isinstance(error, RequestError):
        return ItemError(ErrorCode(error.code), error.message)
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
