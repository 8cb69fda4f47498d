"""A small HTTP server in a thread that answers as the gateway does, or wrong in a chosen way."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TIMING = "decode;dur=1, tokenise;dur=0.5, infer;dur=2, postprocess;dur=0, serialise;dur=0.5"


@dataclass
class Behaviour:
    """How the server answers. Counts what it saw."""

    version: int = 1
    delay_s: float = 0.0
    slots: int = 64
    """Requests that are worked on at the same time; the others wait."""
    stall_from_s: float = 0.0
    """From so long after the first request on, nothing is answered ..."""
    stall_s: float = 0.0
    """... for so long."""
    fail_every: int = 0
    answer: dict[str, Any] = field(default_factory=lambda: {"tags": [{"tag": "a", "score": 1.0}]})
    echo_id: bool = True
    seen: int = 0
    sticky: int = 0
    keys: set[str | None] = field(default_factory=set)
    connections: set[Any] = field(default_factory=set)
    first: float | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    behaviour: Behaviour
    lock: threading.Lock
    free: threading.Semaphore

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests go away on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = self._note()
        behaviour = self.server.behaviour
        with self.server.free:
            self._stall()
            time.sleep(behaviour.delay_s)
        if behaviour.fail_every and number % behaviour.fail_every == 0:
            self._send(503, {"error": {"code": "overloaded", "message": "busy"}})
            return
        for name in ("image", "text"):  # of a form, or of JSON
            assert f'name="{name}"'.encode() in body or f'"{name}": '.encode() in body
        self._send(
            200,
            {
                "model": self.path.split("/")[2],
                "version": behaviour.version,
                "request_id": self.headers["X-Request-Id"],
                **behaviour.answer,
            },
        )

    def _note(self) -> int:
        behaviour = self.server.behaviour
        with self.server.lock:
            behaviour.seen += 1
            behaviour.first = behaviour.first or time.monotonic()
            behaviour.sticky += "X-Sticky-Key" in self.headers
            behaviour.keys.add(self.headers["X-Api-Key"])
            behaviour.connections.add(self.client_address)
            return behaviour.seen

    def _stall(self) -> None:
        behaviour = self.server.behaviour
        assert behaviour.first is not None
        begin = behaviour.first + behaviour.stall_from_s
        now = time.monotonic()
        if begin <= now < begin + behaviour.stall_s:
            time.sleep(begin + behaviour.stall_s - now)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.server.behaviour.echo_id:
            self.send_header("X-Request-Id", self.headers["X-Request-Id"])
        if "version" in answer:
            self.send_header("X-Model-Version", str(answer["version"]))
        self.send_header("Server-Timing", TIMING)
        self.send_header("Server-Timing", "engine;dur=4500e-3")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """The server's URL, while it runs."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.behaviour = behaviour
    server.lock = threading.Lock()
    server.free = threading.Semaphore(behaviour.slots)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
