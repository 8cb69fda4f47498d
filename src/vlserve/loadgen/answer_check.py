"""Check the form of an answer; probes and evaluation check its substance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SentRequest:
    """What an answer is checked against."""

    model: str
    version: int | None
    """The version that alone may answer; None: any."""
    request_id: str


@dataclass(frozen=True)
class RequestOutcome:
    """What became of one request."""

    version: int | None = None
    """The version that answered."""
    failure: str | None = None
    """The kind of failure; None: the answer is right."""
    answered: bool = True
    """Whether a complete HTTP answer came, right or wrong."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by name, of its Server-Timing."""


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_tags(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("tag"), str)
            and _is_number(entry.get("score"))
            for entry in value
        )
    )


def _status_failure(status: int, answer: dict[str, Any] | None) -> str:
    error = (answer or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return f"HTTP {status} {code}" if code else f"HTTP {status}"


def judge_tagging(
    status: int, id_header: str | None, body: bytes, request: SentRequest
) -> RequestOutcome:
    """Return the outcome of a request to a model that tags.

    Args:
        status: The answer's HTTP status.
        id_header: Its X-Request-Id.
        body: Its body.
        request: What was sent.
    """
    answer = _object(body)
    if status != 200:
        return RequestOutcome(failure=_status_failure(status, answer))
    if answer is None:
        return RequestOutcome(failure="not a JSON object")
    version = answer.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        return RequestOutcome(failure="no version")
    if answer.get("model") != request.model:
        return RequestOutcome(version, "wrong model")
    if request.version not in (None, version):
        return RequestOutcome(version, "wrong version")
    if id_header != request.request_id or answer.get("request_id") != request.request_id:
        return RequestOutcome(version, "request id not echoed")
    if not _has_tags(answer.get("tags")):
        return RequestOutcome(version, "no tags")
    return RequestOutcome(version)


def judge_prediction(
    status: int,
    version_header: str | None,
    id_header: str | None,
    body: bytes,
    request: SentRequest,
) -> RequestOutcome:
    """Return the outcome of a request to a model of any task; ``version_header`` is the answer's
    X-Model-Version, the others as for `judge_tagging`."""
    answer = _object(body)
    if not 200 <= status < 300:
        return RequestOutcome(_whole_number(version_header), _status_failure(status, answer))
    if answer is None:
        return RequestOutcome(failure="not a JSON object")
    version = answer.get("version")
    if version_header != str(version) or not isinstance(version, int):
        return RequestOutcome(failure="header and body name different versions")
    if request.version not in (None, version):
        return RequestOutcome(version, "wrong version")
    if id_header != request.request_id or answer.get("request_id") != request.request_id:
        return RequestOutcome(version, "request id not echoed")
    return RequestOutcome(version)


def judge_exchange(
    status: int,
    version_header: str | None,
    id_header: str | None,
    body: bytes,
    request: SentRequest,
) -> RequestOutcome:
    """Return the outcome of a request that an adopted version may have answered, in whatever form;
    the arguments are those of `judge_prediction`."""
    version = _whole_number(version_header)
    if not 200 <= status < 300:
        return RequestOutcome(version, _status_failure(status, _object(body)))
    if version is None:
        return RequestOutcome(failure="no version")
    if request.version not in (None, version):
        return RequestOutcome(version, "wrong version")
    if id_header != request.request_id:
        return RequestOutcome(version, "request id not echoed")
    return RequestOutcome(version)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def transport_failure(error: Exception) -> str:
    """Return the kind of failure where no complete answer came."""
    cause = getattr(error, "original", error)  # geventhttpclient wraps the error of its last try
    if isinstance(cause, TimeoutError):
        return "timeout"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(cause).__name__
