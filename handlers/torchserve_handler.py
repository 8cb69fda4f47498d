"""TorchServe's entry point: its batches in, an archive's statuses and JSON bodies out.

Values arrive as bytes (the server runs with decode_input_request=false). Nothing raises for a
batch: TorchServe would fail every request in it.
"""

import os
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from vlserve.runtime import headers
from vlserve.runtime.answering import Answered, Answering
from vlserve.runtime.exchange import RAW_HEADERS
from vlserve.runtime.task import Surroundings


class TorchServeHandler:
    """One worker of one version."""

    def initialize(self, context: Any) -> None:
        """Open the folder that TorchServe unpacked; raises when it is not what was packed."""
        folder = Path(context.system_properties["model_dir"])
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        around = Surroundings(
            batch_size=int(context.system_properties.get("batch_size") or 1),
            metrics=context.metrics,
            gpu_id=context.system_properties.get("gpu_id"),
        )
        log = os.environ.get("ANSWER_LOG")
        self.answering = Answering(folder, threads, around, Path(log) if log else None)
        self.manifest = self.answering.pipeline.manifest

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Return one body per request, in order, each with a status and headers of its own."""
        ids = [_request_id(context, index) for index in range(len(data))]
        if self.manifest.adopted:
            data = [_with_headers(item, context, index) for index, item in enumerate(data)]
        result = self.answering.answer(data, ids)
        for index, status in enumerate(result.statuses):
            context.set_response_status(code=status, idx=index)
            for name, value in result.headers[index].items():
                context.set_response_header(index, name, value)
            context.set_response_header(index, headers.ANSWERED_BY, str(self.manifest.version))
            context.set_response_header(index, "server-timing", result.timing)
        self._measure(context, result)
        return result.bodies

    def _measure(self, context: Any, result: Answered) -> None:
        values = {f"{stage}_ms": round(value, 3) for stage, value in result.stage_ms.items()}
        for name, value in [*values.items(), ("batch_size", len(result.bodies))]:
            try:
                metric = context.metrics.get_metric(name, MetricTypes.HISTOGRAM)
            except MetricsCacheKeyError:  # metrics.yaml is the operator's, who may leave some out
                continue
            # the dimensions of metrics.yaml; unlike add_metric, this names no request of the batch
            metric.add_or_update(value, [str(self.manifest.version), self.manifest.model, "Model"])


def _with_headers(item: dict[str, Any], context: Any, index: int) -> dict[str, Any]:
    """Return a client's request with its headers, for an adopted archive."""
    client_headers = context.get_all_request_header(index)
    if any(name.lower().startswith(headers.OURS) for name in client_headers):
        return {RAW_HEADERS: client_headers, **item}
    return item


def _request_id(context: Any, index: int) -> str:
    """Return the client's X-Request-Id (gateways send it in lower case), else TorchServe's own."""
    for name, value in context.get_all_request_header(index).items():
        if name.lower() == headers.REQUEST_ID and isinstance(value, str):  # a form part is a dict
            return value
    return str(context.get_request_id(index))
