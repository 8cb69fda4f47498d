"""A stand-in for one TorchServe instance, for faults that the real one has only by luck.

It checks its token and words its errors as TorchServe 0.12 does.
"""

import json
import re
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vlserve.control.domain import Instance, Key


@dataclass(frozen=True)
class ReceivedRequest:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


@dataclass(frozen=True)
class Reply:
    """What to say instead of an answer. ``status`` 0 cuts the connection."""

    status: int
    kind: str = "InternalServerException"
    message: str = "Worker died."


@dataclass
class FakeTorchServe:
    """Answers as the handler would, with the version of the path, once `replies` are used up."""

    name: str
    token: str
    replies: deque[Reply] = field(default_factory=deque)
    seen: list[ReceivedRequest] = field(default_factory=list)
    delay_s: float = 0.0
    held: threading.Event = field(default_factory=threading.Event)
    """While it is set, nothing is answered."""
    refusal: tuple[int, object] | None = None
    """Status and body that the handler says instead of an answer."""
    timing: str = ""
    """Server-Timing of what the handler says; what its worker refuses before it has none."""
    message: bytes | None = None
    """A protobuf message that the handler says instead of an answer in JSON."""

    def __enter__(self) -> "FakeTorchServe":
        engine = self

        class Handler(_Handler):
            owner = engine

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.held.clear()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        self._thread.join()

    def instance(self, lacks: frozenset[Key] = frozenset()) -> Instance:
        return Instance(self.name, "127.0.0.1", self._server.server_port, self.token, lacks)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, *args: object) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)  # type: ignore[arg-type]

    def process_request(self, request: object, client_address: object) -> None:
        self._connections.add(request)  # type: ignore[arg-type]
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: object) -> None:
        self._connections.discard(request)  # type: ignore[arg-type]
        super().shutdown_request(request)  # type: ignore[arg-type]

    def cut_connections(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FakeTorchServe

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.seen.append(ReceivedRequest(self.path, headers, body, self.command))
        time.sleep(self.owner.delay_s)
        while self.owner.held.is_set():
            time.sleep(0.01)
        if headers.get("authorization") != f"Bearer {self.owner.token}":
            self._say(400, {"code": 400, "type": "InvalidKeyException", "message": "Token"})
        elif self.owner.replies:
            self._misbehave(self.owner.replies.popleft())
        else:
            version = re.sub(r".*/", "", self.path.partition("?")[0])
            answer = {"engine": self.owner.name, "version": int(version)}
            status, reply_body = self.owner.refusal or (200, answer)
            if self.owner.message is not None and status == 200:
                self._write(200, self.owner.message, "application/x-protobuf", version)
            else:
                self._say(status, reply_body, version)

    do_GET = do_PUT = do_POST

    def _misbehave(self, reply: Reply) -> None:
        if not reply.status:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = {"code": reply.status, "type": reply.kind, "message": reply.message}
        self._say(reply.status, body)

    def _say(self, status: int, answer: object, version: str = "") -> None:
        body = json.dumps(answer, indent=2).encode()
        self._write(status, body, "application/json", version)

    def _write(self, status: int, body: bytes, content_type: str, version: str) -> None:
        lines = {"content-type": content_type, "x-request-id": "the-engines-own"}
        lines |= {"content-length": str(len(body))}
        lines |= {"x-vlserve-version": version} if version else {}
        lines |= {"server-timing": self.owner.timing} if version and self.owner.timing else {}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.wfile.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
