"""TorchServe's entry point: its batches in, Requests through the pipeline, JSON bodies out.

Values arrive as bytes (the server runs with decode_input_request=false). Nothing raises for a
batch: TorchServe would fail every request in it.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes

from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.contract import BatchResult, ItemError
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder

HTTP_STATUS = {
    ErrorCode.BODY_UNREADABLE: 400,
    ErrorCode.FIELD_INVALID: 422,
    ErrorCode.IMAGE_UNREADABLE: 400,
    ErrorCode.IMAGE_TOO_LARGE: 413,
    ErrorCode.TEXT_UNREADABLE: 400,
    ErrorCode.TEXT_TOO_LONG: 413,
    ErrorCode.INFERENCE_FAILED: 500,
}

logger = logging.getLogger("vlserve")


class TorchServeHandler:
    """One worker of one version."""

    def initialize(self, context: Any) -> None:
        """Open the folder that TorchServe unpacked; raises when it is not what was packed."""
        folder = Path(context.system_properties["model_dir"])
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self.pipeline = open_folder(folder, threads, frozen=True)
        self.pipeline.warm_up(int(context.system_properties.get("batch_size") or 1))

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One JSON body per request, in order, each with a status of its own."""
        ids = [_request_id(context, index) for index in range(len(data))]
        result = self.pipeline.run(
            [read_request(form, request_id) for form, request_id in zip(data, ids, strict=True)]
        )
        manifest = self.pipeline.manifest
        statuses = [
            HTTP_STATUS[answer.code] if isinstance(answer, ItemError) else 200
            for answer in result.answers
        ]
        for index, status in enumerate(statuses):
            context.set_response_status(code=status, idx=index)
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, "x-vlserve-version", str(manifest.version))
        self._report(context, ids, statuses, result)
        return [
            write_body(manifest, request_id, answer)
            for request_id, answer in zip(ids, result.answers, strict=True)
        ]

    def _report(
        self, context: Any, ids: list[str], statuses: list[int], result: BatchResult
    ) -> None:
        histogram = MetricTypes.HISTOGRAM
        stages = {f"{stage}_ms": round(value, 3) for stage, value in result.stage_ms.items()}
        for name, value in stages.items():
            context.metrics.add_time(name, value, metric_type=histogram)
        context.metrics.add_metric("batch_size", len(ids), "count", metric_type=histogram)
        named = {"model": self.pipeline.manifest.model, "version": self.pipeline.manifest.version}
        line = {"event": "batch", **named, "request_ids": ids, "statuses": statuses, **stages}
        logger.info(json.dumps(line))


def _request_id(context: Any, index: int) -> str:
    """The client's X-Request-Id (gateways send it in lower case), else TorchServe's own."""
    for name, value in context.get_all_request_header(index).items():
        if name.lower() == "x-request-id" and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(index))
