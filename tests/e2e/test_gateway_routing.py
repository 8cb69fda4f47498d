"""Which version answers: by path, by header, by weight, by sticky key. Real Envoy."""

import http.client
import json
import socket
import threading
import time
from collections import Counter

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe
from support.raw_http import send
from support.running_stack import RunningGateway, wait_until
from vlserve.control.domain import ModelRoute, Routing
from vlserve.errors import GatewayRefused, GatewaySilent

Engines = tuple[FakeTorchServe, FakeTorchServe]


@pytest.fixture
def gateway(envoy: RunningGateway, engines: Engines) -> RunningGateway:
    """Model tagger: version 1 has the traffic, 2 is ready."""
    envoy.route(ModelRoute("tagger", {1: 100}, (1, 2)), to=list(engines))
    return envoy


def _version(gateway: RunningGateway, path: str = "/predictions/tagger", **headers: str) -> int:
    response = gateway.http.post(path, content=b"x", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-model-version"] == str(response.json()["version"])
    return int(response.json()["version"])


def test_path_and_header_ask_for_a_version(gateway: RunningGateway) -> None:
    assert _version(gateway) == 1
    assert _version(gateway, "/predictions/tagger/2") == 2
    assert _version(gateway, **{"x-model-version": "2"}) == 2
    assert _version(gateway, **{"x-model-version": ""}) == 1
    assert _version(gateway, "/predictions/tagger/1", **{"x-model-version": "2"}) == 1


def test_the_engine_is_asked_on_the_versions_own_path(
    gateway: RunningGateway, engines: Engines
) -> None:
    gateway.http.post("/predictions//tagger", content=b"x")
    paths = {request.path for engine in engines for request in engine.seen}
    assert paths == {"/predictions/tagger/1"}


@pytest.mark.parametrize("path", ["/predictions/tagger/", "/predictions/tagger//"])
def test_a_slash_at_the_end_changes_nothing(
    gateway: RunningGateway, engines: Engines, path: str
) -> None:
    assert _version(gateway, path) == 1
    assert _version(gateway, path, **{"x-sticky-key": "caller"}) == 1
    assert _version(gateway, path, **{"x-model-version": "2"}) == 2
    assert _version(gateway, path.replace("tagger", "tagger/2")) == 2
    paths = {request.path for engine in engines for request in engine.seen}
    assert paths == {"/predictions/tagger/1", "/predictions/tagger/2"}
    unknown = gateway.http.post(path, headers={"x-model-version": "3"})
    assert unknown.json()["error"]["code"] == "version_not_found"


@pytest.mark.parametrize("query", ["text=%E7%8C%AB&top_k=3", "text=100%25", "a", "?", "%3F=%2f"])
def test_the_query_reaches_the_engine(
    gateway: RunningGateway, engines: Engines, query: str
) -> None:
    for path in ("/predictions/tagger", "/predictions/tagger/", "/predictions/tagger/1"):
        assert _version(gateway, f"{path}?{query}") == 1
    paths = {request.path for engine in engines for request in engine.seen}
    assert paths == {f"/predictions/tagger/1?{query}"}


@pytest.mark.parametrize("query", ["text=%", "text=%2", "text=100%&a=b", "%zz", "a=%2g", "%25%"])
def test_a_query_that_cannot_be_read_is_the_clients_error(
    gateway: RunningGateway, engines: Engines, query: str
) -> None:
    """TorchServe says 500 to it, which the gateway would try four times, and call its own fault."""
    for path in ("/predictions/tagger", "/predictions/tagger/1", "/predictions/none"):
        head = f"POST {path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        reply = send(gateway.settings.gateway.port, head.encode(), "POST")
        error = json.loads(reply.body)["error"]
        assert (reply.status, error["code"]) == (400, "bad_request")
        assert "%25" in error["message"]
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("POST", "/predictions/tagger/3", {}, 404, "version_not_found"),
        ("POST", "/predictions/tagger", {"x-model-version": "3"}, 404, "version_not_found"),
        ("POST", "/predictions/tagger", {"x-model-version": "latest"}, 404, "version_not_found"),
        ("POST", "/predictions/tagger/1/2", {}, 404, "version_not_found"),
        ("POST", "/predictions/tagger2", {}, 404, "model_not_found"),
        ("POST", "/predictions/tagge", {}, 404, "model_not_found"),
        ("POST", "/predictions/", {}, 404, "model_not_found"),
        ("GET", "/predictions/tagger/3", {}, 404, "version_not_found"),
        ("PUT", "/predictions/tagger2", {}, 404, "model_not_found"),
        ("DELETE", "/predictions/tagger", {}, 405, "method_not_allowed"),
        ("PATCH", "/predictions/tagger/1", {}, 405, "method_not_allowed"),
        ("POST", "/health", {}, 405, "method_not_allowed"),
        ("GET", "/", {}, 404, "not_found"),
        ("POST", "/models", {}, 404, "not_found"),
        ("GET", "/predictions/../models", {}, 404, "not_found"),
    ],
)
def test_unknown_paths_are_refused_in_the_common_shape(
    gateway: RunningGateway,
    engines: Engines,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    response = gateway.http.request(method, path, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["message"]
    assert ("allow" in response.headers) == (status == 405)
    assert not any(engine.seen for engine in engines)


def test_a_model_without_released_version_answers_by_number_alone(
    envoy: RunningGateway, engines: Engines
) -> None:
    envoy.route(ModelRoute("tagger", {}, (1,)), to=list(engines))
    response = envoy.http.post("/predictions/tagger", content=b"x")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "version_not_found")
    assert _version(envoy, "/predictions/tagger/1") == 1


def _versions_of_callers(
    gateway: RunningGateway, engines: Engines, weights: dict[int, int], salt: str
) -> list[int]:
    """The version that each of 400 sticky callers meets."""
    gateway.route(ModelRoute("tagger", weights, (1, 2), salt), to=list(engines))
    return [_version(gateway, **{"x-sticky-key": f"caller-{n}"}) for n in range(400)]


def test_callers_split_by_weight_and_stay_as_it_rises(
    envoy: RunningGateway, engines: Engines
) -> None:
    def on_candidate(share: int, salt: str = "release-7") -> set[int]:
        weights = {2: share, 1: 100 - share}
        versions = _versions_of_callers(envoy, engines, weights, salt)
        return {caller for caller, version in enumerate(versions) if version == 2}

    few, many, all_callers = on_candidate(10), on_candidate(40), on_candidate(100)
    # the hash is fixed, so these counts are too; five standard deviations leave room for no bug
    assert 10 <= len(few) <= 70
    assert 110 <= len(many) <= 210
    assert few < many < all_callers == set(range(400))
    assert on_candidate(10) == few
    assert on_candidate(10, salt="release-8") != few
    assert on_candidate(10, salt=r"odd \1 \ salt") != few


def test_callers_without_a_key_are_split_by_chance(envoy: RunningGateway, engines: Engines) -> None:
    envoy.route(ModelRoute("tagger", {2: 50, 1: 50}, (1, 2)), to=list(engines))
    without = Counter(_version(envoy) for _ in range(100))
    empty = Counter(_version(envoy, **{"x-sticky-key": ""}) for _ in range(100))
    for counts in (without, empty):
        assert counts[1] > 10 and counts[2] > 10


def test_a_version_of_weight_0_answers_by_number_alone(
    envoy: RunningGateway, engines: Engines
) -> None:
    envoy.route(ModelRoute("tagger", {2: 0, 1: 100}, (1, 2)), to=list(engines))
    assert {_version(envoy) for _ in range(20)} == {1}
    assert _version(envoy, "/predictions/tagger/2") == 2


def test_changes_under_load_lose_nothing(envoy: RunningGateway, engines: Engines) -> None:
    """Releases, rollbacks, a version that comes and one that goes, while callers go on."""
    envoy.route(ModelRoute("tagger", {1: 100}, (1,)), to=list(engines))
    stop, problems, answers = threading.Event(), list[object](), Counter[int]()

    def call() -> None:
        with httpx.Client(base_url=envoy.settings.gateway_url, trust_env=False) as http:
            while not stop.wait(0.005):
                response = http.post("/predictions/tagger", content=b"x" * 10_000)
                if response.status_code == 200:
                    answers[response.json()["version"]] += 1
                else:
                    problems.append((response.status_code, response.text))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for version in range(2, 12):
            before, both = version - 1, (version - 1, version)
            for weights in ({before: 100}, {version: 30, before: 70}, {version: 100}):
                envoy.route(ModelRoute("tagger", weights, both), to=list(engines))
            envoy.route(ModelRoute("tagger", {version: 100}, (version,)), to=list(engines))
            assert _version(envoy) == version
            refusal = envoy.http.post(f"/predictions/tagger/{before}", content=b"x")
            assert refusal.status_code == 404
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert problems == []
    assert sum(answers.values()) > 40 and answers[11]


def test_a_version_that_leaves_keeps_its_running_requests(
    envoy: RunningGateway, engines: Engines
) -> None:
    envoy.route(ModelRoute("slow", {1: 100}, (1, 2)), to=list(engines))
    for engine in engines:
        engine.held.set()
    answers: list[httpx.Response] = []
    caller = threading.Thread(
        target=lambda: answers.append(envoy.http.post("/predictions/slow/2", content=b"x"))
    )
    caller.start()
    wait_until(lambda: envoy.gateway.in_flight("slow", 2) == 1)
    assert envoy.gateway.in_flight("slow", 1) == 0
    for _ in range(3):
        envoy.route(ModelRoute("slow", {1: 100}, (1,)), to=list(engines))
    assert envoy.gateway.in_flight("slow", 2) == 1
    for engine in engines:
        engine.held.clear()
    caller.join()
    assert answers[0].status_code == 200
    wait_until(lambda: envoy.gateway.in_flight("slow", 2) == 0)
    envoy.route(ModelRoute("slow", {1: 100}, (1,)), to=list(engines))
    clusters = envoy.settings.state_dir / "gateway" / "dynamic" / "clusters.json"
    assert "slow-2" not in clusters.read_text(encoding="utf-8")


def test_a_version_that_leaves_answers_what_is_still_being_uploaded(
    envoy: RunningGateway, engines: Engines
) -> None:
    """The version is chosen at the headers; the body comes after its path closed."""
    to = list(engines)
    envoy.route(ModelRoute("upload", {1: 100}, (1, 2)), to=to)
    head = b"POST /predictions/upload HTTP/1.1\r\nHost: gateway\r\nContent-Length: 8\r\n\r\nhalf"
    with socket.create_connection(("127.0.0.1", envoy.settings.gateway.port), 30) as client:
        client.sendall(head)
        wait_until(lambda: envoy.active() == 1)
        for versions in ((1, 2), (2,), (2,), (2,)):
            envoy.route(ModelRoute("upload", {2: 100}, versions), to=to)
        time.sleep(0.2)
        assert _version(envoy, "/predictions/upload") == 2
        envoy.route(ModelRoute("upload", {2: 100}, (2,)), to=to)
        assert envoy.gateway.in_flight("upload", 1) == 1
        client.sendall(b"half")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, json.loads(response.read())["version"]) == (200, 1)
    wait_until(lambda: envoy.gateway.in_flight("upload", 1) == 0)
    envoy.route(ModelRoute("upload", {2: 100}, (2,)), to=to)
    clusters = envoy.settings.state_dir / "gateway" / "dynamic" / "clusters.json"
    assert "upload-1" not in clusters.read_text(encoding="utf-8")


def test_a_refused_routing_leaves_the_old_one(gateway: RunningGateway, engines: Engines) -> None:
    to = [engine.instance() for engine in engines]
    no_such_cluster = ModelRoute("tagger", {9: 100}, (1, 2))
    with pytest.raises(GatewayRefused, match="tagger-9"):
        gateway.gateway.apply(Routing([no_such_cluster], to))
    same_cluster_twice = ModelRoute("tagger", {1: 100}, (1, 1))
    with pytest.raises(GatewayRefused, match="tagger-1"):
        gateway.gateway.apply(Routing([same_cluster_twice], to))
    assert gateway.gateway.ready()
    assert _version(gateway) == 1


def test_a_killed_gateway_comes_back_with_the_same_routing(gateway: RunningGateway) -> None:
    gateway.stop()
    assert not gateway.gateway.ready()
    assert gateway.gateway.in_flight("tagger", 1) == 0
    gateway.start()
    assert _version(gateway) == 1
    assert _version(gateway, "/predictions/tagger/2") == 2


def test_a_change_while_the_gateway_is_away_is_refused_and_undone(
    gateway: RunningGateway, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlserve.control.gateway.envoy.IN_FORCE_TIMEOUT_S", 0.3)
    gateway.stop()
    with pytest.raises(GatewaySilent, match="does not answer"):
        gateway.route(ModelRoute("tagger", {2: 100}, (1, 2)), to=list(engines))
    gateway.start()
    assert _version(gateway) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]"])
@pytest.mark.parametrize("name", ["routes.json", "clusters.json"])
def test_a_damaged_routing_is_mended_by_the_next_change(
    gateway: RunningGateway, engines: Engines, name: str, damage: str
) -> None:
    dynamic = gateway.settings.state_dir / "gateway" / "dynamic"
    (dynamic.parent / "damaged").write_text(damage, encoding="utf-8")
    (dynamic.parent / "damaged").rename(dynamic / name)
    gateway.route(ModelRoute("tagger", {2: 100}, (1, 2)), to=list(engines))
    assert _version(gateway) == 2
    gateway.route(ModelRoute("tagger", {1: 100}, (1, 2)), to=list(engines))
    assert _version(gateway) == 1


def test_a_routing_that_was_damaged_at_rest_is_not_started_from(
    gateway: RunningGateway, engines: Engines
) -> None:
    gateway.stop()
    routes = gateway.settings.state_dir / "gateway" / "dynamic" / "routes.json"
    routes.write_text(routes.read_text(encoding="utf-8")[:100], encoding="utf-8")
    gateway.gateway.prepare()
    gateway.start()
    assert gateway.http.get("/health").json() == {"status": "ok"}
    assert gateway.http.post("/predictions/tagger", content=b"x").status_code == 404
    gateway.route(ModelRoute("tagger", {1: 100}, (1, 2)), to=list(engines))
    assert _version(gateway) == 1
