"""What the access log says of the requests of a release: step, version, caller, however each ends.
Real Envoy."""

import socket
from collections.abc import Callable, Iterator
from uuid import uuid4

import httpx
import pytest

from support.fake_torchserve import FakeTorchServe, Reply
from support.raw_http2 import exchange, headers
from support.running_stack import RunningGateway, running_gateway, wait_until
from vlserve.control.domain import ModelRoute, Routing

RELEASE = ModelRoute("tagger", {2: 50, 1: 50}, (1, 2), "release-7", step="release-7/25")
CALM = ModelRoute("calm", {1: 100}, (1,))


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits half a second for an engine."""
    with running_gateway(tmp_path_factory.mktemp("log"), timeout_s=0.5) as gateway:
        yield gateway


@pytest.fixture
def engine() -> Iterator[FakeTorchServe]:
    with FakeTorchServe("engine-0", "token-of-0") as engine:
        yield engine


@pytest.fixture
def gateway(hasty: RunningGateway, engine: FakeTorchServe) -> RunningGateway:
    hasty.route(RELEASE, CALM, to=[engine])
    return hasty


def _ask(
    gateway: RunningGateway,
    request_id: str,
    path: str = "/predictions/tagger",
    key: bytes | None = None,
) -> httpx.Response:
    headers = {b"x-request-id": request_id.encode()}
    if key is not None:
        headers[b"x-sticky-key"] = key
    return gateway.http.post(path, content=b"x", headers=headers)


@pytest.mark.parametrize(
    ("key", "caller"),
    [
        (b"alice", "alice"),
        (None, None),
        (b"", None),
        (b"k" * 1000, "k" * 256),
        (b'a "key"\\ \t{}', 'a "key"\\ \t{}'),
        ("猫".encode(), "猫"),
        (b"\xff\xfe\x80", "\xff\xfe\x80"),
    ],
)
def test_a_request_that_weights_route_is_logged_with_step_and_caller(
    gateway: RunningGateway, key: bytes | None, caller: str | None
) -> None:
    request_id = str(uuid4())
    response = _ask(gateway, request_id, key=key)
    line = gateway.access_line(request_id)
    assert (line["step"], line["caller"], line["status"]) == (RELEASE.step, caller, 200)
    assert line["version"] == str(response.json()["version"])


def test_a_key_of_any_bytes_is_sticky(gateway: RunningGateway) -> None:
    for key in (b"\xff\xfe", "猫".encode(), b"a b"):
        answers = [_ask(gateway, "sticky", key=key).json() for _ in range(20)]
        assert len({answer["version"] for answer in answers}) == 1


def test_what_no_step_routed_has_none(gateway: RunningGateway) -> None:
    by_path = _ask(gateway, "by-path", "/predictions/tagger/2", key=b"alice")
    header = {"x-request-id": "by-header", "x-model-version": "2"}
    by_header = gateway.http.post("/predictions/tagger", headers=header)
    other = _ask(gateway, "no-release", "/predictions/calm")
    assert {by_path.status_code, by_header.status_code, other.status_code} == {200}
    for request_id in ("by-path", "by-header", "no-release"):
        assert gateway.access_line(request_id)["step"] is None
    assert gateway.access_line("by-path")["caller"] == "alice"


def _answers_late(engine: FakeTorchServe) -> None:
    engine.delay_s = 1.5


def _resets(engine: FakeTorchServe) -> None:
    engine.replies.extend([Reply(0)] * 4)


def _loses_its_worker(engine: FakeTorchServe) -> None:
    engine.replies.extend([Reply(507)] * 4)


def _refuses_the_image(engine: FakeTorchServe) -> None:
    engine.refusal = (422, {"error": {"code": "field_invalid", "message": "no image"}})


@pytest.mark.parametrize(
    ("fault", "status", "flags"),
    [
        (_answers_late, 504, "UT"),
        (_resets, 503, "URX,UC"),
        (_loses_its_worker, 503, "URX"),
        (_refuses_the_image, 422, "-"),
    ],
)
def test_a_request_that_fails_counts_for_its_step_and_version(
    gateway: RunningGateway,
    engine: FakeTorchServe,
    fault: Callable[[FakeTorchServe], None],
    status: int,
    flags: str,
) -> None:
    fault(engine)
    response = _ask(gateway, fault.__name__, key=b"bob")
    assert response.status_code == status
    line = gateway.access_line(fault.__name__)
    assert (line["status"], line["flags"]) == (status, flags)
    assert (line["step"], line["caller"]) == (RELEASE.step, "bob")
    assert line["version"] == response.headers["x-model-version"]


def test_a_request_that_no_instance_can_take_counts_too(hasty: RunningGateway) -> None:
    hasty.gateway.apply(Routing([RELEASE], []))
    response = _ask(hasty, "no-instance")
    line = hasty.access_line("no-instance")
    assert (line["status"], line["flags"], line["step"]) == (503, "UH", RELEASE.step)
    assert line["version"] in ("1", "2")  # the lot is drawn, though no version answers
    assert "x-model-version" not in response.headers


@pytest.mark.parametrize("body", [b"whole", b"ha"])
def test_a_client_that_goes_away_is_logged_with_its_step(
    gateway: RunningGateway, engine: FakeTorchServe, body: bytes
) -> None:
    engine.held.set()
    request_id = f"away-{body.decode()}"
    head = f"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\n"
    address = ("127.0.0.1", gateway.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head.encode() + b"Content-Length: 5\r\n\r\n" + body)
        wait_until(lambda: gateway.active() == 1)
    line = gateway.access_line(request_id)
    assert (line["status"], line["flags"], line["step"]) == (0, "DC", RELEASE.step)
    assert line["version"] in ("1", "2")


def test_a_request_counts_for_the_step_that_routed_it(
    gateway: RunningGateway, engine: FakeTorchServe
) -> None:
    """Its answer comes when the next step is in force."""
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: early\r\n"
    address = ("127.0.0.1", gateway.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 5\r\n\r\nha")
        wait_until(lambda: gateway.active() == 1)
        later = ModelRoute("tagger", {2: 100}, (1, 2), "release-7", step="release-7/100")
        gateway.route(later, to=[engine])
        client.sendall(b"lf.")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    _ask(gateway, "later")
    assert gateway.access_line("early")["step"] == RELEASE.step
    assert gateway.access_line("later")["step"] == later.step


def test_no_client_writes_long_lines(gateway: RunningGateway) -> None:
    """A method of HTTP/2 may be of 32 KB: the log turned over so much sooner."""
    name, path = str(uuid4()), "/predictions/tagger/" + "x" * 7000
    fields = [
        (b":method", b"M" * 12_000),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"gateway"),
        (b"x-request-id", name.encode()),
    ]
    exchange(gateway.settings.gateway.port, headers(fields, last=True))
    line = gateway.access_line(name)
    assert (line["method"], line["path"]) == ("M" * 16, path[:512])
