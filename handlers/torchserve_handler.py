"""TorchServe's entry point: its batches in, Requests through the pipeline, JSON bodies out.

Values arrive as bytes (the server runs with decode_input_request=false). Nothing raises for a
batch: TorchServe would fail every request in it.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from vlserve.runtime import headers
from vlserve.runtime.answer_log import AnswerLog
from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import Answer, BatchResult, ItemError

HTTP_STATUS = {
    ErrorCode.BODY_UNREADABLE: 400,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.BODY_TOO_COMPLEX: 413,
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


class TorchServeHandler:
    """One worker of one version."""

    def initialize(self, context: Any) -> None:
        """Open the folder that TorchServe unpacked; raises when it is not what was packed."""
        folder = Path(context.system_properties["model_dir"])
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self.pipeline = open_folder(folder, threads, frozen=True)
        self.pipeline.warm_up(int(context.system_properties.get("batch_size") or 1))
        log = os.environ.get("ANSWER_LOG")
        self.answer_log = AnswerLog(Path(log) if log else None)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One JSON body per request, in order, each with a status of its own."""
        started = time.perf_counter()
        ids = [_request_id(context, index) for index in range(len(data))]
        requests = [read_request(*item) for item in zip(data, ids, strict=True)]
        read = time.perf_counter()
        result = self.pipeline.run(requests)
        ran = time.perf_counter()
        bodies = [self._body(*item) for item in zip(ids, result.answers, result.texts, strict=True)]
        stage_ms = dict(result.stage_ms)
        stage_ms["decode"] += (read - started) * 1000
        stage_ms["serialise"] += (time.perf_counter() - ran) * 1000
        timing = ", ".join(f"{stage};dur={value:.3f}" for stage, value in stage_ms.items())
        for index, answer in enumerate(result.answers):
            status = HTTP_STATUS[answer.code] if isinstance(answer, ItemError) else 200
            context.set_response_status(code=status, idx=index)
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, headers.ANSWERED_BY, self._version)
            context.set_response_header(index, "server-timing", timing)
        result = replace(result, stage_ms=stage_ms)
        self.answer_log.write(self.pipeline.manifest, self.pipeline.task, ids, result)
        self._measure(context, result)
        return bodies

    def _body(self, request_id: str, answer: Answer | ItemError, text: str) -> bytes:
        said = answer if isinstance(answer, ItemError) else text
        return write_body(self.pipeline.manifest, request_id, said)

    @property
    def _version(self) -> str:
        return str(self.pipeline.manifest.version)

    def _measure(self, context: Any, result: BatchResult) -> None:
        values = {f"{stage}_ms": round(value, 3) for stage, value in result.stage_ms.items()}
        for name, value in [*values.items(), ("batch_size", len(result.answers))]:
            try:
                metric = context.metrics.get_metric(name, MetricTypes.HISTOGRAM)
            except MetricsCacheKeyError:  # metrics.yaml is the operator's, who may leave some out
                continue
            # the dimensions of metrics.yaml; unlike add_metric, this names no request of the batch
            metric.add_or_update(value, [self._version, self.pipeline.manifest.model, "Model"])


def _request_id(context: Any, index: int) -> str:
    """The client's X-Request-Id (gateways send it in lower case), else TorchServe's own."""
    for name, value in context.get_all_request_header(index).items():
        if name.lower() == headers.REQUEST_ID and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(index))
