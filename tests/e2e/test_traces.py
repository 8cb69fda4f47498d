"""Traces: a caller's traceparent goes on, and a collector gets the spans of gateway and handler.
Real Envoy, and a collector in this process."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.running_stack import RunningGateway, make_settings, wait_until
from vlserve.control.domain import ModelRoute
from vlserve.control.gateway.log_lines import read_access_line
from vlserve.control.stage_spans import StageSpans
from vlserve.settings_sections import TracesSettings

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
STAGES = (
    "decode;dur=1.250, tokenise;dur=0.500, infer;dur=2.000, postprocess;dur=0, serialise;dur=0.1"
)


@dataclass(frozen=True)
class Span:
    trace: str
    id: str
    parent: str
    name: str
    start_ns: int
    end_ns: int
    by_gateway: bool


class Collector(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def of(self, trace: str) -> list[Span]:
        return [span for span in self.spans if span.trace == trace]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Collector

    def do_POST(self) -> None:
        raw = self._body()
        is_json = self.headers["Content-Type"] == "application/json"
        self.server.spans += _from_json(raw) if is_json else _from_protobuf(raw)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _from_json(raw: bytes) -> Iterator[Span]:
    for resource in json.loads(raw)["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    *(span["traceId"], span["spanId"], span["parentSpanId"], span["name"]),
                    int(span["startTimeUnixNano"]),
                    int(span["endTimeUnixNano"]),
                    by_gateway=False,
                )


def _from_protobuf(raw: bytes) -> Iterator[Span]:
    """Read ExportTraceServiceRequest of opentelemetry-proto: resource_spans 1, scope_spans 2, spans
    2, and of a span what is needed here."""
    for resource in _fields(raw).get(1, []):
        for scope in _fields(resource).get(2, []):
            for text in _fields(scope).get(2, []):
                span = _fields(text)
                yield Span(
                    *(b"".join(span.get(number, [])).hex() for number in (1, 2, 4)),
                    b"".join(span[5]).decode(),
                    *(int.from_bytes(span[number][0], "little") for number in (7, 8)),
                    by_gateway=True,
                )


def _fields(message: bytes) -> dict[int, list[bytes]]:
    fields: dict[int, list[bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        size = {0: 0, 1: 8, 5: 4}.get(tag & 7)
        if size == 0:
            value = str(varint()).encode()
        else:
            size = varint() if size is None else size
            value, at = message[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield collector
        collector.shutdown()


def faster(folder: Path) -> None:
    """Have Envoy send its spans at once."""
    file = folder / "serving_config" / "gateway" / "envoy.yaml"
    text = file.read_text(encoding="utf-8")
    at_once = "tracing: {opentelemetry: {min_flush_spans: 1, flush_interval_ms: 50}}, re2:"
    file.write_text(
        text.replace("static_layer: {re2:", f"static_layer: {{{at_once}", 1), encoding="utf-8"
    )


@pytest.fixture(scope="module")
def tracing_gateway(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("traced")
    settings = make_settings(folder, timeout_s=5.0)
    faster(folder)
    traces = TracesSettings(otlp_url=collector.url, sample_percent=0)
    gateway = RunningGateway(settings.model_copy(update={"traces": traces}))
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.fixture
def engine() -> Iterator[FakeTorchServe]:
    with FakeTorchServe("engine-0", "token-of-0", timing=STAGES) as engine:
        yield engine


@pytest.fixture
def gateway(tracing_gateway: RunningGateway, engine: FakeTorchServe) -> RunningGateway:
    tracing_gateway.route(ModelRoute("tagger", {1: 100}, (1,)), to=[engine])
    return tracing_gateway


def ask(gateway: RunningGateway, trace_headers: Mapping[str, str]) -> tuple[httpx.Response, str]:
    """Return the answer, and the id that was sent."""
    request_id = str(uuid4())
    headers = {"x-request-id": request_id, **trace_headers}
    return gateway.http.post("/predictions/tagger", content=b"x", headers=headers), request_id


def test_a_callers_trace_goes_through_gateway_and_handler(
    gateway: RunningGateway, engine: FakeTorchServe, collector: Collector
) -> None:
    follower = StageSpans(gateway.access_log(), collector.url)
    answer, request_id = ask(
        gateway, {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=value"}
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, request_id)
    (request,) = engine.seen
    assert request.headers["x-request-id"] == request_id
    match = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-01", request.headers["traceparent"])
    assert match and request.headers["tracestate"] == "vendor=value"
    gateway.access_line(request_id)
    wait_until(lambda: follower.look() or any(s.name == "infer" for s in collector.of(TRACE)))
    wait_until(lambda: sum(span.by_gateway for span in collector.of(TRACE)) == 2)
    spans = collector.of(TRACE)
    (first,) = [span for span in spans if span.parent == CALLER]
    (attempt,) = [span for span in spans if span.parent == first.id]
    assert attempt.id == match[1]
    (in_engine,) = [span for span in spans if span.parent == attempt.id]
    assert in_engine.name == "engine"
    stages = [span for span in spans if span.parent == in_engine.id]
    assert [(span.name, span.end_ns - span.start_ns) for span in stages] == [
        ("decode", 1_250_000),
        ("tokenise", 500_000),
        ("infer", 2_000_000),
        ("postprocess", 0),
        ("serialise", 100_000),
    ]
    assert all(a.end_ns == b.start_ns for a, b in pairwise(stages))
    assert len(spans) == 3 + len(stages)
    slack_ns = 5_000_000  # of clocks that count in other units
    assert first.start_ns - slack_ns <= in_engine.start_ns
    assert in_engine.end_ns <= first.end_ns + slack_ns


@pytest.mark.parametrize(
    "trace_headers",
    [
        {"traceparent": f"00-{'1' * 32}-{CALLER}-00"},
        {},
        {"traceparent": "garbage"},
        {"traceparent": f"00-{'g' * 32}-{CALLER}-01"},
        {"traceparent": "00-" + "1" * 20_000},
        {"x-b3-sampled": "1", "x-client-trace-id": "me"},
    ],
    ids=["not sampled", "none", "garbage", "no hex", "long", "others"],
)
def test_what_asks_for_no_trace_gets_none(
    gateway: RunningGateway,
    engine: FakeTorchServe,
    collector: Collector,
    trace_headers: dict[str, str],
) -> None:
    before = len(collector.spans)
    follower = StageSpans(gateway.access_log(), collector.url)
    answer, request_id = ask(gateway, trace_headers)
    assert answer.status_code == 200
    line: dict[str, Any] = dict(gateway.access_line(request_id))
    assert read_access_line(line).status == 200
    assert len(json.dumps(line)) < 2000
    assert follower.look() == 0
    mark = uuid4().hex
    ask(gateway, {"traceparent": f"00-{mark}-{CALLER}-01"})
    wait_until(lambda: collector.of(mark))  # what was before it would have come
    assert {span.trace for span in collector.spans[before:]} == {mark}


def test_a_trace_of_zeros_is_none(gateway: RunningGateway, collector: Collector) -> None:
    follower = StageSpans(gateway.access_log(), collector.url)
    answer, request_id = ask(gateway, {"traceparent": f"00-{'0' * 32}-{CALLER}-01"})
    assert answer.status_code == 200
    gateway.access_line(request_id)
    assert follower.look() == 0


def test_a_huge_tracestate_harms_nobody(gateway: RunningGateway, collector: Collector) -> None:
    mark = uuid4().hex
    answer, _ = ask(
        gateway, {"traceparent": f"00-{mark}-{CALLER}-01", "tracestate": "a=" + "b" * 20_000}
    )
    assert answer.status_code == 200
    wait_until(lambda: collector.of(mark))


def test_each_try_is_a_span_and_the_stages_are_of_the_last(
    gateway: RunningGateway, engine: FakeTorchServe, collector: Collector
) -> None:
    follower = StageSpans(gateway.access_log(), collector.url)
    engine.replies.append(Reply(507))
    mark = uuid4().hex
    answer, request_id = ask(gateway, {"traceparent": f"00-{mark}-{CALLER}-01"})
    assert answer.status_code == 200
    gateway.access_line(request_id)
    follower.look()
    wait_until(lambda: sum(span.by_gateway for span in collector.of(mark)) == 3)
    last = engine.seen[-1].headers["traceparent"].split("-")[2]
    assert [s.name for s in collector.of(mark) if s.parent == last] == ["engine"]


def test_a_collector_that_is_away_costs_no_answer(
    gateway: RunningGateway, collector: Collector
) -> None:
    follower = StageSpans(gateway.access_log(), "http://127.0.0.1:9/v1/traces")
    collector.status = 503
    try:
        answer, request_id = ask(gateway, {"traceparent": f"00-{uuid4().hex}-{CALLER}-01"})
        assert answer.status_code == 200
        gateway.access_line(request_id)
        assert follower.look() == 6
        assert follower.look() == 0
    finally:
        collector.status = 200
