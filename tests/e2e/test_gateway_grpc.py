"""gRPC calls of the Open Inference Protocol at the gateway's own port. Real Envoy, stand-in
engines, Triton's client."""

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as pb

from support import raw_http2
from support.fake_torchserve import FakeTorchServe, Reply
from support.grpc_calls import Calls, calls_to, image_request
from support.running_stack import RunningGateway, running_gateway, wait_until
from vlserve.control.domain import ModelRoute, Routing, Shadow
from vlserve.control.gateway.grpc_routes import MAX_CALL_BYTES

Engines = tuple[FakeTorchServe, FakeTorchServe]
MIB = 1 << 20
KEY = "the-key"
ANSWER = pb.ModelInferResponse(model_name="tagger", model_version="1", raw_output_contents=[b"x"])
HALVES = ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), "release-7", step="release-7/50")
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits half a second for an engine."""
    with running_gateway(tmp_path_factory.mktemp("hasty"), timeout_s=0.5) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def calls(hasty: RunningGateway) -> Iterator[Calls]:
    with calls_to(hasty.settings.gateway.port) as client:
        yield client


@pytest.fixture
def gateway(hasty: RunningGateway, engines: Engines) -> RunningGateway:
    for engine in engines:
        engine.message = ANSWER.SerializeToString()
    hasty.route(HALVES, to=list(engines))
    return hasty


def test_an_engine_gets_the_bare_message_and_the_client_the_engine_s(
    gateway: RunningGateway, calls: Calls, engines: Engines
) -> None:
    result = calls.infer("tagger", b"a picture", "1", x_request_id="bare", x_sticky_key="alice")
    assert (result.code, result.answer) == (StatusCode.OK, ANSWER)
    assert (result.headers["x-request-id"], result.headers["x-model-version"]) == ("bare", "1")
    (request,) = [request for engine in engines for request in engine.seen]
    assert request.path == "/predictions/tagger/1"
    assert pb.ModelInferRequest.FromString(request.body) == image_request(
        "tagger", b"a picture", "1"
    )
    assert request.headers["x-vlserve-content-type"] == "application/x-protobuf"
    assert request.headers["x-vlserve-path"] == "/v2/models/tagger/versions/1/infer"
    assert request.headers["content-length"] == str(len(request.body))
    assert not {"te", "x-vlserve-call", "x-sticky-key", "user-agent"} & request.headers.keys()
    line = gateway.access_line("bare")
    assert (line["path"], line["status"], line["version"]) == (INFER, 200, "1")
    assert (line["caller"], line["step"], line["tries"]) == ("alice", None, 1)


def test_a_caller_has_one_version_whatever_it_speaks(gateway: RunningGateway, calls: Calls) -> None:
    versions = {}
    for number in range(40):
        key = f"caller-{number}"
        plain = gateway.http.post(
            "/predictions/tagger", content=b"x", headers={"x-sticky-key": key}
        )
        result = calls.infer("tagger", x_sticky_key=key, x_request_id=key)
        assert result.headers["x-model-version"] == plain.headers["x-model-version"]
        versions[key] = result.headers["x-model-version"]
    assert set(versions.values()) == {"1", "2"}
    calls.infer("tagger", x_request_id="split")
    line = gateway.access_line("split")
    assert line["step"] == HALVES.step


def test_a_version_is_asked_for_by_header(gateway: RunningGateway, calls: Calls) -> None:
    for version in ("1", "2"):
        result = calls.infer("tagger", x_model_version=version)
        assert result.headers["x-model-version"] == version


def test_a_body_is_as_large_as_a_plain_one_may_be(
    gateway: RunningGateway, calls: Calls, engines: Engines
) -> None:
    limit = gateway.settings.gateway.max_body_bytes
    for size in (20 * MIB, limit - 200):
        result = calls.infer("tagger", bytes(size))
        assert result.code is StatusCode.OK, result.details
    sizes = [len(request.body) for engine in engines for request in engine.seen]
    assert min(sizes) > 20 * MIB
    result = calls.infer("tagger", bytes(limit), x_request_id="large")
    assert result.code is StatusCode.RESOURCE_EXHAUSTED
    assert result.details == f"body_too_large: the body is larger than {limit} bytes"
    assert gateway.access_line("large")["status"] == 413


def _is_late(engines: Engines) -> None:
    for engine in engines:
        engine.delay_s = 1.5


def _cuts(engines: Engines) -> None:
    for engine in engines:
        engine.replies.extend([Reply(0)] * 8)


def _loses_its_worker(engines: Engines) -> None:
    for engine in engines:
        engine.replies.extend([Reply(507)] * 8)


def _refuses(status: int, error: object) -> Callable[[Engines], None]:
    def refuse(engines: Engines) -> None:
        for engine in engines:
            engine.refusal = (status, {"error": error})

    return refuse


def _says_json(engines: Engines) -> None:
    for engine in engines:
        engine.message = None


QUOTED = {"code": "image_unreadable", "message": 'no "猫"\\\n100 %'}


@pytest.mark.parametrize(
    ("fault", "status", "code", "details"),
    [
        (_is_late, 504, StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded: no answer within 0.5 s"),
        (_cuts, 503, StatusCode.UNAVAILABLE, "engine_unavailable: no engine instance answers"),
        (
            _loses_its_worker,
            503,
            StatusCode.UNAVAILABLE,
            "engine_failed: the engine lost this request",
        ),
        (
            _refuses(400, QUOTED),
            400,
            StatusCode.INVALID_ARGUMENT,
            'image_unreadable: no "猫"\\\n100 %',
        ),
        (
            _refuses(422, "item 1: field_invalid: no text"),
            422,
            StatusCode.INVALID_ARGUMENT,
            "item 1: field_invalid: no text",
        ),
        (_refuses(413, "x"), 413, StatusCode.RESOURCE_EXHAUSTED, "x"),
        (_refuses(415, "x"), 415, StatusCode.INVALID_ARGUMENT, "x"),
        (_refuses(500, "x"), 500, StatusCode.INTERNAL, "x"),
        (
            _says_json,
            500,
            StatusCode.INTERNAL,
            "engine_failed: the answer is no message of the protocol",
        ),
    ],
)
def test_a_fault_has_grpc_s_code_and_http_s_status_in_the_log(
    gateway: RunningGateway,
    calls: Calls,
    engines: Engines,
    fault: Callable[[Engines], None],
    status: int,
    code: StatusCode,
    details: str,
) -> None:
    fault(engines)
    request_id = str(uuid4())
    result = calls.infer("tagger", x_request_id=request_id)
    assert (result.code, result.details) == (code, details)
    line = gateway.access_line(request_id)
    assert (line["status"], line["step"]) == (status, HALVES.step)
    assert line["version"] in ("1", "2")


def test_what_one_instance_loses_the_other_answers(
    gateway: RunningGateway, calls: Calls, engines: Engines
) -> None:
    for reply in (Reply(0), Reply(507)):
        engines[0].replies.append(reply)
        engines[1].replies.append(reply)
        result = calls.infer("tagger", b"x" * MIB, x_request_id=f"again-{reply.status}")
        assert result.answer == ANSWER, result.details
        assert gateway.access_line(f"again-{reply.status}")["tries"] in (2, 3)
        for engine in engines:
            engine.replies.clear()


def test_a_model_without_an_instance_is_unavailable(hasty: RunningGateway, calls: Calls) -> None:
    hasty.gateway.apply(Routing([HALVES], []))
    result = calls.infer("tagger", x_request_id="nobody")
    assert result.code is StatusCode.UNAVAILABLE
    assert result.details == "engine_unavailable: no engine instance answers"
    assert {**result.headers, **result.trailers}["retry-after"] == "1"
    assert hasty.access_line("nobody")["status"] == 503


@pytest.mark.parametrize(
    ("model", "version", "code"),
    [
        ("tagger", "3", "version_not_found"),
        ("tagger", "1/infer", "model_not_found"),
        ("other", "", "model_not_found"),
        ("..", "", "model_not_found"),
        ("tagger/versions/1/infer?", "", "model_not_found"),
        ("", "", "model_not_found"),
        ("猫", "", "model_not_found"),
    ],
)
def test_what_is_not_served_is_not_found(
    gateway: RunningGateway, calls: Calls, model: str, version: str, code: str
) -> None:
    result = calls.infer(model, version=version)
    assert (result.code, result.details.partition(":")[0]) == (StatusCode.NOT_FOUND, code)


def test_small_calls_are_answered_without_an_engine(hasty: RunningGateway, calls: Calls) -> None:
    hasty.gateway.apply(Routing([HALVES, ModelRoute("next", {}, (4,))], []))
    assert calls.call("ServerLive").answer.live
    assert calls.call("ServerReady").answer.ready
    for name, version, ready in (
        *(("tagger", "", True), ("tagger", "1", True), ("tagger", "3", False)),
        *(("next", "", False), ("next", "4", True), ("other", "", False)),
    ):
        result = calls.call("ModelReady", pb.ModelReadyRequest(name=name, version=version))
        expected = StatusCode.OK if ready else StatusCode.NOT_FOUND
        assert result.code is expected, (name, version, result.details)
        assert not ready or result.answer.ready
    large = pb.ModelReadyRequest(name="x" * MAX_CALL_BYTES)
    assert calls.call("ModelReady", large).code is StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelConfig", "RepositoryIndex"])
def test_other_calls_are_not_implemented(
    gateway: RunningGateway, calls: Calls, method: str
) -> None:
    result = calls.call_path(f"/inference.GRPCInferenceService/{method}")
    assert result.code is StatusCode.UNIMPLEMENTED
    assert "ModelInfer" in result.details


def test_torchserve_s_calls_name_what_does_the_job(gateway: RunningGateway, calls: Calls) -> None:
    result = calls.call_path("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
    assert result.code is StatusCode.UNIMPLEMENTED
    assert "POST /predictions/{model}" in result.details
    result = calls.call_path(
        "/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel"
    )
    assert result.code is StatusCode.UNIMPLEMENTED
    assert "vlserve register" in result.details


def test_a_shadow_gets_a_copy(gateway: RunningGateway, calls: Calls, engines: Engines) -> None:
    route = ModelRoute("tagger", {1: 100}, (1, 2), step="7/shadow", shadow=Shadow(2, 100))
    gateway.route(route, to=list(engines))
    result = calls.infer("tagger", b"a picture", x_request_id="copied")
    assert result.headers["x-model-version"] == "1"

    def bodies() -> dict[str, bytes]:
        return {each.path: each.body for engine in engines for each in engine.seen}

    wait_until(lambda: len(bodies()) == 2)
    message = image_request("tagger", b"a picture").SerializeToString()
    assert bodies() == {"/predictions/tagger/1": message, "/predictions/tagger/2": message}


def test_keys_and_rates_hold(tmp_path_factory: pytest.TempPathFactory, engines: Engines) -> None:
    engines[0].message = ANSWER.SerializeToString()
    folder = tmp_path_factory.mktemp("keys")
    with (
        running_gateway(folder, timeout_s=5.0, api_keys=(KEY,), rate_limit_per_s=4) as gateway,
        calls_to(gateway.settings.gateway.port) as calls,
    ):
        gateway.route(HALVES, to=[engines[0]])
        result = calls.infer("tagger", x_request_id="no-key")
        assert result.code is StatusCode.UNAUTHENTICATED
        assert result.details.startswith("unauthorized: send a valid key")
        assert gateway.access_line("no-key")["status"] == 401
        assert calls.call("ModelReady").code is StatusCode.UNAUTHENTICATED
        assert calls.call("ServerReady").answer.ready  # as /health, open to all
        assert calls.infer("tagger", x_api_key=KEY).code is StatusCode.OK

        def is_refused() -> bool:
            result = calls.infer("tagger", x_api_key=KEY, x_request_id="fast")
            return result.code is StatusCode.RESOURCE_EXHAUSTED and "rate_limited" in result.details

        wait_until(is_refused)
        assert calls.call("ServerLive").answer.live


def _frame(message: bytes, compressed: int = 0, length: int | None = None) -> bytes:
    size = len(message) if length is None else length
    return bytes([compressed]) + size.to_bytes(4, "big") + message


MESSAGE = image_request("tagger", b"x").SerializeToString()
BAD_BODIES = {
    "empty": b"",
    "half-a-frame": b"\0\0",
    "compressed": _frame(MESSAGE, compressed=1),
    "cut-short": _frame(MESSAGE, length=len(MESSAGE) + 1),
    "two-messages": _frame(MESSAGE) * 2,
    "endless-length": _frame(MESSAGE, length=2**32 - 1),
    "no-message": _frame(b"\xff" * 40),
    "endless-number": _frame(b"\x0a" + b"\xff" * 9 + b"\x7f"),
    "longer-than-the-body": _frame(b"\x0a\x7fabc"),
    "a-group": _frame(b"\x0b\x0c"),
    "many-fields": _frame(b"\x98\x06\x00" * 5000),
    "long-name": _frame(b"\x0a\x90\x4e" + b"x" * 10_000),
}


def test_what_is_no_call_reaches_no_engine(gateway: RunningGateway, engines: Engines) -> None:
    port = gateway.settings.gateway.port
    common_fields = [
        *raw_http2.post(INFER),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
    for name, body in BAD_BODIES.items():
        fields = [*common_fields, (b"x-request-id", name.encode())]
        reply = raw_http2.exchange(port, raw_http2.headers(fields) + raw_http2.data(body))
        assert (reply.ended, reply.refused, reply.body) == (True, False, b""), name
        expected = 501 if name == "compressed" else 400
        assert gateway.access_line(name)["status"] == expected, name
    assert not any(engine.seen for engine in engines)


def test_a_name_behind_the_data_counts(
    gateway: RunningGateway, calls: Calls, engines: Engines
) -> None:
    """Protobuf's fields come in any order, and of two values the last one counts."""
    rest = pb.ModelInferRequest(raw_input_contents=[b"x" * MIB]).SerializeToString()
    names = pb.ModelInferRequest(model_name="tagger", model_version="2").SerializeToString()
    result = calls.call_path(INFER, b"\x0a\x05other" + rest + names)
    assert result.code is StatusCode.OK, result.details
    assert result.headers["x-model-version"] == "2"


def test_what_is_no_grpc_is_not_found(gateway: RunningGateway) -> None:
    for content_type in ("application/json", "application/grpc-web", "application/x-protobuf"):
        for path in (INFER, "/inference.GRPCInferenceService/ServerLive"):
            reply = gateway.http.post(path, content=b"x", headers={"content-type": content_type})
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = gateway.http.post(
        "/inference.GRPCInferenceService/ServerLive", headers={"x-vlserve-call": "1"}
    )
    assert reply.status_code == 404
