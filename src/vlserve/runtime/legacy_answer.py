"""What a handler returns, as TorchServe sends it; and what it does where a handler fails."""

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

from vlserve.runtime.exchange import RawAnswer, failure

PREDICTION_FAILED = "Prediction failed"
OUT_OF_RESOURCES = "Out of resources"
INVALID_OUTPUT = "Invalid model predict output"
MISMATCHED = "number of batch response mismatched"
UNSUPPORTED = "Unsupported model output data type."

_CODES = {
    OUT_OF_RESOURCES: "out_of_resources",
    INVALID_OUTPUT: "invalid_output",
    MISMATCHED: "invalid_output",
    UNSUPPORTED: "invalid_output",
}
"""TorchServe's message -> our code; ``prediction_failed`` of any other."""


class HandlerFailed(Exception):
    """A handler failed on a whole batch. ``splits``: whether halves of it may go better."""

    def __init__(self, status: int, message: str, *, splits: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.splits = splits

    def answer(self) -> RawAnswer:
        """Return what the client gets."""
        code = _CODES.get(self.message, "prediction_failed")
        return failure(self.status, self.message, code)


def failed_by(error: Exception) -> HandlerFailed:
    """Return what TorchServe says of an exception that a handler raised."""
    if isinstance(error, MemoryError) or (
        "CUDA" in str(error) and not hasattr(error, "error_code")
    ):
        return HandlerFailed(507, OUT_OF_RESOURCES, splits=False)
    if type(error).__name__ == "PredictionException" and hasattr(error, "error_code"):
        status = _http_status(error.error_code)
        if status is not None:
            return HandlerFailed(status, str(getattr(error, "message", error)))
    return HandlerFailed(503, PREDICTION_FAILED)


def _http_status(value: Any) -> int | None:
    """Return the status that a handler gives; None for what is no status of a whole answer."""
    try:
        status = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return status if 200 <= status <= 599 else None


def encoded(result: Any) -> bytes:
    """Return the body of one result. TypeError for a type that TorchServe does not send."""
    if isinstance(result, bytes | bytearray):
        return bytes(result)
    if isinstance(result, str):
        return result.encode("utf-8")
    torch = sys.modules.get("torch")  # without it there is no tensor
    if torch is not None and isinstance(result, torch.Tensor):
        buffer = io.BytesIO()
        torch.save(result, buffer)
        return buffer.getvalue()
    return json.dumps(result, indent=2).encode("utf-8")


def answer_item(
    result: Any, status: Any, headers: Mapping[Any, Any], pieces: bytes = b""
) -> RawAnswer:
    """Return the answer of one request, with the status and the headers that the handler set.

    ``pieces``: what it sent before its result. What TorchServe would not send is that item's own
    error: there, it fails the batch or ends the worker.
    """
    try:
        content = pieces + encoded(result)
    except (TypeError, ValueError, RecursionError):
        return HandlerFailed(503, UNSUPPORTED).answer()
    if not all(isinstance(text, str) for pair in headers.items() for text in pair):
        return HandlerFailed(503, PREDICTION_FAILED).answer()
    number = 200 if status is None else _http_status(status)
    if number is None:
        return HandlerFailed(503, PREDICTION_FAILED).answer()
    return RawAnswer(number, dict(headers), content)
