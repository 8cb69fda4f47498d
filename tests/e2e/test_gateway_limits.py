"""One caller that holds what all share, while others ask. Real Envoy; callers by address."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from support import raw_http2
from support.fake_torchserve import FakeTorchServe
from support.raw_http import Reply, send
from support.running_stack import RunningGateway, gateway_admin, running_gateway, wait_until
from vlserve.control.domain import ModelRoute

Engines = tuple[FakeTorchServe, FakeTorchServe]

TAGGER = ModelRoute("tagger", {1: 100}, (1,))
HOG = ("127.0.0.2", 0)
HEAP_MIB = 256  # an eighth of envoy.yaml's, so that the test is an eighth of the attack
BODY_MIB = 4
PIECE = b"x" * 65_536
WITHIN_S = 90.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with an eighth of the memory, and of the largest body."""
    folder = tmp_path_factory.mktemp("small")
    with running_gateway(folder, _with_small_heap, max_body_bytes=BODY_MIB << 20) as gateway:
        yield gateway


def _with_small_heap(envoy_yaml: str) -> str:
    assert "max_heap_size_bytes: 2147483648" in envoy_yaml
    return envoy_yaml.replace("2147483648", str(HEAP_MIB << 20))


@pytest.fixture
def gateway(small: RunningGateway, engines: Engines) -> RunningGateway:
    small.route(TAGGER, to=list(engines))
    return small


def _hold_a_body(port: int, drip_s: float, stop: threading.Event) -> None:
    """Send all but the end of the largest body, then nothing, or a byte now and then. Whoever is
    thrown out begins anew."""
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\n"
    length = f"Content-Length: {BODY_MIB << 20}\r\n\r\n".encode()
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30, HOG) as client:
            client.sendall(head + length)
            for _ in range((BODY_MIB << 20) // len(PIECE) - 1):
                client.sendall(PIECE)
            client.settimeout(drip_s or 1.0)
            while not stop.is_set():
                with suppress(TimeoutError):
                    client.recv(4096)
                    break
                if drip_s:
                    client.sendall(b"x")


def _hold_streams(port: int, stop: threading.Event) -> None:
    """The same with four bodies at once, on the streams of an HTTP/2 connection."""
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 30, HOG) as client:
            upload = raw_http2.Upload(client, "/predictions/tagger", (BODY_MIB << 20) - 1, 4)
            while not stop.is_set():
                with suppress(TimeoutError):
                    if not upload.send(timeout_s=0.5):
                        break


@contextmanager
def _slow_bodies(gateway: RunningGateway, drip_s: float | None) -> Iterator[None]:
    """120 bodies, over HTTP/2 where ``drip_s`` is None."""
    stop = threading.Event()
    port = gateway.settings.gateway.port
    if drip_s is None:
        hogs = [threading.Thread(target=_hold_streams, args=(port, stop)) for _ in range(30)]
    else:
        arguments = (port, drip_s, stop)
        hogs = [threading.Thread(target=_hold_a_body, args=arguments) for _ in range(120)]
    for hog in hogs:
        hog.start()
    try:
        yield
    finally:
        stop.set()
        for hog in hogs:
            hog.join()


def _answers(gateway: RunningGateway, method: str, path: str) -> bool:
    """Whether a caller from 127.0.0.1 is answered; a 503 of an overload says to try again."""
    with suppress(httpx.TransportError):
        response = httpx.request(
            method, f"{gateway.settings.gateway_url}{path}", content=b"x" * 1000, trust_env=False
        )
        if response.status_code == 503:
            assert response.json()["error"]["code"] == "overloaded"
            assert response.headers["retry-after"] == "1"
        return response.status_code == 200
    return False


def _sheds(gateway: RunningGateway) -> bool:
    """Whether the gateway has less memory than bodies ask for."""
    with gateway_admin(gateway.settings) as admin:
        return admin.sum(r"^overload\.envoy\.overload_actions\.reduce_timeouts\.scale_percent$") > 0


@pytest.mark.parametrize(
    "drip_s",
    [
        pytest.param(0.0, id="stalled", marks=pytest.mark.long),
        pytest.param(0.5, id="dripping", marks=pytest.mark.long),
        pytest.param(None, id="http-2"),
    ],
)
def test_slow_bodies_of_one_caller_leave_the_others_served(
    gateway: RunningGateway, drip_s: float | None
) -> None:
    """120 bodies are nearly twice the gateway's memory, and would hold it for a minute."""
    with _slow_bodies(gateway, drip_s):
        wait_until(lambda: _sheds(gateway), WITHIN_S)
        for _ in range(8):
            wait_until(lambda: _answers(gateway, "POST", "/predictions/tagger"), WITHIN_S)
            wait_until(lambda: _answers(gateway, "GET", "/health"), WITHIN_S)
    wait_until(lambda: gateway.active() == 0, WITHIN_S)


def test_idle_connections_of_one_caller_leave_the_others_served(
    envoy: RunningGateway, engines: Engines
) -> None:
    envoy.route(TAGGER, to=list(engines))
    address = ("127.0.0.1", envoy.settings.gateway.port)
    idle = [socket.create_connection(address, 30, HOG) for _ in range(1000)]
    try:
        assert _answers(envoy, "POST", "/predictions/tagger")
        assert _answers(envoy, "GET", "/health")
        for connection in idle[:3]:  # one that says nothing is closed long before the idle limit
            connection.settimeout(30)
            assert connection.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.long
def test_metrics_are_read_while_all_connections_are_taken(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def with_few_connections(envoy_yaml: str) -> str:
        return envoy_yaml.replace(
            "max_active_downstream_connections: 2000", "max_active_downstream_connections: 5"
        )

    with running_gateway(tmp_path_factory.mktemp("few"), with_few_connections) as gateway:
        address = ("127.0.0.1", gateway.settings.gateway.port)
        idle = [socket.create_connection(address, 30, HOG) for _ in range(6)]
        try:
            assert idle[-1].recv(1) == b""
            page = f"http://127.0.0.1:{gateway.settings.gateway.metrics_port}/stats/prometheus"
            assert httpx.get(page, trust_env=False).status_code == 200
        finally:
            for connection in idle:
                connection.close()


UNFINISHED = "Host: x\r\nContent-Length: 1000\r\n\r\nabc"


@pytest.mark.parametrize(
    ("request_line", "status", "code"),
    [
        ("POST /nothing", 404, "not_found"),
        ("POST /predictions/none", 404, "model_not_found"),
        ("POST /predictions/tagger/9", 404, "version_not_found"),
        ("DELETE /predictions/tagger", 405, "method_not_allowed"),
        ("POST /health", 405, "method_not_allowed"),
        ("POST /predictions/tagger?a=%", 400, "bad_request"),
    ],
)
def test_what_is_refused_is_refused_before_its_body_comes(
    gateway: RunningGateway, engines: Engines, request_line: str, status: int, code: str
) -> None:
    reply = _ask(gateway, f"{request_line} HTTP/1.1\r\n{UNFINISHED}")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, code)
    assert not any(engine.seen for engine in engines)


@pytest.mark.parametrize("length", [(BODY_MIB << 20) + 1, 2**40, 2**63 - 2])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_that_is_announced_as_too_large_is_not_read(
    gateway: RunningGateway, length: int, expect: str
) -> None:
    head = f"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{expect}"
    reply = _ask(gateway, f"{head}\r\n")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (413, "body_too_large")
    assert "x-model-version" not in reply.headers


@pytest.mark.parametrize(
    "head",
    [
        "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443",
        "CONNECT 127.0.0.1:8090 HTTP/1.1\r\nHost: 127.0.0.1:8090\r\nContent-Length: 5",
        "GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket",
    ],
)
def test_tunnels_are_refused_at_once(gateway: RunningGateway, head: str) -> None:
    reply = _ask(gateway, f"{head}\r\n\r\n")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "bad_request")


def _ask(gateway: RunningGateway, head: str) -> Reply:
    return send(gateway.settings.gateway.port, head.encode(), head.partition(" ")[0])
