"""Spans of a handler's stages, below those of the gateway, from the lines of the access log.

The worker measures its stages anyway and says them in Server-Timing, so traces cost it nothing, and
archives of any age have them. The durations are measured; where they lie is not: one stage follows
the other, the last one ends with the engine's answer, and what is before the first is the queue.

They are sent as OTLP in JSON (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
"""

import hashlib
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from vlserve.control.gateway.envoy_tracing import SERVICE
from vlserve.control.rollouts.log_reader import Line, end_of, read_since
from vlserve.control.trouble_log import TroubleLog

EVERY_S = 1.0
MOST_SPANS = 2000
"""In one message."""
MOST_BYTES = 4 * 1024 * 1024
"""Of the log that one look reads; what a busy gateway writes beyond it comes with the next."""
_TIMEOUT_S = 5.0
_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_ENTRY = re.compile(r"\s*([a-z][a-z0-9_]{0,31});dur=([0-9]{1,9}(?:\.[0-9]{1,9})?(?:e-3)?)\s*")
_INTERNAL = 1
_ENGINE = "engine"

logger = logging.getLogger(__name__)

Span = dict[str, Any]


def spans_of(line: Line) -> Iterator[Span]:
    """Yield the spans of one line of the access log; none where it was not sampled, or no handler
    answered."""
    trace = line.get("trace")
    if not isinstance(trace, dict):
        return
    parent = _PARENT.fullmatch(str(trace.get("parent")))
    if parent is None or not int(parent[3], 16) & 1 or not int(parent[1], 16):
        return  # Envoy takes a trace of zeros, which is none
    began_us, sent_us, engine_us = (
        trace.get(name) for name in ("began_us", "sent_us", "engine_us")
    )
    if not (str(began_us).isdecimal() and isinstance(sent_us, int) and isinstance(engine_us, int)):
        return
    took = dict(_times(str(trace.get("timing"))))
    took.pop(_ENGINE, None)  # Triton's header has the gateway's entry too
    start_us = int(str(began_us)) + sent_us
    about = {name: line.get(name) for name in ("model", "version", "request_id")}
    engine = _span(parent[1], parent[2], _ENGINE, start_us, engine_us, about)
    yield engine
    at = start_us + max(0, engine_us - sum(took.values()))
    for stage, stage_us in took.items():
        yield _span(parent[1], engine["spanId"], stage, at, stage_us, {})
        at += stage_us


def _times(timing: str) -> Iterator[tuple[str, int]]:
    """Yield the entries of Server-Timing, in microseconds."""
    for entry in timing.split(","):
        if match := _ENTRY.fullmatch(entry):
            yield match[1], round(1000 * float(match[2]))


def _span(
    trace: str, parent: str, name: str, start_us: int, took_us: int, about: dict[str, Any]
) -> Span:
    """Return a span, whose id follows from its place: who gets it twice sees it once."""
    place = hashlib.blake2b(f"{trace} {parent} {name}".encode(), digest_size=8).hexdigest()
    return {
        "traceId": trace,
        "spanId": place,
        "parentSpanId": parent,
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(1000 * start_us),
        "endTimeUnixNano": str(1000 * (start_us + took_us)),
        "attributes": [
            _attribute(f"vlserve.{key}", str(value)) for key, value in about.items() if value
        ],
    }


def message(spans: Iterable[Span]) -> dict[str, Any]:
    """Return an ExportTraceServiceRequest."""
    scope = {"scope": {"name": "vlserve.stages"}, "spans": list(spans)}
    resource = {"attributes": [_attribute("service.name", SERVICE)]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


class StageSpans:
    """One thread that follows the access log. A collector that does not answer loses spans."""

    def __init__(self, log: Path, url: str) -> None:
        self._log = log
        self._url = url
        self._cursor = end_of(log)
        self._http = httpx.Client(timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False)
        self._trouble = TroubleLog(logger)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage-spans", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send no other message."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(EVERY_S)

    def look(self) -> int:
        """Send the spans of the lines since the last look; return how many there were."""
        lines, self._cursor = read_since(self._log, self._cursor, b'"trace"', MOST_BYTES)
        spans = [span for line in lines for span in spans_of(line)]
        for first in range(0, len(spans), MOST_SPANS):
            self._send(spans[first : first + MOST_SPANS])
        return len(spans)

    def _send(self, spans: list[Span]) -> None:
        try:
            with self._http.stream("POST", self._url, json=message(spans)) as answer:
                wrong = "" if answer.is_success else f"it answered {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            wrong = str(error) or type(error).__name__
        self._trouble.note("traces", f"spans are lost: {wrong}" if wrong else "")

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self.look()
            except Exception:
                logger.exception("traces")
