"""What the gateway lets in: keys, rates, sizes, and odd or hostile HTTP. Real Envoy."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe
from support.raw_http import at_once
from support.running_stack import RunningGateway, running_gateway, wait_until
from vlserve.control.domain import ModelRoute
from vlserve.stack import containers

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
LIMIT = 3_000_000


@pytest.fixture(scope="module")
def strict_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with keys and a body limit of 3 MB."""
    keys = ("first-key", 'odd "key" with {braces}')
    folder = tmp_path_factory.mktemp("guarded")
    with running_gateway(folder, api_keys=keys, max_body_bytes=LIMIT) as gateway:
        yield gateway


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    envoy.route(TAGGER, to=list(engines))
    return envoy


def _error(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["message"]
    return response.status_code, response.json()["error"]["code"]


def test_keys_are_asked_for_and_stay_at_the_gateway(
    strict_gateway: RunningGateway, engines: Engines
) -> None:
    strict_gateway.route(TAGGER, to=list(engines))
    path = "/predictions/tagger"
    for key in strict_gateway.settings.gateway.api_keys:
        assert strict_gateway.http.post(path, headers={"X-Api-Key": key}).status_code == 200
    assert "x-api-key" not in [
        name for e in engines for request in e.seen for name in request.headers
    ]
    for headers in ({}, {"X-Api-Key": "wrong"}, {"X-Api-Key": ""}, {"Authorization": "first-key"}):
        assert _error(strict_gateway.http.post(path, headers=headers)) == (401, "unauthorized")
    assert _error(strict_gateway.http.post("/predictions/none")) == (401, "unauthorized")
    assert _error(strict_gateway.http.get("/")) == (401, "unauthorized")
    first, wrong = ("X-Api-Key", "first-key"), ("X-Api-Key", "wrong")
    forgeries = (
        [("X-Api-Key", "first-key,wrong")],
        [("X-Api-Key", "FIRST-KEY")],
        [("X-Api-Key", "first-key2")],
        [("X-Api-Key", "first")],
        [("X-Api_Key", "first-key")],
        [("X-Vlserve-Api-Key", "first-key")],
        [wrong, wrong],
        [wrong, ("X-Envoy-Original-Path", "/health")],
        [("X-Original-Url", "/health"), ("X-Forwarded-For", "127.0.0.1")],
    )
    for forgery in forgeries:
        response = strict_gateway.http.post(path, headers=forgery)
        assert _error(response) == (401, "unauthorized"), forgery
    assert strict_gateway.http.post(path, headers=[first]).status_code == 200
    for trick in (
        "/health/../predictions/tagger",
        "/health;/predictions/tagger",
        "//predictions/tagger",
    ):
        assert _error(strict_gateway.http.post(trick)) == (401, "unauthorized")


def test_what_no_version_answered_names_none(
    strict_gateway: RunningGateway, engines: Engines
) -> None:
    strict_gateway.route(TAGGER, to=list(engines))
    path, key = "/predictions/tagger", {"X-Api-Key": "first-key"}
    refusals = [
        strict_gateway.http.post(path),
        strict_gateway.http.post(f"{path}/1"),
        strict_gateway.http.post(path, headers=key, content=b"x" * (LIMIT + 1)),
        strict_gateway.http.post(f"{path}?a=%", headers=key),
        strict_gateway.http.post(f"{path}/2", headers=key),
    ]
    assert [response.status_code for response in refusals] == [401, 401, 413, 400, 404]
    assert not any("x-model-version" in response.headers for response in refusals)
    assert strict_gateway.http.post(path, headers=key).headers["x-model-version"] == "1"
    assert strict_gateway.http.get("/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413(
    strict_gateway: RunningGateway, engines: Engines, chunked: bool
) -> None:
    strict_gateway.route(TAGGER, to=list(engines))
    key = {"X-Api-Key": "first-key"}

    def post(size: int) -> httpx.Response:
        pieces = (b"x" * 1_000_000 for _ in range(size // 1_000_000))
        content = pieces if chunked else b"x" * size
        return strict_gateway.http.post("/predictions/tagger", content=content, headers=key)

    assert _error(post(LIMIT + 1_000_000)) == (413, "body_too_large")
    assert not any(engine.seen for engine in engines)
    assert post(LIMIT).status_code == 200
    assert [len(request.body) for e in engines for request in e.seen] == [LIMIT]


def test_a_rate_over_the_limit_is_a_429(
    tmp_path_factory: pytest.TempPathFactory, engines: Engines
) -> None:
    with running_gateway(tmp_path_factory.mktemp("rate"), rate_limit_per_s=5) as gateway:
        gateway.route(TAGGER, to=list(engines))
        responses = [gateway.http.post("/predictions/tagger") for _ in range(50)]
        assert gateway.http.get("/health").status_code == 200
    refusals = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert _error(refusals[0]) == (429, "rate_limited")
    assert refusals[0].headers["retry-after"] == "1"
    assert "x-model-version" not in refusals[0].headers


BAD_HTTP = [
    (b"POST /predictions%2Ftagger HTTP/1.1\r\nHost: x\r\n", 400, "bad_request"),
    (b"POST /predictions/tagger HTTP/1.1\r\n", 400, "bad_request"),  # no Host
    (b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nA b: c\r\n", 400, "bad_request"),
    (b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n", 400, "bad_request"),
    (
        b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\n"
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        400,
        "bad_request",
    ),
    (
        b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 40_000 + b"\r\n",
        431,
        "headers_too_large",
    ),
    (
        b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 150,
        431,
        "headers_too_large",
    ),
]


def test_bad_http_is_refused_in_the_common_shape(gateway: RunningGateway, engines: Engines) -> None:
    for case, raw in at_once(lambda case: _exchange(gateway, case[0]), BAD_HTTP):
        _, status, code = case
        head, _, body = raw.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status, (case, raw)
        assert f'"{code}"'.encode() in body, (case, raw)
        assert b"application/json" in head
    assert not any(engine.seen for engine in engines)


def test_bytes_that_are_no_text_in_headers_reach_no_engine(
    gateway: RunningGateway, engines: Engines
) -> None:
    odd = [(b"X-Title", "可爱的猫咪".encode()), (b"User-Agent", b"\xff\xfe"), (b"Cookie", b"\x80")]
    response = gateway.http.post("/predictions/tagger", content=b"x", headers=odd)
    assert response.status_code == 200
    (request,) = [request for engine in engines for request in engine.seen]
    assert all(value.isascii() for value in request.headers.values())


def test_bytes_that_are_no_text_in_a_path_are_refused(gateway: RunningGateway) -> None:
    raw = _exchange(gateway, b"POST /predictions/\xff\xfe HTTP/1.1\r\nHost: x\r\n")
    assert raw.split()[1] in (b"400", b"404"), raw
    assert b'"error"' in raw


def _exchange(gateway: RunningGateway, request_head: bytes) -> bytes:
    """What the gateway says until it closes the connection."""
    address = ("127.0.0.1", gateway.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request_head + b"Connection: close\r\n\r\n")
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
    return reply


def test_a_drain_finishes_what_runs_and_takes_nothing_new(
    tmp_path_factory: pytest.TempPathFactory, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "OPEN_S", 0.5)
    with running_gateway(tmp_path_factory.mktemp("drain")) as gateway:
        gateway.route(TAGGER, to=list(engines))
        for engine in engines:
            engine.delay_s = 0.5
        refusal = threading.Event()
        statuses: list[int] = []

        def call(_: int) -> None:
            with httpx.Client(base_url=gateway.settings.gateway_url, trust_env=False) as http:
                while not refusal.is_set():
                    try:
                        statuses.append(http.post("/predictions/tagger").status_code)
                    except httpx.ConnectError:
                        refusal.set()

        with ThreadPoolExecutor(8) as pool, ExitStack() as callers:
            callers.callback(refusal.set)
            calls = pool.map(call, range(8))
            wait_until(lambda: len(statuses) >= 8)
            assert containers.drain(gateway.settings)
            wait_until(refusal.is_set)
            list(calls)
        assert set(statuses) == {200}


def test_a_large_access_log_makes_way_for_a_new_one(
    envoy: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = envoy.access_log()

    def ask(name: str) -> None:
        envoy.http.get("/health", headers={"x-request-id": name})
        wait_until(lambda: log.exists() and name in log.read_text(encoding="utf-8"))

    ask("before")
    envoy.gateway.rotate_access_log()
    ask("not-large-yet")
    monkeypatch.setattr("vlserve.control.gateway.envoy.LOG_BYTES", 1)
    for number in range(7):
        ask(f"round-{number}")
        envoy.gateway.rotate_access_log()
    ask("after")
    names = sorted(path.name for path in log.parent.glob("access.jsonl*"))
    assert names == ["access.jsonl", *(f"access.jsonl.{n}" for n in (1, 2, 3, 4, 5))]
    for age in range(1, 6):
        assert f"round-{7 - age}" in log.with_name(f"access.jsonl.{age}").read_text(
            encoding="utf-8"
        )
