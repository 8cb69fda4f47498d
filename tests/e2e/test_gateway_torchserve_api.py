"""What clients of TorchServe ask the gateway for: methods, health, tokens, and what it has not."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from support.fake_torchserve import FakeTorchServe
from support.raw_http import send
from support.running_stack import RunningGateway, running_gateway, wait_until
from vlserve.control.domain import ModelRoute, Shadow
from vlserve.control.gateway.prediction_routes import METHODS

Engines = tuple[FakeTorchServe, FakeTorchServe]

KEYS = ("first-key", 'odd "key" (with) {braces}')
ROUTE = ModelRoute("tagger", {2: 100}, (1, 2))


@pytest.fixture(scope="module")
def strict_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with keys, and a body limit of 1 MB."""
    folder = tmp_path_factory.mktemp("guarded-torchserve")
    with running_gateway(folder, api_keys=KEYS, max_body_bytes=1_000_000) as gateway:
        yield gateway


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    envoy.route(ROUTE, to=list(engines))
    return envoy


def _code(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["message"]
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("method", METHODS.split("|"))
@pytest.mark.parametrize("path", ["/predictions/tagger", "/predictions/tagger/1"])
def test_a_prediction_is_asked_for_with_each_of_torchserve_s_methods(
    gateway: RunningGateway, engines: Engines, method: str, path: str
) -> None:
    for body in (b"", b"a body"):
        response = gateway.http.request(method, f"{path}?text=a%20cat", content=body)
        assert response.json()["version"] == (1 if path.endswith("/1") else 2)
        (request,) = [request for engine in engines for request in engine.seen]
        assert (request.method, request.body) == (method, body)
        assert request.headers["x-vlserve-path"] == f"{path}?text=a%20cat"
        for engine in engines:
            engine.seen.clear()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_weights_keys_copies_and_the_log_are_as_with_post(
    envoy: RunningGateway, engines: Engines, method: str
) -> None:
    route = ModelRoute(
        "tagger", {2: 50, 1: 50}, (1, 2, 3), "salt", f"7/{method}", shadow=Shadow(3, 100)
    )
    envoy.route(route, to=list(engines))
    callers = [f"caller-{number}" for number in range(40)]

    def versions(with_method: str) -> list[int]:
        return [
            envoy.http.request(
                with_method, "/predictions/tagger", headers={"X-Sticky-Key": caller}
            ).json()["version"]
            for caller in callers
        ]

    first = versions(method)
    assert set(first) == {1, 2}
    assert versions("POST") == first

    def log_lines() -> list[dict[str, object]]:
        lines = map(json.loads, envoy.access_log().read_text(encoding="utf-8").splitlines())
        return [
            line for line in lines if line["step"] == f"7/{method}" and line["method"] == method
        ]

    wait_until(lambda: len(log_lines()) == len(callers))
    assert [line["version"] for line in log_lines()] == list(map(str, first))

    def copies() -> int:
        paths = [
            request.path
            for engine in engines
            for request in engine.seen
            if request.method == method
        ]
        return sum(path.endswith("/3") for path in paths)

    wait_until(lambda: copies() == len(callers))


def test_v1_leads_to_the_same_versions(envoy: RunningGateway, engines: Engines) -> None:
    envoy.route(
        ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), "salt"),
        ModelRoute("unreleased", {}, (1,)),
        to=list(engines),
    )
    http, path = envoy.http, "/v1/models/tagger:predict"
    for number in range(20):
        key = {"X-Sticky-Key": f"caller-{number}"}
        plain = http.post("/predictions/tagger", headers=key, content=b"{}").json()["version"]
        for url in (path, f"{path}/"):
            assert http.post(url, headers=key, content=b"{}").json()["version"] == plain
    assert http.post(path, headers={"X-Model-Version": "1"}).json()["version"] == 1
    protocols = [
        request.headers.get("x-vlserve-protocol")
        for engine in engines
        for request in engine.seen
        if request.headers["x-vlserve-path"].startswith("/v1/")
    ]
    assert set(protocols) == {"v1"}
    assert http.get("/v1/models").json() == {"models": ["tagger"]}
    assert http.get("/v1/models/tagger").json() == {"name": "tagger", "ready": True}
    assert _code(http.get("/v1/models/unreleased")) == (404, "version_not_found")
    assert _code(http.get("/v1/models/none")) == (404, "model_not_found")
    assert _code(http.post("/v1/models/none:predict")) == (404, "model_not_found")
    assert _code(http.get(path)) == (405, "method_not_allowed")
    assert _code(http.post("/v1/models/tagger")) == (405, "method_not_allowed")


def test_curl_sends_a_file_as_it_does_to_torchserve(
    gateway: RunningGateway, engines: Engines, tmp_path: Path
) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is needed"
    file = tmp_path / "cat.jpg"
    file.write_bytes(b"\xff\xd8\xff" + bytes(2_000_000))  # from 1 MB on curl says Expect
    url = f"{gateway.settings.gateway_url}/predictions/tagger"
    result = subprocess.run(
        [curl, "-sv", "--noproxy", "*", "-H", "Expect: 100-continue", "-T", str(file), url],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert json.loads(result.stdout)["version"] == 2
    assert b"100 Continue" in result.stderr
    (request,) = [request for engine in engines for request in engine.seen]
    assert (request.method, request.body) == ("PUT", file.read_bytes())


def test_health_is_torchserve_s(envoy: RunningGateway, engines: Engines) -> None:
    def ping(method: str = "GET") -> tuple[int, str]:
        response = envoy.http.request(method, "/ping?x=1")
        assert response.headers["content-type"] == "application/json"
        return response.status_code, response.text and response.json()["status"]

    envoy.route(ROUTE, to=list(engines))
    assert ping() == ping("OPTIONS") == (200, "Healthy")
    assert ping("HEAD") == (200, "")
    assert _code(envoy.http.post("/ping")) == (405, "method_not_allowed")
    envoy.route(to=list(engines))
    assert ping() == (500, "Unhealthy")
    envoy.route(ROUTE, to=[])
    assert ping() == (500, "Unhealthy")


@pytest.mark.parametrize("path", ["/", "/predictions/tagger", "/predictions/tagger/2"])
def test_options_describes_the_calls(gateway: RunningGateway, engines: Engines, path: str) -> None:
    response = gateway.http.options(path)
    assert response.status_code == 200
    description = response.json()
    model = "{model}" if path == "/" else "tagger"
    assert description["openapi"] == "3.0.1"
    assert description["paths"].keys() == {
        f"/predictions/{model}",
        f"/predictions/{model}/{{version}}",
    }
    (calls, _) = description["paths"].values()
    assert {"get", "post", "put"} <= calls.keys()
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize(
    ("method", "path", "word"),
    [
        ("POST", "/explanations/tagger", "vlserve adopt"),
        ("POST", "/explanations/tagger/1", "vlserve adopt"),
        ("POST", "/v1/models/tagger:explain", "vlserve adopt"),
        ("POST", "/invocations", "/predictions/{model}"),
        ("POST", "/tagger/predict", "/predictions/{model}"),
        ("POST", "/tagger/1/invoke", "/predictions/{model}"),
        ("GET", "/workflows", "one after the other"),
        ("POST", "/wfpredict/flow", "one after the other"),
    ],
)
def test_what_has_no_counterpart_says_what_does_it_here(
    gateway: RunningGateway, engines: Engines, method: str, path: str, word: str
) -> None:
    response = gateway.http.request(method, path, content=b"{}" if method == "POST" else None)
    assert _code(response) == (501, "not_implemented")
    assert word in response.json()["error"]["message"]
    assert not any(engine.seen for engine in engines)


def test_torchserve_s_grpc_is_refused_by_name(gateway: RunningGateway) -> None:
    address = gateway.settings.gateway_url.removeprefix("http://")
    with grpc.insecure_channel(address) as channel:
        ping = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping")
        with pytest.raises(grpc.RpcError) as error:
            ping(b"", timeout=30)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "POST /predictions/{model}" in error.value.details()


@pytest.mark.parametrize(
    "path", ["/predictions/tagger", "/explanations/none", "/v1/models/tagger:predict"]
)
def test_limits_hold_on_each_path(gateway: RunningGateway, path: str) -> None:
    assert _code(gateway.http.put(f"{path}?a=%")) == (400, "bad_request")
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**40}\r\n\r\n"
    large = send(gateway.settings.gateway.port, head.encode(), "PUT")
    assert (large.status, json.loads(large.body)["error"]["code"]) == (413, "body_too_large")
    origin = f"http://127.0.0.1:{gateway.settings.control.port}"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert gateway.http.options(path, headers=headers).status_code == 204


def test_a_bearer_token_is_a_key(strict_gateway: RunningGateway, engines: Engines) -> None:
    strict_gateway.route(ROUTE, to=list(engines))
    path = "/predictions/tagger"

    def status(*headers: tuple[str, str]) -> int:
        return strict_gateway.http.post(path, headers=list(headers)).status_code

    for key in KEYS:
        assert status(("Authorization", f"Bearer {key}")) == 200
        assert status(("authorization", f"bearer {key}")) == 200
        assert status(("Authorization", f"Bearer {key}"), ("X-Api-Key", "wrong")) == 200
        assert status(("Authorization", "Bearer wrong"), ("X-Api-Key", key)) == 200
    tokens = [request.headers["authorization"] for engine in engines for request in engine.seen]
    assert len(tokens) == 4 * len(KEYS)
    assert not any(key in token for key in KEYS for token in tokens)
    for wrong in (
        "Bearer",
        "Bearer wrong",
        "Bearer FIRST-KEY",
        "Bearer first-key2",
        "Bearer first-key,wrong",
        "first-key",
        "Basic first-key",
        "Bearer Bearer first-key",
    ):
        response = strict_gateway.http.post(path, headers={"Authorization": wrong})
        assert _code(response) == (401, "unauthorized"), wrong
        assert "Bearer" in response.json()["error"]["message"]
    twice = ("Authorization", "Bearer wrong"), ("Authorization", "Bearer first-key")
    assert status(*twice) == 401
    assert strict_gateway.http.get("/ping").status_code == 200
    assert _code(strict_gateway.http.options("/")) == (401, "unauthorized")
    large = strict_gateway.http.put(
        path, content=bytes(1_000_001), headers={"Authorization": "Bearer first-key"}
    )
    assert _code(large) == (413, "body_too_large")
