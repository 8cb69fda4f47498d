"""HTTP/1.1 byte by byte: nothing on the client's side mends a request, or refuses to send it."""

import http.client
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

MODEL = "{model}"
"""In a path: the model under test."""

Header = tuple[str | bytes, str | bytes]
Asked, Answer = TypeVar("Asked"), TypeVar("Answer")


@dataclass(frozen=True)
class Case:
    """One request, and what must come back: an answer where ``code`` is empty, else that refusal.

    ``raw``: the whole of what is sent, in place of everything after it.
    """

    name: str
    status: int
    code: str
    raw: bytes = field(default=b"", repr=False)
    body: bytes = field(default=b"", repr=False)
    content_type: str | None = None
    path: str = f"/predictions/{MODEL}"
    method: str = "POST"
    headers: tuple[Header, ...] = ()
    with_length: bool = True


@dataclass(frozen=True)
class Reply:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def encode(case: Case, model: str, request_id: str) -> bytes:
    """``case`` as it goes over the wire."""
    if case.raw:
        return case.raw
    headers: list[Header] = [("Host", "gateway"), ("X-Request-Id", request_id)]
    if case.content_type is not None:
        headers.append(("Content-Type", case.content_type))
    if case.with_length:
        headers.append(("Content-Length", str(len(case.body))))
    path = case.path.replace(MODEL, model)
    lines = [_bytes(f"{case.method} {path} HTTP/1.1"), b"Connection: close"]
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in (*headers, *case.headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + case.body


def send(port: int, raw: bytes, method: str) -> Reply:
    """What the server at the loopback ``port`` says, also when it does not hear out the request."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(OSError):  # it stops listening once it has said what it has to say
            connection.sendall(raw)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        headers: dict[str, str] = {}
        for name, value in response.getheaders():
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        return Reply(response.status, headers, response.read())


def at_once(ask: Callable[[Asked], Answer], cases: Sequence[Asked]) -> list[tuple[Asked, Answer]]:
    """Return each case with its answer. Envoy ends a connection a second after its last word: cases
    one after the other would be waited for."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(zip(cases, pool.map(ask, cases), strict=True))


def form(boundary: str, parts: Mapping[str, bytes]) -> bytes:
    """A multipart form; a part named image is a file."""
    body = b""
    for name, content in parts.items():
        file = '; filename="cover.jpg"' if name == "image" else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def chunked(body: bytes, size: int = 4096) -> bytes:
    """``body`` in chunked transfer coding."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in [*pieces, b""])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
