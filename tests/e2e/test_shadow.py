"""Copies of requests for a shadow: what it gets, and what is logged. Real Envoy."""

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from support.raw_http import form
from support.running_stack import RunningGateway, admin_page, wait_until
from support.shadow_copies import (
    ALL_COPIED,
    NOT_COPIED,
    TIMEOUT_S,
    Engines,
    apply_copies,
    logged_copy,
    post,
)
from vlserve.control.domain import ModelRoute, Shadow


def test_a_copy_is_the_request_with_the_shadows_version_and_token(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    headers = {
        "X-Request-Id": "copied-1",
        "Authorization": "Bearer mine",
        "Cookie": "a=b",
        "X-Sticky-Key": "alice",
        "X-Vlserve-Shadow": "tagger-1",
        "X-Vlserve-Step": "another",
        "Content-Type": "application/json",
    }
    response = copying_gateway.http.post("/predictions/tagger", content=b"{}", headers=headers)
    assert (response.status_code, response.json()["version"]) == (200, 1)
    assert not [name for name in response.headers if name.startswith(("x-envoy", "x-vlserve"))]
    wait_until(lambda: engines[1].seen)
    (request,), (copy,) = engines[0].seen, engines[1].seen
    assert (request.path, copy.path) == ("/predictions/tagger/1", "/predictions/tagger/2")
    assert copy.body == b"{}"
    assert copy.headers == {**request.headers, "authorization": "Bearer token-of-1"}
    assert copy.headers["x-request-id"] == "copied-1"


def test_a_copy_is_logged_apart_from_the_request(copying_gateway: RunningGateway) -> None:
    post(copying_gateway, "logged-copy")
    line = dict(logged_copy(copying_gateway, "logged-copy"))
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
    log = copying_gateway.access_log()
    wait_until(lambda: "logged-copy" in log.read_text(encoding="utf-8"))
    (request_line,) = [
        line for line in log.read_text(encoding="utf-8").splitlines() if "logged-copy" in line
    ]
    assert json.loads(request_line)["version"] == "1"


def test_what_names_a_version_is_not_copied(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    copying_gateway.http.post("/predictions/tagger/1", content=b"x")
    copying_gateway.http.post("/predictions/tagger", content=b"x", headers={"X-Model-Version": "1"})
    post(copying_gateway)
    wait_until(lambda: engines[1].seen)
    assert (len(engines[0].seen), len(engines[1].seen)) == (3, 1)


@pytest.mark.parametrize("key", [None, "alice"])
def test_a_shadow_is_in_force_and_gone_when_apply_returns(
    copying_gateway: RunningGateway, engines: Engines, key: str | None
) -> None:
    headers = {"X-Sticky-Key": key} if key else {}
    for _ in range(10):
        apply_copies(copying_gateway, engines, NOT_COPIED)
        engines[1].seen.clear()
        copying_gateway.http.post("/predictions/tagger", content=b"x", headers=headers)
        time.sleep(0.02)
        assert not engines[1].seen
        apply_copies(copying_gateway, engines, ALL_COPIED)
        copying_gateway.http.post("/predictions/tagger", content=b"x", headers=headers)
        wait_until(lambda: engines[1].seen)


def test_the_clusters_of_a_shadow_go_once_it_is_idle(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    def clusters() -> list[str]:
        apply_copies(copying_gateway, engines, NOT_COPIED)
        dynamic = copying_gateway.settings.state_dir / "gateway" / "dynamic"
        resources = json.loads((dynamic / "clusters.json").read_text(encoding="utf-8"))["resources"]
        return [cluster["name"] for cluster in resources]

    engines[1].delay_s = 0.4 * TIMEOUT_S
    assert post(copying_gateway, "last-copy").status_code == 200
    assert clusters() == ["tagger-1", "tagger-2", "tagger-2.copies", "tagger-2.shadow"]
    wait_until(lambda: clusters() == ["tagger-1", "tagger-2"])
    assert logged_copy(copying_gateway, "last-copy")["status"] == 200


def test_shadows_that_come_and_go_under_load_lose_nothing(
    envoy: RunningGateway, engines: Engines
) -> None:
    """By a gateway that waits longer than that of the other tests: the machine may be busy."""
    apply_copies(envoy, engines, ALL_COPIED)
    stop, statuses = threading.Event(), Counter[int]()

    def call() -> None:
        with httpx.Client(base_url=envoy.settings.gateway_url, trust_env=False) as http:
            while not stop.wait(0.005):
                statuses[http.post("/predictions/tagger", content=b"x" * 10_000).status_code] += 1

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for number in range(10):
            shadow = Shadow(2, 100 - number)
            apply_copies(envoy, engines, ModelRoute("tagger", {1: 100}, (1, 2), shadow=shadow))
            apply_copies(envoy, engines, NOT_COPIED)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(statuses) == {200} and statuses[200] > 40
    assert engines[1].seen


def test_copies_do_not_prefer_a_version(shadow_gateway: RunningGateway, engines: Engines) -> None:
    """The number that chooses the version of a request without a key is the one that chooses
    whether to copy it."""
    half = ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), shadow=Shadow(2, 50))
    apply_copies(shadow_gateway, engines, half)
    version_of = {
        f"drawn-{n}": post(shadow_gateway, f"drawn-{n}").json()["version"] for n in range(400)
    }
    wait_until(lambda: not shadow_gateway.gateway.in_flight("tagger", 2))
    counts = Counter(each.headers["x-request-id"] for each in engines[1].seen)
    # what version 2 answered itself it has seen once, and once more where it was copied
    copies = Counter(v for rid, v in version_of.items() if counts[rid] == (2 if v == 2 else 1))
    requests = Counter(version_of.values())
    # a share of a half, by chance: five standard deviations are 0.18
    assert all(0.3 < copies[version] / requests[version] < 0.7 for version in (1, 2))


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
    copying_gateway: RunningGateway, engines: Engines, content_type: str, body: bytes
) -> None:
    assert len(body) <= copying_gateway.settings.gateway.max_body_bytes
    headers = {"Content-Type": content_type}
    response = copying_gateway.http.post("/predictions/tagger", content=body, headers=headers)
    assert response.status_code == 200
    wait_until(lambda: engines[1].seen)
    (copy,) = engines[1].seen
    assert copy.body == body
    received_type = copy.headers.get("x-vlserve-content-type", copy.headers["content-type"])
    assert received_type == content_type


def test_a_body_in_chunks_is_copied_whole(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    pieces = (b"piece" * 1000 for _ in range(50))
    assert copying_gateway.http.post("/predictions/tagger", content=pieces).status_code == 200
    wait_until(lambda: engines[1].seen)
    assert engines[1].seen[0].body == engines[0].seen[0].body == b"piece" * 50_000


def test_a_body_over_the_limit_is_not_copied(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    body = b"x" * (copying_gateway.settings.gateway.max_body_bytes + 1_000_000)
    assert post(copying_gateway, body=body).status_code == 413
    assert post(copying_gateway).status_code == 200
    wait_until(lambda: engines[1].seen)
    assert [request.body for request in engines[1].seen] == [b"x"]


def test_a_version_drains_what_is_copied_to_it(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    engines[1].delay_s = 0.7 * TIMEOUT_S
    post(copying_gateway, "draining")
    for route in (NOT_COPIED, ModelRoute("tagger", {1: 100}, (1,))):
        for _ in range(2):
            apply_copies(copying_gateway, engines, route)
    assert copying_gateway.gateway.in_flight("tagger", 2) == 1
    assert logged_copy(copying_gateway, "draining")["status"] == 200
    wait_until(lambda: copying_gateway.gateway.in_flight("tagger", 2) == 0)
    apply_copies(copying_gateway, engines, ModelRoute("tagger", {1: 100}, (1,)))
    clusters = copying_gateway.settings.state_dir / "gateway" / "dynamic" / "clusters.json"
    assert "tagger-2" not in clusters.read_text(encoding="utf-8")


def test_a_request_that_is_still_uploaded_is_copied_to_a_version_that_leaves(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    """Copies under way do not hide a request whose body is still to come."""
    engines[1].delay_s = 0.5 * TIMEOUT_S
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: uploaded\r\n"
    address = ("127.0.0.1", copying_gateway.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 4\r\n\r\nha")
        wait_until(lambda: copying_gateway.active() == 1)
        for _ in range(5):
            post(copying_gateway)
        for _ in range(3):
            apply_copies(copying_gateway, engines, ModelRoute("tagger", {1: 100}, (1,)))
        wait_until(lambda: copying_gateway.gateway.in_flight("tagger", 2) <= 1)
        time.sleep(0.2)
        assert copying_gateway.gateway.in_flight("tagger", 2) == 1
        client.sendall(b"lf")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert response.status == 200
    assert logged_copy(copying_gateway, "uploaded")["version"] == "2"
    wait_until(lambda: copying_gateway.gateway.in_flight("tagger", 2) == 0)


def test_a_killed_gateway_comes_back_with_its_shadow(
    copying_gateway: RunningGateway, engines: Engines
) -> None:
    copying_gateway.stop()
    copying_gateway.gateway.prepare()
    copying_gateway.start()
    assert post(copying_gateway).status_code == 200
    wait_until(lambda: engines[1].seen)


@contextmanager
def _small_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("vlserve.control.gateway.envoy.LOG_BYTES", 1)
        yield


def test_the_shadow_log_is_rotated_with_the_access_log(
    copying_gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = copying_gateway.shadow_log()
    post(copying_gateway, "before-rotation")
    logged_copy(copying_gateway, "before-rotation")
    with _small_logs(monkeypatch):
        copying_gateway.gateway.rotate_access_log()
    assert "before-rotation" in log.with_name("shadow.jsonl.1").read_text(encoding="utf-8")
    assert copying_gateway.access_log().with_name("access.jsonl.1").exists()
    wait_until(log.exists)
    post(copying_gateway, "after-rotation")
    assert logged_copy(copying_gateway, "after-rotation")["status"] == 200


def test_the_shadow_listener_has_no_address(copying_gateway: RunningGateway) -> None:
    with admin_page(copying_gateway.settings) as admin:
        listeners = admin.get("/listeners", params={"format": "json"}).json()
    addresses = {each["name"]: each["local_address"] for each in listeners["listener_statuses"]}
    assert "socket_address" in addresses["predictions"]
    assert "socket_address" not in addresses["shadow"]
