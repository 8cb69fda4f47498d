"""A receiver of webhooks: what it got, and what it answers, well or badly."""

import json
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver(ThreadingHTTPServer):
    """Keeps what it got; ``answer`` does what it answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], dict[str, Any], bytes]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = status(204)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/a-secret-path"

    @property
    def kinds(self) -> list[str]:
        return [body["type"] for _, body, _ in self.got]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Some answers are cut off on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((headers, json.loads(raw), raw))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    handler.connection.close()


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(30)


def drip(handler: BaseHTTPRequestHandler) -> None:
    for _ in range(300):
        handler.wfile.write(b"H")
        time.sleep(0.1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(100_000):
        handler.wfile.write(b"x" * 65536)
