"""The Open Inference Protocol's paths on a real Envoy, before stand-in engines."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.grpc_calls import calls_to
from support.running_stack import RunningGateway, running_gateway
from vlserve.control.domain import ModelRoute, Routing
from vlserve.runtime import headers
from vlserve.runtime.manifest import ImageInput, Manifest

Engines = tuple[FakeTorchServe, FakeTorchServe]
KEY = "a-key"
MAX_BODY_BYTES = 10_000
HALF = ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), "salt")
UNRELEASED = ModelRoute("fresh", {}, (1,))


@pytest.fixture(scope="module")
def strict_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One that asks for a key, and takes small bodies."""
    limits = {"api_keys": (KEY,), "max_body_bytes": MAX_BODY_BYTES}
    with running_gateway(tmp_path_factory.mktemp("v2"), **limits) as gateway:
        gateway.http.headers[headers.API_KEY] = KEY
        yield gateway


@pytest.fixture
def gateway(strict_gateway: RunningGateway, engines: Engines) -> RunningGateway:
    strict_gateway.route(HALF, UNRELEASED, to=list(engines))
    return strict_gateway


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status, and the error in V2's words."""
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert isinstance(error, str), error
    return response.status_code, error


def test_the_worker_is_told_of_v2_by_the_gateway_alone(
    gateway: RunningGateway, engines: Engines
) -> None:
    client_headers = {
        "Inference-Header-Content-Length": "7",
        headers.PROTOCOL: "mine",
        headers.SENT_JSON_LENGTH: "9",
    }
    for path in ("/v2/models/tagger/infer", "/v2/models/tagger/versions/1/infer/"):
        assert gateway.http.post(path, content=b"{}", headers=client_headers).status_code == 200
    answer = gateway.http.post("/predictions/tagger", content=b"{}", headers=client_headers)
    assert answer.status_code == 200
    engine_headers = [request.headers for engine in engines for request in engine.seen]
    pairs = [
        (fields.get(headers.PROTOCOL), fields.get(headers.SENT_JSON_LENGTH))
        for fields in engine_headers
    ]
    assert sorted(pairs, key=str) == [("v2", "7"), ("v2", "7"), (None, None)]
    assert not any("inference-header-content-length" in fields for fields in engine_headers)


def test_a_caller_meets_one_version_in_both_forms(gateway: RunningGateway) -> None:
    all_versions = []
    for number in range(40):
        key = {headers.STICKY_KEY: f"caller-{number}"}
        versions = {
            gateway.http.post(path, content=b"{}", headers=key).headers[headers.MODEL_VERSION]
            for path in ("/v2/models/tagger/infer", "/predictions/tagger")
        }
        assert len(versions) == 1
        all_versions += versions
    assert {*all_versions} == {"1", "2"}
    version_header = {headers.MODEL_VERSION: "2"}
    answer = gateway.http.post("/v2/models/tagger/infer", content=b"{}", headers=version_header)
    assert answer.headers[headers.MODEL_VERSION] == "2"


def test_health_and_metadata_need_no_engine(gateway: RunningGateway, engines: Engines) -> None:
    get = gateway.http.get
    with httpx.Client(base_url=gateway.settings.gateway_url, trust_env=False) as without_key:
        assert without_key.get("/v2/health/live").json() == {"live": True}
        assert without_key.get("/v2/health/ready").json() == {"ready": True}
        assert error_of(without_key.get("/v2"))[0] == 401
    assert get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert get("/v2/models/tagger").json()["versions"] == ["1", "2"]
    assert get("/v2/models/tagger/versions/2").json()["versions"] == ["2"]
    assert get("/v2/models/tagger/ready").json() == {"name": "tagger", "ready": True}
    assert get("/v2/models/fresh/versions/1/ready").status_code == 200
    assert error_of(get("/v2/models/fresh/ready"))[0] == 404
    assert not [request for engine in engines for request in engine.seen]


def test_a_model_s_inputs_are_those_of_its_archive(
    strict_gateway: RunningGateway, engines: Engines
) -> None:
    about: dict[str, Any] = {"task": "tag", "graphs": {}, "image": ImageInput(height=8, width=8)}
    manifest = Manifest.model_construct(**about)
    route = ModelRoute("tagger", {1: 100}, (1,), manifests={1: manifest})
    strict_gateway.route(route, to=list(engines))
    metadata = strict_gateway.http.get("/v2/models/tagger").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["tag", "score"]


REFUSED: dict[str, tuple[str, str, int, str]] = {
    "model": ("POST", "/v2/models/other/infer", 404, "model_not_found: "),
    "metadata": ("GET", "/v2/models/other", 404, "model_not_found: "),
    "version": ("POST", "/v2/models/tagger/versions/9/infer", 404, "version_not_found: "),
    "unreleased": ("POST", "/v2/models/fresh/infer", 404, "version_not_found: no version of"),
    "path": ("GET", "/v2/repository/index", 404, "not_found: "),
    "path of a model": ("GET", "/v2/models/tagger/config", 404, "not_found: "),
    "path of a version": ("GET", "/v2/models/tagger/versions/1/stats", 404, "not_found: "),
    "method": ("GET", "/v2/models/tagger/infer", 405, "method_not_allowed: "),
    "posted": ("POST", "/v2/models/tagger", 405, "method_not_allowed: "),
    "query": ("POST", "/v2/models/tagger/infer?a=%zz", 400, "bad_request: the query has a %"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_gateway_refuses_in_the_words_of_v2(gateway: RunningGateway, case: str) -> None:
    method, path, status, words = REFUSED[case]
    answer_status, error = error_of(gateway.http.request(method, path))
    assert answer_status == status
    assert error.startswith(words)


def test_limits_hold_for_v2(gateway: RunningGateway, engines: Engines) -> None:
    path, large = "/v2/models/tagger/infer", b"x" * (MAX_BODY_BYTES + 1)
    assert error_of(gateway.http.post(path, content=large))[0] == 413

    def in_pieces() -> Iterator[bytes]:
        yield from (large[at : at + 1000] for at in range(0, len(large), 1000))

    assert error_of(gateway.http.post(path, content=in_pieces()))[0] == 413
    wrong = gateway.http.post(path, content=b"{}", headers={headers.API_KEY: "guessed"})
    assert error_of(wrong) == (
        401,
        "unauthorized: send a valid key as X-Api-Key, or as Authorization: Bearer KEY",
    )
    assert not [request for engine in engines for request in engine.seen]


def test_an_engine_s_own_words_become_v2_s(gateway: RunningGateway, engines: Engines) -> None:
    for engine in engines:
        engine.replies.extend([Reply(503, "ServiceUnavailableException", "busy")] * 20)
    answer = gateway.http.post("/v2/models/tagger/infer", content=b"{}")
    assert error_of(answer) == (503, "overloaded: the version's queue is full, or no worker is up")
    assert answer.headers["retry-after"] == "1"


def test_plain_errors_stay_as_they_are(gateway: RunningGateway) -> None:
    body: dict[str, Any] = json.loads(gateway.http.post("/predictions/other").text)
    assert body["error"]["code"] == "model_not_found"


def test_a_server_that_is_not_ready_says_why_to_callers_without_a_key(
    strict_gateway: RunningGateway, engines: Engines
) -> None:
    instances = [engine.instance() for engine in engines]
    strict_gateway.gateway.apply(Routing([HALF], instances, unready="it is being stopped"))
    url = f"{strict_gateway.settings.gateway_url}/v2/health"
    live, ready = (httpx.get(f"{url}/{word}", trust_env=False) for word in ("live", "ready"))
    assert (live.status_code, ready.status_code) == (200, 503)
    assert error_of(ready) == (503, "not_ready: it is being stopped")
    with calls_to(strict_gateway.settings.gateway.port) as calls:
        assert calls.call("ServerReady").answer.ready is False
        strict_gateway.gateway.apply(Routing([HALF], instances))
        assert calls.call("ServerReady").answer.ready is True
    assert httpx.get(f"{url}/ready", trust_env=False).json() == {"ready": True}
