"""Connections that ask the control service nothing keep nobody from rolling back."""

import inspect
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn

from support.control_api_server import RunningControl, running_control
from vlserve.control.api.connections import guarded_protocol
from vlserve.control.client import IDLE_S

MOST = 20
UNFINISHED = (
    b"",
    b"GET /models HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /versions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n\r\n",  # no key
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControl]:
    protocol = guarded_protocol(most_silent=MOST, headers_s=2.0)
    with running_control(tmp_path_factory.mktemp("connections"), protocol) as control:
        yield control


def opened(server: RunningControl) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.settimeout(30)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Read what was answered, to the end of the connection."""
    try:
        while connection.recv(65536):
            continue
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("data", UNFINISHED)
def test_who_asks_nothing_is_closed_after_a_while(server: RunningControl, data: bytes) -> None:
    with opened(server) as connection:
        connection.sendall(data)
        assert is_closed(connection)


def test_who_drips_into_an_answered_request_is_closed_too(server: RunningControl) -> None:
    with opened(server) as connection:
        connection.sendall(UNFINISHED[2])
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
        with pytest.raises(OSError):
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                connection.sendall(b"x")
                time.sleep(0.02)


def test_of_too_many_the_oldest_make_room(server: RunningControl) -> None:
    with ExitStack() as many:
        connections = [many.enter_context(opened(server)) for _ in range(3 * MOST)]
        assert server.client.health().status
        assert all(map(is_closed, connections[: 2 * MOST]))


def test_a_connection_is_used_again_and_long_answers_go_on(server: RunningControl) -> None:
    with httpx.Client(base_url=server.url, headers=server.headers, trust_env=False) as http:
        for _ in range(3):
            assert http.get("/health").status_code == 200
    link = server.client.console_link().path
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as browser:
        browser.get(link).raise_for_status()
        with browser.stream("GET", "/console/live/now", timeout=30) as events:
            first = next(events.iter_raw())
            assert first.startswith(b"event: part")
            time.sleep(2.5)  # longer than headers may take
            assert not events.is_closed
            assert server.client.health().status


def test_a_request_that_came_with_the_one_before_it_is_answered_to_its_end(
    server: RunningControl,
) -> None:
    link = server.client.console_link().path
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as browser:
        browser.get(link).raise_for_status()
        host = f"Host: {urlsplit(server.url).netloc}".encode()
        cookies = "; ".join(f"{each.name}={each.value}" for each in browser.cookies.jar)
        head = b"\r\n".join((host, f"Cookie: {cookies}".encode(), b"", b""))
    with opened(server) as connection:
        request = b"GET /health HTTP/1.1\r\n" + head
        connection.sendall(request + b"GET /console/live/now HTTP/1.1\r\n" + head)
        answer = b""
        while b"event: part" not in answer:
            chunk = connection.recv(65536)
            assert chunk, answer
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 401")
        connection.settimeout(1.0)  # longer than headers may take
        assert not is_closed(connection)


def test_a_client_gives_up_a_connection_before_the_service_does() -> None:
    """A request that is sent as the service closes its connection has no answer."""
    kept_s = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert kept_s - IDLE_S >= 2
