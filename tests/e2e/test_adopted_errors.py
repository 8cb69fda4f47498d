"""Errors on paths of adopted versions, on a real Envoy: TorchServe's three names beside ours."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.running_stack import RunningGateway, running_gateway
from support.version_records import adopted_manifest
from vlserve.control.domain import ModelRoute
from vlserve.runtime import headers

Engines = tuple[FakeTorchServe, FakeTorchServe]
KEY = "a-key"
MAX_BODY_BYTES = 10_000
MANIFEST = adopted_manifest("BERT")
ADOPTED = ModelRoute("bert", {1: 100}, (1,), manifests={1: MANIFEST})
UNRELEASED = ModelRoute("fresh", {}, (1,), manifests={1: MANIFEST})
NATIVE = ModelRoute("tagger", {1: 100}, (1,))
ASKED = "/predictions/bert"


@pytest.fixture(scope="module")
def strict_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One that asks for a key, takes small bodies and waits a second."""
    limits = {"api_keys": (KEY,), "max_body_bytes": MAX_BODY_BYTES, "timeout_s": 1.0}
    with running_gateway(tmp_path_factory.mktemp("adopted-errors"), **limits) as gateway:
        gateway.http.headers[headers.API_KEY] = KEY
        yield gateway


@pytest.fixture
def gateway(strict_gateway: RunningGateway, engines: Engines) -> RunningGateway:
    strict_gateway.route(ADOPTED, UNRELEASED, NATIVE, to=list(engines))
    return strict_gateway


def _error(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, TorchServe's class and our code, once the two say the same."""
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert list(body)[:4] == ["code", "type", "message", "error"]
    assert body["code"] == answer.status_code
    assert body["message"] == body["error"]["message"]
    return answer.status_code, body["type"], body["error"]["code"]


BAD, BROKEN = "BadRequestException", "InternalServerException"
NO_VERSION = (404, "ModelVersionNotFoundException", "version_not_found")
REFUSED = {
    "version": ("POST", f"{ASKED}/9", NO_VERSION),
    "former name": ("POST", "/predictions/BERT/9", NO_VERSION),
    "unreleased": ("POST", "/predictions/fresh", NO_VERSION),
    "method": ("DELETE", ASKED, (405, "MethodNotAllowedException", "method_not_allowed")),
    "explanation": (
        "POST",
        "/explanations/fresh",
        (404, "ModelVersionNotFoundException", "version_not_found"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_gateway_refuses_in_torchserves_words_too(gateway: RunningGateway, case: str) -> None:
    method, path, expected = REFUSED[case]
    assert _error(gateway.http.request(method, path)) == expected


@pytest.mark.parametrize("name", ["bert", "BERT"])
def test_keys_and_limits_are_told_so(gateway: RunningGateway, name: str) -> None:
    path, large = f"/predictions/{name}", b"x" * (MAX_BODY_BYTES + 1)

    def in_pieces() -> Iterator[bytes]:
        yield from (large[at : at + 1000] for at in range(0, len(large), 1000))

    wrong_key = {headers.API_KEY: "guessed"}
    refusal = gateway.http.post(path, content=b"x", headers=wrong_key)
    assert _error(refusal) == (401, "InvalidKeyException", "unauthorized")
    assert _error(gateway.http.post(path, content=large)) == (413, BAD, "body_too_large")
    assert _error(gateway.http.post(path, content=in_pieces())) == (413, BAD, "body_too_large")


def test_an_engine_that_is_late_busy_or_gone_is_told_so(
    gateway: RunningGateway, engines: Engines
) -> None:
    unavailable = "ServiceUnavailableException"
    for engine in engines:
        engine.replies.extend([Reply(503, "ServiceUnavailableException", "busy")] * 20)
    assert _error(gateway.http.post(ASKED)) == (503, unavailable, "overloaded")
    for engine in engines:
        engine.replies.clear()
        engine.held.set()
    assert _error(gateway.http.post(ASKED)) == (504, BROKEN, "deadline_exceeded")
    gateway.route(ADOPTED, to=[])
    status, kind, _ = _error(gateway.http.post(ASKED))
    assert (status, kind) == (503, unavailable)


def test_what_a_worker_refuses_is_told_so_and_keeps_its_request_id(
    gateway: RunningGateway, engines: Engines
) -> None:
    error = {"code": "request_killed_worker", "message": 'it said \\ "no" twice'}
    for engine in engines:
        engine.refusal = (500, {"error": error, "request_id": "r"})
    answer = gateway.http.post(ASKED)
    assert _error(answer) == (500, BROKEN, "request_killed_worker")
    assert answer.json()["error"] == error
    assert answer.json()["request_id"] == "r"


def test_what_a_handler_said_stays_as_it_is(gateway: RunningGateway, engines: Engines) -> None:
    own = {"error": {"code": "teapot", "message": "mine"}}
    for engine in engines:
        engine.refusal, engine.timing = (418, own), "infer;dur=1.0, serialise;dur=0.1"
    answer = gateway.http.post(ASKED)
    assert (answer.status_code, answer.json()) == (418, own)


def test_errors_of_other_models_have_our_names_alone(gateway: RunningGateway) -> None:
    assert list(gateway.http.post("/predictions/tagger/9").json()) == ["error"]
    assert list(gateway.http.post("/predictions/nobody").json()) == ["error"]
