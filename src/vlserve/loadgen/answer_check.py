"""Whether an answer is right in form. Right in substance is what probes and evaluation are for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What one request asked for."""

    model: str
    version: int | None
    request_id: str


@dataclass(frozen=True)
class Judged:
    """The version that answered, and the kind of failure, if it is one."""

    version: int | None = None
    failure: str | None = None
    answered: bool = True
    """Whether a whole HTTP answer came, right or wrong."""
    timing: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds by name, of its Server-Timing."""


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tags(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("tag"), str)
            and _number(entry.get("score"))
            for entry in value
        )
    )


def _status_failure(status: int, answer: dict[str, Any] | None) -> str:
    error = (answer or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return f"HTTP {status} {code}" if code else f"HTTP {status}"


def judge_answer(status: int, echoed_id: str | None, body: bytes, asked: Asked) -> Judged:
    """One HTTP answer against what was asked; failures are named so that they can be counted."""
    answer = _object(body)
    if status != 200:
        return Judged(failure=_status_failure(status, answer))
    if answer is None:
        return Judged(failure="not a JSON object")
    version = answer.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        return Judged(failure="no version")
    if answer.get("model") != asked.model:
        return Judged(version, "wrong model")
    if asked.version not in (None, version):
        return Judged(version, "wrong version")
    if echoed_id != asked.request_id or answer.get("request_id") != asked.request_id:
        return Judged(version, "request id not echoed")
    if not _tags(answer.get("tags")):
        return Judged(version, "no tags")
    return Judged(version)


def judge_any_answer(
    status: int, said_version: str | None, echoed_id: str | None, body: bytes, asked: Asked
) -> Judged:
    """The same where the model may do any task. ``said_version``: the header x-model-version."""
    answer = _object(body)
    if not 200 <= status < 300:
        return Judged(_whole_number(said_version), _status_failure(status, answer))
    if answer is None:
        return Judged(failure="not a JSON object")
    version = answer.get("version")
    if said_version != str(version) or not isinstance(version, int):
        return Judged(failure="header and body name different versions")
    if asked.version not in (None, version):
        return Judged(version, "wrong version")
    if echoed_id != asked.request_id or answer.get("request_id") != asked.request_id:
        return Judged(version, "request id not echoed")
    return Judged(version)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def transport_failure(error: Exception) -> str:
    """The kind of failure where no whole answer came."""
    cause = getattr(error, "original", error)  # geventhttpclient wraps what ended its last try
    if isinstance(cause, TimeoutError):
        return "timeout"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(cause).__name__
