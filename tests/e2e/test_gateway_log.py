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
    with running_gateway(tmp_path_factory.mktemp("log"), timeout_s=0.5) as running:
        yield running


@pytest.fixture
def engine() -> Iterator[FakeTorchServe]:
    with FakeTorchServe("engine-0", "token-of-0") as running:
        yield running


@pytest.fixture
def routed(hasty: RunningGateway, engine: FakeTorchServe) -> RunningGateway:
    hasty.route(RELEASE, CALM, to=[engine])
    return hasty


def _ask(
    running: RunningGateway,
    request_id: str,
    path: str = "/predictions/tagger",
    key: bytes | None = None,
) -> httpx.Response:
    headers = {b"x-request-id": request_id.encode()}
    if key is not None:
        headers[b"x-sticky-key"] = key
    return running.http.post(path, content=b"x", headers=headers)


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
    routed: RunningGateway, key: bytes | None, caller: str | None
) -> None:
    request_id = str(uuid4())
    response = _ask(routed, request_id, key=key)
    line = routed.access_line(request_id)
    assert (line["step"], line["caller"], line["status"]) == (RELEASE.step, caller, 200)
    assert line["version"] == str(response.json()["version"])


def test_a_key_of_any_bytes_is_sticky(routed: RunningGateway) -> None:
    for key in (b"\xff\xfe", "猫".encode(), b"a b"):
        answers = [_ask(routed, "sticky", key=key).json() for _ in range(20)]
        assert len({answer["version"] for answer in answers}) == 1


def test_what_no_step_routed_has_none(routed: RunningGateway) -> None:
    by_path = _ask(routed, "by-path", "/predictions/tagger/2", key=b"alice")
    header = {"x-request-id": "by-header", "x-model-version": "2"}
    by_header = routed.http.post("/predictions/tagger", headers=header)
    other = _ask(routed, "no-release", "/predictions/calm")
    assert {by_path.status_code, by_header.status_code, other.status_code} == {200}
    for request_id in ("by-path", "by-header", "no-release"):
        assert routed.access_line(request_id)["step"] is None
    assert routed.access_line("by-path")["caller"] == "alice"


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
    routed: RunningGateway,
    engine: FakeTorchServe,
    fault: Callable[[FakeTorchServe], None],
    status: int,
    flags: str,
) -> None:
    fault(engine)
    response = _ask(routed, fault.__name__, key=b"bob")
    assert response.status_code == status
    line = routed.access_line(fault.__name__)
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


@pytest.mark.parametrize("sent", [b"whole", b"ha"])
def test_a_client_that_goes_away_is_logged_with_its_step(
    routed: RunningGateway, engine: FakeTorchServe, sent: bytes
) -> None:
    engine.held.set()
    request_id = f"away-{sent.decode()}"
    head = f"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\n"
    address = ("127.0.0.1", routed.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head.encode() + b"Content-Length: 5\r\n\r\n" + sent)
        wait_until(lambda: routed.active() == 1)
    line = routed.access_line(request_id)
    assert (line["status"], line["flags"], line["step"]) == (0, "DC", RELEASE.step)
    assert line["version"] in ("1", "2")


def test_a_request_counts_for_the_step_that_routed_it(
    routed: RunningGateway, engine: FakeTorchServe
) -> None:
    """Its answer comes when the next step is in force."""
    head = b"POST /predictions/tagger HTTP/1.1\r\nHost: x\r\nX-Request-Id: early\r\n"
    address = ("127.0.0.1", routed.settings.gateway.port)
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(head + b"Content-Length: 5\r\n\r\nha")
        wait_until(lambda: routed.active() == 1)
        later = ModelRoute("tagger", {2: 100}, (1, 2), "release-7", step="release-7/100")
        routed.route(later, to=[engine])
        client.sendall(b"lf.")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    _ask(routed, "later")
    assert routed.access_line("early")["step"] == RELEASE.step
    assert routed.access_line("later")["step"] == later.step


def test_no_client_writes_long_lines(routed: RunningGateway) -> None:
    """A method of HTTP/2 may be of 32 KB: the log turned over so much sooner."""
    name, path = str(uuid4()), "/predictions/tagger/" + "x" * 7000
    fields = [
        (b":method", b"M" * 12_000),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"gateway"),
        (b"x-request-id", name.encode()),
    ]
    exchange(routed.settings.gateway.port, headers(fields, last=True))
    line = routed.access_line(name)
    assert (line["method"], line["path"]) == ("M" * 16, path[:512])
