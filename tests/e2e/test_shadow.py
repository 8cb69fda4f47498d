"""Copies of requests for a shadow: what it gets, what is logged, and that no client feels them.
Real Envoy. Version 1 runs on the first engine, the shadow, version 2, on the second."""

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.raw_http import form
from support.running_stack import RunningGateway, admin_page, running_gateway, wait_until
from vlserve.control.domain import Instance, ModelRoute, Routing, Shadow
from vlserve.control.gateway.envoy_clusters import COPIES_BYTES

Engines = tuple[FakeTorchServe, FakeTorchServe]

ALL_COPIED = ModelRoute("tagger", {1: 100}, (1, 2), "release-7", "release-7/shadow", Shadow(2, 100))
NOT_COPIED = ModelRoute("tagger", {1: 100}, (1, 2), "release-7")
TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("shadow"), timeout_s=TIMEOUT_S) as running:
        yield running


@pytest.fixture
def copying(gateway: RunningGateway, engines: Engines) -> RunningGateway:
    """Every request to tagger is copied."""
    _apply(gateway, engines, ALL_COPIED)
    return gateway


def _apply(running: RunningGateway, engines: Engines, *models: ModelRoute) -> None:
    first = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    second = engines[1].instance(lacks=frozenset({("tagger", 1)}))
    running.gateway.apply(Routing(models, [first, second]))


def _post(running: RunningGateway, request_id: str = "any", body: bytes = b"x") -> httpx.Response:
    headers = {"X-Request-Id": request_id}
    return running.http.post("/predictions/tagger", content=body, headers=headers)


def _copy(running: RunningGateway, request_id: str) -> Mapping[str, Any]:
    """The shadow log's line of one request."""

    def lines() -> list[Mapping[str, Any]]:
        written = [
            json.loads(line)
            for line in running.shadow_log().read_text(encoding="utf-8").splitlines()
        ]
        return [line for line in written if line["request_id"] == request_id]

    wait_until(lines)
    (line,) = lines()
    return line


def test_a_copy_is_the_request_with_the_shadows_version_and_token(
    copying: RunningGateway, engines: Engines
) -> None:
    sent = {
        "X-Request-Id": "copied-1",
        "Authorization": "Bearer mine",
        "Cookie": "a=b",
        "X-Sticky-Key": "alice",
        "X-Vlserve-Shadow": "tagger-1",
        "X-Vlserve-Step": "another",
        "Content-Type": "application/json",
    }
    response = copying.http.post("/predictions/tagger", content=b"{}", headers=sent)
    assert (response.status_code, response.json()["version"]) == (200, 1)
    assert not [name for name in response.headers if name.startswith(("x-envoy", "x-vlserve"))]
    wait_until(lambda: engines[1].seen)
    (asked,), (copied,) = engines[0].seen, engines[1].seen
    assert (asked.path, copied.path) == ("/predictions/tagger/1", "/predictions/tagger/2")
    assert copied.body == b"{}"
    assert copied.headers == {**asked.headers, "authorization": "Bearer token-of-1"}
    assert copied.headers["x-request-id"] == "copied-1"


def test_a_copy_is_logged_apart_from_the_request(copying: RunningGateway) -> None:
    _post(copying, "logged-copy")
    line = dict(_copy(copying, "logged-copy"))
    assert line.pop("at") and line.pop("duration_ms") >= 0
    assert line == {
        "schema": 1,
        "request_id": "logged-copy",
        "model": "tagger",
        "version": "2",
        "step": ALL_COPIED.step,
        "status": 200,
        "flags": "-",
    }
    log = copying.access_log()
    wait_until(lambda: "logged-copy" in log.read_text(encoding="utf-8"))
    (asked,) = [
        line for line in log.read_text(encoding="utf-8").splitlines() if "logged-copy" in line
    ]
    assert json.loads(asked)["version"] == "1"


def test_what_names_a_version_is_not_copied(copying: RunningGateway, engines: Engines) -> None:
    copying.http.post("/predictions/tagger/1", content=b"x")
    copying.http.post("/predictions/tagger", content=b"x", headers={"X-Model-Version": "1"})
    _post(copying)
    wait_until(lambda: engines[1].seen)
    assert (len(engines[0].seen), len(engines[1].seen)) == (3, 1)


@pytest.mark.parametrize("key", [None, "alice"])
def test_a_shadow_is_in_force_and_gone_when_apply_returns(
    copying: RunningGateway, engines: Engines, key: str | None
) -> None:
    headers = {"X-Sticky-Key": key} if key else {}
    for _ in range(10):
        _apply(copying, engines, NOT_COPIED)
        engines[1].seen.clear()
        copying.http.post("/predictions/tagger", content=b"x", headers=headers)
        time.sleep(0.02)
        assert not engines[1].seen
        _apply(copying, engines, ALL_COPIED)
        copying.http.post("/predictions/tagger", content=b"x", headers=headers)
        wait_until(lambda: engines[1].seen)


def test_the_clusters_of_a_shadow_go_once_it_is_idle(
    copying: RunningGateway, engines: Engines
) -> None:
    def clusters() -> list[str]:
        _apply(copying, engines, NOT_COPIED)
        dynamic = copying.settings.state_dir / "gateway" / "dynamic"
        resources = json.loads((dynamic / "clusters.json").read_text(encoding="utf-8"))["resources"]
        return [cluster["name"] for cluster in resources]

    engines[1].delay_s = 0.4 * TIMEOUT_S
    assert _post(copying, "last-copy").status_code == 200
    assert clusters() == ["tagger-1", "tagger-2", "tagger-2.copies", "tagger-2.shadow"]
    wait_until(lambda: clusters() == ["tagger-1", "tagger-2"])
    assert _copy(copying, "last-copy")["status"] == 200


def test_shadows_that_come_and_go_under_load_lose_nothing(
    copying: RunningGateway, engines: Engines
) -> None:
    stop, got = threading.Event(), Counter[int]()

    def call() -> None:
        with httpx.Client(base_url=copying.settings.gateway_url, trust_env=False) as http:
            while not stop.is_set():
                got[http.post("/predictions/tagger", content=b"x" * 10_000).status_code] += 1

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for number in range(10):
            shadow = Shadow(2, 100 - number)
            _apply(copying, engines, ModelRoute("tagger", {1: 100}, (1, 2), shadow=shadow))
            _apply(copying, engines, NOT_COPIED)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(got) == {200} and got[200] > 40
    assert engines[1].seen


def test_copies_do_not_prefer_a_version(gateway: RunningGateway, engines: Engines) -> None:
    """The number that chooses the version of a request without a key is the one that chooses
    whether to copy it."""
    half = ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), shadow=Shadow(2, 50))
    _apply(gateway, engines, half)
    version_of = {f"drawn-{n}": _post(gateway, f"drawn-{n}").json()["version"] for n in range(400)}
    wait_until(lambda: not gateway.gateway.in_flight("tagger", 2))
    seen = Counter(each.headers["x-request-id"] for each in engines[1].seen)
    # what version 2 answered itself it has seen once, and once more where it was copied
    copied = Counter(v for rid, v in version_of.items() if seen[rid] == (2 if v == 2 else 1))
    asked = Counter(version_of.values())
    # a share of a half, by chance: five standard deviations are 0.18
    assert all(0.3 < copied[version] / asked[version] < 0.7 for version in (1, 2))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b'{"text": "' + b"x" * 200_000 + b'"}'),
        ("multipart/form-data; boundary=b", form("b", {"image": bytes(range(256)) * 4000})),
        ("application/octet-stream", bytes(range(256)) * 128 * 1024),
    ],
    ids=["json", "multipart", "at the limit"],
)
def test_a_body_is_copied_whole(
    copying: RunningGateway, engines: Engines, content_type: str, body: bytes
) -> None:
    assert len(body) <= copying.settings.gateway.max_body_bytes
    headers = {"Content-Type": content_type}
    response = copying.http.post("/predictions/tagger", content=body, headers=headers)
    assert response.status_code == 200
    wait_until(lambda: engines[1].seen)
    (copied,) = engines[1].seen
    assert copied.body == body
    told = copied.headers.get("x-vlserve-content-type", copied.headers["content-type"])
    assert told == content_type


def test_a_body_in_chunks_is_copied_whole(copying: RunningGateway, engines: Engines) -> None:
    pieces = (b"piece" * 1000 for _ in range(50))
    assert copying.http.post("/predictions/tagger", content=pieces).status_code == 200
    wait_until(lambda: engines[1].seen)
    assert engines[1].seen[0].body == engines[0].seen[0].body == b"piece" * 50_000


def test_a_body_over_the_limit_is_not_copied(copying: RunningGateway, engines: Engines) -> None:
    body = b"x" * (copying.settings.gateway.max_body_bytes + 1_000_000)
    assert _post(copying, body=body).status_code == 413
    assert _post(copying).status_code == 200
    wait_until(lambda: engines[1].seen)
    assert [seen.body for seen in engines[1].seen] == [b"x"]


def test_a_slow_shadow_delays_nobody_and_is_logged_as_late(
    copying: RunningGateway, engines: Engines
) -> None:
    engines[1].delay_s = 2 * TIMEOUT_S
    began_s = time.monotonic()
    answers = [_post(copying, f"slow-{n}") for n in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - began_s < TIMEOUT_S
    assert copying.gateway.in_flight("tagger", 2) == 10
    assert copying.gateway.in_flight("tagger", 1) == 0
    lines = [_copy(copying, f"slow-{n}") for n in range(10)]
    assert {(line["status"], line["flags"]) for line in lines} == {(504, "UT")}
    assert copying.gateway.in_flight("tagger", 2) == 0


def test_a_dead_shadow_is_logged_and_felt_by_nobody(
    gateway: RunningGateway, engines: Engines
) -> None:
    with FakeTorchServe("engine-2", "token-of-2") as dead:
        to_dead = dead.instance(lacks=frozenset({("tagger", 1)}))
    alive = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    gateway.gateway.apply(Routing([ALL_COPIED], [alive, to_dead]))
    assert {_post(gateway, f"dead-{n}").status_code for n in range(10)} == {200}
    lines = [_copy(gateway, f"dead-{n}") for n in range(10)]
    assert {(line["status"], line["flags"], line["version"]) for line in lines} == {
        (503, "UF", "2")
    }


def test_a_shadow_that_no_instance_holds_is_logged(
    gateway: RunningGateway, engines: Engines
) -> None:
    alone = engines[0].instance(lacks=frozenset({("tagger", 2)}))
    gateway.gateway.apply(Routing([ALL_COPIED], [alone]))
    assert _post(gateway, "nowhere").status_code == 200
    line = _copy(gateway, "nowhere")
    assert (line["status"], line["flags"], line["version"]) == (503, "UH", "2")


@pytest.mark.parametrize("said", [Reply(507), Reply(0), Reply(503, "ServiceUnavailableException")])
def test_a_copy_is_not_tried_again(copying: RunningGateway, engines: Engines, said: Reply) -> None:
    request_id = f"once-{said.status}"
    engines[1].replies.append(said)
    assert _post(copying, request_id).status_code == 200
    assert _copy(copying, request_id)["status"] == 503
    assert len(engines[1].seen) == 1


def test_a_request_that_is_tried_again_is_copied_once(
    copying: RunningGateway, engines: Engines
) -> None:
    engines[0].replies.extend([Reply(507)] * 2)
    assert _post(copying, "tried-again").status_code == 200
    assert _copy(copying, "tried-again")["status"] == 200
    assert (len(engines[0].seen), len(engines[1].seen)) == (3, 1)


def test_copies_under_way_are_bounded_and_take_no_room_from_requests(
    copying: RunningGateway, engines: Engines
) -> None:
    """More copies than the shadow may hold; requests to the same version go through."""
    most = COPIES_BYTES // copying.settings.gateway.max_body_bytes
    engines[1].delay_s = 0.5 * TIMEOUT_S
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: _post(copying).status_code, range(2 * most)))
    assert set(statuses) == {200}
    copies = len(engines[1].seen)
    assert most / 2 < copies <= most
    response = copying.http.post("/predictions/tagger/2", content=b"x")
    assert (response.status_code, response.json()["version"]) == (200, 2)


def test_a_shadow_that_hangs_under_the_largest_bodies_costs_bounded_memory(
    tmp_path: Path, engines: Engines
) -> None:
    """It takes connections and reads nothing, so every copy stays in the gateway."""
    with running_gateway(tmp_path) as running, socket.create_server(("127.0.0.1", 0)) as hung:
        stable = engines[0].instance(lacks=frozenset({("tagger", 2)}))
        port = hung.getsockname()[1]
        shadow = Instance("hung", "127.0.0.1", port, "token", frozenset({("tagger", 1)}))
        running.gateway.apply(Routing([ALL_COPIED], [stable, shadow]))
        body = bytes(running.settings.gateway.max_body_bytes)
        most = COPIES_BYTES // len(body)
        for _ in range(most + 8):
            assert _post(running, body=body).status_code == 200
            engines[0].seen.clear()
        assert running.gateway.in_flight("tagger", 2) == most
        memory = psutil.Process(running.process.pid).memory_info().rss
    print(f"the gateway took {memory / 1e6:.0f} MB")
    assert memory < 2 * COPIES_BYTES


def test_a_client_that_goes_away_leaves_its_copy(copying: RunningGateway, engines: Engines) -> None:
    for engine in engines:
        engine.delay_s = 0.5 * TIMEOUT_S
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: left\r\n"
    address = ("127.0.0.1", copying.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 1\r\n\r\nx")
        wait_until(lambda: engines[1].seen)
    assert _copy(copying, "left")["status"] == 200


def test_a_version_drains_what_is_copied_to_it(copying: RunningGateway, engines: Engines) -> None:
    engines[1].delay_s = 0.7 * TIMEOUT_S
    _post(copying, "draining")
    for route in (NOT_COPIED, ModelRoute("tagger", {1: 100}, (1,))):
        for _ in range(2):
            _apply(copying, engines, route)
    assert copying.gateway.in_flight("tagger", 2) == 1
    assert _copy(copying, "draining")["status"] == 200
    wait_until(lambda: copying.gateway.in_flight("tagger", 2) == 0)
    _apply(copying, engines, ModelRoute("tagger", {1: 100}, (1,)))
    clusters = copying.settings.state_dir / "gateway" / "dynamic" / "clusters.json"
    assert "tagger-2" not in clusters.read_text(encoding="utf-8")


def test_a_request_that_is_still_uploaded_is_copied_to_a_version_that_leaves(
    copying: RunningGateway, engines: Engines
) -> None:
    """Copies under way do not hide a request whose body is still to come."""
    engines[1].delay_s = 0.5 * TIMEOUT_S
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: uploaded\r\n"
    address = ("127.0.0.1", copying.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 4\r\n\r\nha")
        wait_until(lambda: copying.active() == 1)
        for _ in range(5):
            _post(copying)
        for _ in range(3):
            _apply(copying, engines, ModelRoute("tagger", {1: 100}, (1,)))
        wait_until(lambda: copying.gateway.in_flight("tagger", 2) <= 1)
        time.sleep(0.2)
        assert copying.gateway.in_flight("tagger", 2) == 1
        client.sendall(b"lf")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200
    assert _copy(copying, "uploaded")["version"] == "2"
    wait_until(lambda: copying.gateway.in_flight("tagger", 2) == 0)


def test_a_killed_gateway_comes_back_with_its_shadow(
    copying: RunningGateway, engines: Engines
) -> None:
    copying.stop()
    copying.gateway.prepare()
    copying.start()
    assert _post(copying).status_code == 200
    wait_until(lambda: engines[1].seen)


@contextmanager
def _small_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr("vlserve.control.gateway.envoy.LOG_BYTES", 1)
        yield


def test_the_shadow_log_is_rotated_with_the_access_log(
    copying: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = copying.shadow_log()
    _post(copying, "before-rotation")
    _copy(copying, "before-rotation")
    with _small_logs(monkeypatch):
        copying.gateway.rotate_access_log()
    assert "before-rotation" in log.with_name("shadow.jsonl.1").read_text(encoding="utf-8")
    assert copying.access_log().with_name("access.jsonl.1").exists()
    wait_until(log.exists)
    _post(copying, "after-rotation")
    assert _copy(copying, "after-rotation")["status"] == 200


def test_the_shadow_listener_has_no_address(copying: RunningGateway) -> None:
    with admin_page(copying.settings) as admin:
        listeners = admin.get("/listeners", params={"format": "json"}).json()
    addresses = {each["name"]: each["local_address"] for each in listeners["listener_statuses"]}
    assert "socket_address" in addresses["predictions"]
    assert "socket_address" not in addresses["shadow"]
