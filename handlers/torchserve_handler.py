"""TorchServe's entry point: its batches in, Requests through the pipeline, JSON bodies out.

Values arrive as bytes (the server runs with decode_input_request=false). Nothing raises for a
batch: TorchServe would fail every request in it.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

from vlserve.runtime.answerlog import AnswerLog
from vlserve.runtime.body import read_request, write_body
from vlserve.runtime.contract import ItemError
from vlserve.runtime.errors import ErrorCode
from vlserve.runtime.folder import open_folder

HTTP_STATUS = {
    ErrorCode.BODY_UNREADABLE: 400,
    ErrorCode.FIELD_INVALID: 422,
    ErrorCode.IMAGE_UNREADABLE: 400,
    ErrorCode.IMAGE_TOO_LARGE: 413,
    ErrorCode.FEATURES_UNREADABLE: 400,
    ErrorCode.FEATURES_TOO_LARGE: 413,
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
        log = os.environ.get("ANSWER_LOG")
        self.answer_log = AnswerLog(Path(log) if log else None)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """One JSON body per request, in order, each with a status of its own."""
        ids = [_request_id(context, index) for index in range(len(data))]
        result = self.pipeline.run([read_request(*item) for item in zip(data, ids, strict=True)])
        manifest, statuses, bodies = self.pipeline.manifest, [], []
        for index, answer in enumerate(result.answers):
            status = HTTP_STATUS[answer.code] if isinstance(answer, ItemError) else 200
            context.set_response_status(code=status, idx=index)
            context.set_response_content_type(index, "application/json")
            context.set_response_header(index, "x-vlserve-version", str(manifest.version))
            statuses.append(status)
            bodies.append(write_body(manifest, ids[index], answer))
        self.answer_log.write(manifest, self.pipeline.task, ids, result)
        stage_ms = {f"{stage}_ms": round(value, 3) for stage, value in result.stage_ms.items()}
        for name, value in stage_ms.items():
            self._measure(context, name, value, "ms")
        self._measure(context, "batch_size", len(data), "count")
        line = {"event": "batch", "model": manifest.model, "version": manifest.version}
        logger.info(json.dumps({**line, "request_ids": ids, "statuses": statuses, **stage_ms}))
        return bodies

    def _measure(self, context: Any, name: str, value: float, unit: str) -> None:
        # a fresh list each time: TorchServe appends its own dimensions to the one it is given
        version = [Dimension("ModelVersion", str(self.pipeline.manifest.version))]
        kind = MetricTypes.HISTOGRAM
        context.metrics.add_metric(name, value, unit, dimensions=version, metric_type=kind)


def _request_id(context: Any, index: int) -> str:
    """The client's X-Request-Id (gateways send it in lower case), else TorchServe's own."""
    for name, value in context.get_all_request_header(index).items():
        if name.lower() == "x-request-id" and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(index))
