"""Between the gateway and its engines: tokens, headers, what engines say, retries. Real Envoy."""

import json
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.running_stack import RunningGateway, gateway_admin, running_gateway, wait_until
from vlserve.control.domain import ModelRoute, Routing
from vlserve.control.gateway.log_lines import AccessLine, read_access_line
from vlserve.control.rollouts.log_evidence import Pair, outcome

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
LOST = Reply(507)


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    envoy.route(TAGGER, to=list(engines))
    return envoy


def _post(gateway: RunningGateway, body: bytes = b"x", **headers: str) -> httpx.Response:
    return gateway.http.post("/predictions/tagger", content=body, headers=headers)


def test_each_instance_gets_its_own_token(gateway: RunningGateway, engines: Engines) -> None:
    answers = [_post(gateway, authorization="Bearer token-of-0").json() for _ in range(40)]
    assert {answer["engine"] for answer in answers} == {"engine-0", "engine-1"}


def test_a_retry_elsewhere_carries_that_instances_token(
    gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].replies.extend([LOST] * 100)
    answers = [_post(gateway).json() for _ in range(20)]
    assert {answer["engine"] for answer in answers} == {"engine-1"}
    assert engines[0].seen


def test_a_new_token_takes_effect_and_an_old_one_is_retried_elsewhere(
    gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].token = "token-after-a-restart"
    assert {_post(gateway).status_code for _ in range(20)} == {200}
    gateway.route(TAGGER, to=list(engines))
    engines[0].seen.clear()
    answers = [_post(gateway).json() for _ in range(40)]
    assert {answer["engine"] for answer in answers} == {"engine-0", "engine-1"}


def test_engines_see_none_of_the_clients_headers_but_what_they_need(
    gateway: RunningGateway, engines: Engines
) -> None:
    headers = {
        "Authorization": "Bearer stolen",
        "X-Api-Key": "key",
        "X-Envoy-Max-Retries": "50",
        "X-Envoy-Upstream-Rq-Timeout-Ms": "1",
        "X-Envoy-Original-Path": "/models",
        "X-Vlserve-Version": "9",
        "X-Vlserve-Retries": "50",
        "X-Vlserve-Sent-Request-Id": "spoofed",
        "X-Forwarded-For": "1.2.3.4",
        "X-Model-Version": "1",
        "X-Sticky-Key": "caller",
        "Cookie": "a=b",
        "explain": "True",
        "ts_request_sequence_id": "1",
        "Content-Type": "application/json",
    }
    response = _post(gateway, b"{}", **headers)
    assert response.status_code == 200
    assert response.headers["x-model-version"] == "1"
    assert response.headers["x-request-id"] != "spoofed"
    assert not [name for name in response.headers if name.startswith(("x-envoy", "x-vlserve"))]
    (request,) = [request for engine in engines for request in engine.seen]
    assert set(request.headers) == {
        "host", "content-type", "content-length", "x-request-id", "authorization",
        "x-vlserve-content-type", "x-vlserve-path",
    }  # fmt: skip
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["x-vlserve-content-type"] == "application/json"
    assert request.headers["host"] == "engine"
    assert request.headers["authorization"] in ("Bearer token-of-0", "Bearer token-of-1")


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        (
            {"content-type": "application/json", "content-encoding": "gzip"},
            {
                "x-vlserve-content-type": "application/json",
                "x-vlserve-content-encoding": "gzip",
            },
        ),
        ({"content-type": "", "content-encoding": ""}, {}),
        ({"x-vlserve-content-type": "a/b", "x-vlserve-content-encoding": "br"}, {}),
    ],
)
def test_workers_are_told_how_a_client_wrapped_a_body_at_each_try(
    envoy: RunningGateway,
    engines: Engines,
    headers: dict[str, str],
    expected: dict[str, str],
    tries: int,
) -> None:
    envoy.route(TAGGER, to=[engines[0]])
    engines[0].replies.extend([LOST] * (tries - 1))
    assert _post(envoy, **headers).status_code == 200
    assert len(engines[0].seen) == tries
    for request in engines[0].seen:
        ours = {name: v for name, v in request.headers.items() if name.startswith("x-vlserve-")}
        assert ours.pop("x-vlserve-path").startswith("/predictions/")
        assert ours == expected
        assert "content-encoding" not in request.headers
        assert request.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("request_id", ["abc-123", "4bf92f35.77b3:4da6_a3ce", "x" * 128])
def test_a_sane_request_id_is_kept(
    gateway: RunningGateway, engines: Engines, request_id: str
) -> None:
    response = _post(gateway, **{"X-Request-Id": request_id})
    assert response.headers.get_list("x-request-id") == [request_id]
    assert [request.headers["x-request-id"] for e in engines for request in e.seen] == [request_id]


@pytest.mark.parametrize(
    "bad_id", [b"", b"x" * 129, b"two words", b'{"json":1}', b"caf\xe9", b"\xff\xfe", b"a\tb"]
)
def test_another_request_id_is_made_anew(
    gateway: RunningGateway, engines: Engines, bad_id: bytes
) -> None:
    response = gateway.http.post(
        "/predictions/tagger", content=b"x", headers={b"X-Request-Id": bad_id}
    )
    (new_id,) = response.headers.get_list("x-request-id")
    assert len(new_id) == 36 and new_id.encode() != bad_id
    assert [request.headers["x-request-id"] for e in engines for request in e.seen] == [new_id]


def test_refusals_carry_the_request_id_too(gateway: RunningGateway) -> None:
    response = gateway.http.post("/predictions/none", headers={"X-Request-Id": "abc"})
    assert (response.status_code, response.headers["x-request-id"]) == (404, "abc")


@pytest.mark.parametrize(
    ("reply", "status", "code", "tries"),
    [
        (Reply(500, "ErrorDataDecoderException", 'odd "quoted" words'), 503, "engine_failed", 4),
        (Reply(400, "BadRequestException"), 503, "engine_failed", 4),
        (Reply(500, "StringIndexOutOfBoundsException"), 503, "engine_failed", 4),
        (Reply(403, "UnsupportedCharsetException"), 503, "engine_failed", 4),
        (Reply(500, "OutOfMemoryError"), 503, "engine_failed", 4),
        (Reply(503, "ServiceUnavailableException"), 503, "overloaded", 4),
        (Reply(404, "ModelVersionNotFoundException"), 503, "version_unavailable", 4),
        (Reply(404, "ModelNotFoundException"), 503, "version_unavailable", 4),
        (Reply(400, "InvalidKeyException"), 503, "version_unavailable", 4),
        (Reply(500, "InternalServerException"), 503, "engine_failed", 4),
        (Reply(507, "InternalServerException"), 503, "engine_failed", 4),
        (Reply(503, "InternalServerException", "Prediction failed"), 503, "engine_failed", 4),
        (Reply(0), 503, "engine_unavailable", 4),
    ],
)
def test_what_torchserve_says_becomes_the_common_shape(
    gateway: RunningGateway, engines: Engines, reply: Reply, status: int, code: str, tries: int
) -> None:
    for engine in engines:
        engine.replies.extend([reply] * 10)
    response = _post(gateway)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["message"]
    assert response.headers["content-type"] == "application/json"
    assert ("retry-after" in response.headers) == (status == 503)
    assert sum(len(engine.seen) for engine in engines) == tries


def test_a_handlers_own_error_passes_as_it_is(gateway: RunningGateway, engines: Engines) -> None:
    for engine in engines:
        engine.refusal = (422, {"error": {"code": "field_invalid", "message": "no image"}})
    response = _post(gateway)
    assert response.status_code == 422
    assert response.json() == {"error": {"code": "field_invalid", "message": "no image"}}
    assert sum(len(engine.seen) for engine in engines) == 1


@pytest.mark.parametrize("reply", [LOST, Reply(0), Reply(503, "ServiceUnavailableException")])
def test_a_single_instance_is_tried_again(
    envoy: RunningGateway, engines: Engines, reply: Reply
) -> None:
    envoy.route(TAGGER, to=[engines[0]])
    engines[0].replies.extend([reply] * 2)
    assert _post(envoy).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"x-vlserve-retries": "9", "x-envoy-attempt-count": "1"}])
def test_a_triton_beside_it_gives_torchserve_no_more_tries(
    envoy: RunningGateway, engines: Engines, headers: dict[str, str]
) -> None:
    triton = replace(engines[1].instance(), engine="triton", lacks=frozenset({("tagger", 1)}))
    envoy.gateway.apply(Routing([TAGGER], [engines[0].instance(), triton]))
    engines[0].replies.extend([LOST] * 20)
    response = _post(envoy, **headers)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")
    assert len(engines[0].seen) == envoy.settings.gateway.retries + 1
    assert not engines[1].seen


def test_a_large_body_is_tried_again_whole(gateway: RunningGateway, engines: Engines) -> None:
    body = bytes(range(256)) * 4 * 5000  # 5 MB, over Envoy's own buffer of 1 MiB
    engines[0].replies.append(LOST)
    engines[1].replies.append(LOST)
    assert _post(gateway, body).status_code == 200
    assert [request.body == body for e in engines for request in e.seen] == [True] * 3


def test_retries_do_not_multiply_an_overload(envoy: RunningGateway, engines: Engines) -> None:
    """Every instance refuses everything, while more requests wait than the budget has retries."""
    settings = envoy.settings.engine
    budget = 2 * settings.workers * settings.batch_size
    envoy.route(TAGGER, to=list(engines))
    for engine in engines:
        engine.replies.extend([Reply(503, "ServiceUnavailableException")] * 2000)
        engine.delay_s = 0.2
    clients = 4 * budget
    with ThreadPoolExecutor(clients) as pool:
        statuses = list(pool.map(lambda _: _post(envoy).status_code, range(clients)))
    assert set(statuses) == {503}
    assert sum(len(engine.seen) for engine in engines) < 3 * clients


def test_a_version_goes_to_the_instances_that_hold_it(
    envoy: RunningGateway, engines: Engines
) -> None:
    bare = engines[0].instance(lacks=frozenset({("tagger", 1)}))
    envoy.gateway.apply(Routing([TAGGER], [bare, engines[1].instance()]))
    assert {_post(envoy).json()["engine"] for _ in range(20)} == {"engine-1"}
    envoy.gateway.apply(Routing([TAGGER], [bare]))
    response = _post(envoy)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "version_unavailable")
    assert "no engine instance has this version loaded" in response.json()["error"]["message"]
    assert response.headers["retry-after"] == "1"


def test_no_instance_is_a_503(envoy: RunningGateway, engines: Engines) -> None:
    envoy.gateway.apply(Routing([TAGGER], []))
    response = _post(envoy)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_a_late_answer_is_a_504(tmp_path_factory: pytest.TempPathFactory, engines: Engines) -> None:
    with running_gateway(tmp_path_factory.mktemp("late"), timeout_s=0.3) as gateway:
        gateway.route(TAGGER, to=list(engines))
        for engine in engines:
            engine.delay_s = 1.0
        response = _post(gateway)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-model-version"] == "1"


def test_the_access_log_tells_each_request_and_no_body(
    gateway: RunningGateway, engines: Engines
) -> None:
    engines[0].replies.append(LOST)
    engines[1].replies.append(LOST)
    _post(gateway, b"secret-body", **{"X-Request-Id": "logged-1"})
    gateway.http.post("/predictions/none?key=secret-query", headers={"X-Request-Id": "logged-2"})
    wait_until(lambda: "logged-2" in gateway.access_log().read_text(encoding="utf-8"), timeout_s=15)
    text = gateway.access_log().read_text(encoding="utf-8")
    assert "secret" not in text
    lines = {line["request_id"]: line for line in map(json.loads, text.splitlines())}
    answer, refusal = lines["logged-1"], lines["logged-2"]
    assert (answer["model"], answer["version"], answer["status"]) == ("tagger", "1", 200)
    assert (answer["method"], answer["path"]) == ("POST", "/predictions/tagger")
    assert (answer["tries"], answer["bytes_in"]) == (3, 11)
    assert answer["duration_ms"] >= answer["upstream_ms"] >= 0
    assert answer["duration_ms"] >= answer["received_ms"] >= 0
    assert (refusal["model"], refusal["status"], refusal["path"]) == (
        None, 404, "/predictions/none",
    )  # fmt: skip


def _sent_in_part(gateway: RunningGateway, request_id: str) -> socket.socket:
    """A connection on which half of a body was sent."""
    connection = socket.create_connection(("127.0.0.1", gateway.settings.gateway.port), timeout=30)
    head = f"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\n"
    connection.sendall(f"{head}Content-Length: 2\r\n\r\nx".encode())
    return connection


def _logged(gateway: RunningGateway, request_id: str) -> AccessLine:
    def text() -> str:
        return gateway.access_log().read_text(encoding="utf-8")

    wait_until(lambda: request_id in text(), timeout_s=15)
    lines = (read_access_line(json.loads(line)) for line in text().splitlines())
    return next(line for line in lines if line.request_id == request_id)


class NoAnswers:
    """A log of answers that has none."""

    def of(self, request_id: str, version: int) -> None:
        return None

    def items_of(self, request_id: str) -> Sequence[str]:
        return ()


def test_a_release_is_not_judged_by_how_slowly_its_callers_send(
    gateway: RunningGateway, engines: Engines
) -> None:
    with _sent_in_part(gateway, "sent-slowly") as connection:
        time.sleep(0.5)
        connection.sendall(b"x")
        assert b" 200 " in connection.recv(4096)
    line = _logged(gateway, "sent-slowly")
    assert line.duration_ms is not None and line.received_ms is not None
    assert line.duration_ms >= line.received_ms >= 500
    result = outcome(line, Pair(candidate=1, stable=9), NoAnswers())
    assert result is not None
    assert (result.failed, result.latency_ms) == (False, line.duration_ms - line.received_ms)


def test_nor_by_callers_who_leave(gateway: RunningGateway, engines: Engines) -> None:
    with _sent_in_part(gateway, "left-before-the-end"):
        wait_until(gateway.active)
    for engine in engines:
        engine.held.set()
    with _sent_in_part(gateway, "left-before-the-answer") as connection:
        connection.sendall(b"x")
        wait_until(lambda: engines[0].seen or engines[1].seen)
    for engine in engines:
        engine.held.clear()
    versions = Pair(candidate=1, stable=9)
    early = outcome(_logged(gateway, "left-before-the-end"), versions, NoAnswers())
    assert early is not None and (early.failed, early.refused) == (False, True)
    late = _logged(gateway, "left-before-the-answer")
    assert (late.status, late.flags, bool(late.upstream)) == (0, "DC", True)
    result = outcome(late, versions, NoAnswers())
    assert result is not None and not result.refused


def test_the_access_log_can_be_rotated(gateway: RunningGateway, engines: Engines) -> None:
    log = gateway.access_log()
    log.rename(log.with_suffix(".1"))
    with gateway_admin(gateway.settings) as admin:
        admin.reopen_logs()
    _post(gateway, **{"X-Request-Id": "after-rotation"})
    wait_until(
        lambda: log.exists() and "after-rotation" in log.read_text(encoding="utf-8"), timeout_s=15
    )
