"""HTTP/1.0 and HTTP/2 without TLS beside HTTP/1.1, and attacks on their framing. Real Envoy."""

import json
import socket

import pytest

from support import bad_requests, raw_http, raw_http2
from support.fake_torchserve import FakeTorchServe
from support.raw_http import at_once, send
from support.running_stack import RunningGateway
from vlserve.control.domain import ModelRoute

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
PATH = "/predictions/tagger"
BODY = b"x" * 50_000
LENGTH = (b"content-length", str(len(BODY)).encode())


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    envoy.route(TAGGER, to=list(engines))
    return envoy


def _bodies(engines: Engines) -> list[bytes]:
    return [request.body for engine in engines for request in engine.seen]


def _assert_neighbours_are_right(gateway: RunningGateway, engines: Engines) -> None:
    """What an attack left in a connection to an engine would be in the way of later requests."""
    for engine in engines:
        engine.seen.clear()
    for number in range(4):
        body = str(number).encode()
        assert gateway.http.post(PATH, content=body).json()["version"] == 1
    assert sorted(_bodies(engines)) == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("host", [b"", b"Host: x\r\n"])
def test_http_1_0_is_answered(gateway: RunningGateway, engines: Engines, host: bytes) -> None:
    head = b"POST /predictions/tagger HTTP/1.0\r\nContent-Length: 50000\r\n" + host + b"\r\n"
    reply = send(gateway.settings.gateway.port, head + BODY, "POST")
    assert (reply.status, json.loads(reply.body)["version"]) == (200, 1)
    assert reply.headers["x-model-version"] == "1"
    assert reply.headers["connection"] == "close"
    assert _bodies(engines) == [BODY]


def test_http_1_0_keeps_a_connection_that_asks_for_it(gateway: RunningGateway) -> None:
    """As `ab -k` does."""
    request = b"GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.settings.gateway.port), 10) as connection:
        for _ in range(3):
            connection.sendall(request)
            reply = b""
            while b'"ok"}' not in reply:
                piece = connection.recv(4096)
                assert piece, "the connection was closed"
                reply += piece
            assert reply.startswith(b"HTTP/1.0 200"), reply
            assert b"keep-alive" in reply.lower()


def test_http_2_is_answered_by_prior_knowledge(gateway: RunningGateway, engines: Engines) -> None:
    request = raw_http2.headers(raw_http2.post(PATH, LENGTH)) + raw_http2.data(BODY)
    reply = raw_http2.exchange(gateway.settings.gateway.port, request)
    assert json.loads(reply.body)["version"] == 1
    assert _bodies(engines) == [BODY]


def test_an_upgrade_to_http_2_is_passed_over(gateway: RunningGateway, engines: Engines) -> None:
    """As Java's client asks for it at each request."""
    upgrade = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    response = gateway.http.post(PATH, content=BODY, headers=upgrade)
    assert (response.status_code, response.http_version) == (200, "HTTP/1.1")
    assert _bodies(engines) == [BODY]


RAW = [case for case in bad_requests.bad_http() if case.raw]


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_bad_framing_is_refused_over_http_1(
    gateway: RunningGateway, engines: Engines, version: bytes
) -> None:
    def ask(case: bad_requests.Case) -> raw_http.Reply:
        raw = case.raw.replace(b"HTTP/1.1", version)
        return send(gateway.settings.gateway.port, raw, case.method)

    for case, reply in at_once(ask, RAW):
        needs_no_host = case.name == "no-host" and version == b"HTTP/1.0"
        expected = (404, "not_found") if needs_no_host else (case.status, case.code)
        refusal = (reply.status, json.loads(reply.body)["error"]["code"])
        assert refusal == expected, case.name
    assert not _bodies(engines)
    _assert_neighbours_are_right(gateway, engines)


FRAMINGS = (
    "Content-Length: 3\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 3",
    "Transfer-Encoding: identity\r\nContent-Length: 3",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Content-Length: 3\r\nContent-Length: 30",
    "Content-Length: 3, 30",
    "Content-Length: +3",
    "Content-Length: 0x3",
)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_request_in_a_request_is_not_smuggled(
    gateway: RunningGateway, engines: Engines, version: str
) -> None:
    attack = f"0\r\n\r\nPOST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nhidden"

    def ask(framing: str) -> raw_http.Reply:
        head = f"POST {PATH} HTTP/{version}\r\nHost: x\r\n{framing}\r\n\r\n"
        return send(gateway.settings.gateway.port, (head + attack).encode(), "POST")

    for framing, reply in at_once(ask, FRAMINGS):
        refusal = (reply.status, json.loads(reply.body)["error"]["code"])
        refusals = ((400, "bad_request"), (501, "transfer_encoding_unsupported"))
        assert refusal in refusals, framing
    assert not _bodies(engines)
    _assert_neighbours_are_right(gateway, engines)


def test_chunks_that_are_none_are_refused(gateway: RunningGateway, engines: Engines) -> None:
    for version in ("1.0", "1.1"):
        head = f"POST {PATH} HTTP/{version}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        for chunks in ("zz\r\nabc\r\n0\r\n\r\n", "-1\r\n\r\n"):
            reply = send(gateway.settings.gateway.port, (head + chunks).encode(), "POST")
            assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "bad_request")
    assert not _bodies(engines)
    _assert_neighbours_are_right(gateway, engines)


def _changed(*changes: tuple[bytes, bytes]) -> list[raw_http2.Header]:
    """The headers of a good POST, with other values."""
    return [(name, dict(changes).get(name, value)) for name, value in raw_http2.post(PATH, LENGTH)]


GOOD = raw_http2.post(PATH, LENGTH)
HIDDEN = b"\r\ncontent-length: 6\r\n\r\nhidden"
HTTP_2_HEADERS = {
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "upper-case-name": [*GOOD, (b"X-Upper", b"a")],
    "line-break-in-a-value": [*GOOD, (b"x", b"a" + HIDDEN)],
    "bare-line-feed-in-a-value": [*GOOD, (b"x", b"a\ntransfer-encoding: chunked")],
    "nul-in-a-value": [*GOOD, (b"x", b"a\0b")],
    "line-break-in-a-name": [*GOOD, (b"x" + HIDDEN, b"a")],
    "colon-in-a-name": [*GOOD, (b"x:transfer-encoding", b"chunked")],
    "space-in-a-name": [*GOOD, (b"transfer-encoding ", b"chunked")],
    "no-name": [*GOOD, (b"", b"a")],
    "line-break-in-the-path": _changed((b":path", b"/predictions/tagger HTTP/1.1" + HIDDEN)),
    "no-slash-in-the-path": _changed((b":path", b"predictions/tagger")),
    "empty-path": _changed((b":path", b"")),
    "line-break-in-the-method": _changed((b":method", b"POST / HTTP/1.1" + HIDDEN)),
    "line-break-in-the-authority": _changed((b":authority", b"a" + HIDDEN)),
    "no-path": [header for header in GOOD if header[0] != b":path"],
    "no-method": [header for header in GOOD if header[0] != b":method"],
    "path-twice": [(b":path", b"/health"), *GOOD],
    "method-twice": [(b":method", b"GET"), *GOOD],
    "unknown-pseudo-header": [(b":proto", b"a"), *GOOD],
    "pseudo-header-after-others": [*GOOD, (b":path", b"/health")],
    "status": [(b":status", b"200"), *GOOD],
    "length-twice": [*GOOD, (b"content-length", b"3")],
    "length-negative": _changed((b"content-length", b"-1")),
    "length-a-word": _changed((b"content-length", b"many")),
    "length-too-small": _changed((b"content-length", b"3")),
    "length-too-large": _changed((b"content-length", b"50001")),
    "200-headers": [*GOOD, *[(b"a", b"b")] * 200],
    "header-of-40-kb": [*GOOD, (b"a", b"b" * 40_000)],
}


def test_bad_headers_are_refused_over_http_2(gateway: RunningGateway, engines: Engines) -> None:
    def ask(name: str) -> raw_http2.Reply:
        request = raw_http2.headers(HTTP_2_HEADERS[name]) + raw_http2.data(BODY)
        return raw_http2.exchange(gateway.settings.gateway.port, request)

    for name, reply in at_once(ask, list(HTTP_2_HEADERS)):
        assert reply.refused or b'"error"' in reply.body, (name, reply)
    assert not _bodies(engines)
    _assert_neighbours_are_right(gateway, engines)


def _frames() -> dict[str, bytes]:
    head, body = raw_http2.headers(GOOD), raw_http2.data(BODY)
    cut = raw_http2.headers(GOOD)[:-5]
    return {
        "body-without-headers": body,
        "body-on-stream-0": head + raw_http2.data(BODY, stream=0),
        "even-stream": raw_http2.headers(GOOD, stream=2) + raw_http2.data(BODY, stream=2),
        "length-of-16-mb": b"\xff\xff\xff" + head[3:],
        "settings-on-a-stream": raw_http2.frame(raw_http2.SETTINGS, 0, 1) + head + body,
        "continuation-without-headers": raw_http2.frame(9, 4, 1, b"\0"),
        "another-frame-in-the-headers": raw_http2.frame(1, 0, 1, b"\x82") + body,
        "broken-compression": raw_http2.frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff") + body,
        "window-of-zero": head + raw_http2.frame(8, 0, 0, b"\0\0\0\0") + body,
        "window-overflow": head + raw_http2.frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2 + body,
        "http-1-after-the-preface": b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\n\r\n" + cut,
    }


def test_bad_frames_are_refused_over_http_2(gateway: RunningGateway, engines: Engines) -> None:
    frames = _frames()

    def ask(name: str) -> raw_http2.Reply:
        return raw_http2.exchange(gateway.settings.gateway.port, frames[name])

    for name, reply in at_once(ask, list(frames)):
        assert reply.refused, (name, reply)
    assert not _bodies(engines)
    _assert_neighbours_are_right(gateway, engines)
