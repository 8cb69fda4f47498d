"""HTTP/2 without TLS, frame by frame: requests that no client library would send.

Headers are sent as literals without an index (RFC 7541, 6.2.2), which any receiver takes. Of what
comes back, the headers are not decoded: bodies, resets and the connection's end tell enough.
"""

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1
FRAME_BYTES = 16_384

Header = tuple[bytes, bytes]


@dataclass
class Reply:
    """What came back on one stream. ``ended``: with its last frame, in whole; ``refused``: the
    stream was reset or the connection ended by the server."""

    body: bytes = b""
    ended: bool = False
    refused: bool = False
    frames: list[int] = field(default_factory=list)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of at most FRAME_BYTES of payload."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(fields: Sequence[Header], *, stream: int = 1, last: bool = False) -> bytes:
    """The frames of a request's headers. ``last``: no body follows."""
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    pieces = [block[at : at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    frames = []
    for number, piece in enumerate(pieces):
        flags = END_HEADERS if number == len(pieces) - 1 else 0
        if number == 0:
            frames.append(frame(HEADERS, flags | (END_STREAM if last else 0), stream, piece))
        else:
            frames.append(frame(9, flags, stream, piece))  # CONTINUATION
    return b"".join(frames)


def data(body: bytes, *, stream: int = 1, last: bool = True) -> bytes:
    """The frames of a body, which must fit the first flow-control window (65,535 bytes)."""
    pieces = [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)] or [b""]
    return b"".join(
        frame(DATA, END_STREAM if last and number == len(pieces) - 1 else 0, stream, piece)
        for number, piece in enumerate(pieces)
    )


def post(path: str, *extra: Header) -> list[Header]:
    """The headers of a POST."""
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    return [*pseudo, (b":authority", b"gateway"), *extra]


def exchange(port: int, data: bytes, *, stream: int = 1, timeout_s: float = 10.0) -> Reply:
    """What a server says on ``stream`` of a new connection, after the frames ``data``."""
    reply = Reply()
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with suppress(OSError):
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + data)
        reader = connection.makefile("rb")
        try:
            while not (reply.ended or reply.refused):
                _read_frame(reader.read(9), reader, connection, stream, reply)
        except (ConnectionError, EOFError):
            reply.refused = True
    return reply


class Upload:
    """Bodies on several streams of one connection, as fast as the receiver's windows allow."""

    def __init__(self, connection: socket.socket, path: str, length: int, streams: int) -> None:
        self._connection = connection
        self._left = {1 + 2 * number: length for number in range(streams)}
        self._windows = dict.fromkeys((0, *self._left), 65_535)
        fields = post(path, (b"content-length", str(length + 1).encode()))
        heads = b"".join(headers(fields, stream=stream) for stream in self._left)
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + heads)

    def send(self, timeout_s: float) -> bool:
        """Send what may be sent now, and take in one frame; whether all streams still live.

        Raises:
            ConnectionError: the server has ended the connection.
            TimeoutError: it said nothing for ``timeout_s``.
        """
        for stream, bytes_left in self._left.items():
            size = min(bytes_left, FRAME_BYTES, self._windows[0], self._windows[stream])
            if size > 0:
                self._connection.sendall(frame(DATA, 0, stream, b"x" * size))
                self._left[stream] -= size
                self._windows[0] -= size
                self._windows[stream] -= size
        sending = any(
            bytes_left and min(self._windows[0], self._windows[stream]) > 0
            for stream, bytes_left in self._left.items()
        )
        self._connection.settimeout(0.001 if sending else timeout_s)
        try:
            head = self._receive(9)
        except TimeoutError:
            if sending:
                return True
            raise
        self._connection.settimeout(timeout_s)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return self._take(kind, flags, stream, self._receive(int.from_bytes(head[:3], "big")))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:  # SETTINGS_INITIAL_WINDOW_SIZE
                    for number in self._left:
                        self._windows[number] += value - 65_535
            self._connection.sendall(frame(SETTINGS, ACK, 0))
        elif kind == 8 and stream in self._windows:  # WINDOW_UPDATE
            self._windows[stream] += int.from_bytes(payload, "big")
        return kind not in (RST_STREAM, GOAWAY, HEADERS)

    def _receive(self, size: int) -> bytes:
        buffer = b""
        while len(buffer) < size:
            piece = self._connection.recv(size - len(buffer))
            if not piece:
                raise ConnectionError("the server ended the connection")
            buffer += piece
        return buffer


def _read_frame(
    head: bytes, reader: object, connection: socket.socket, stream: int, reply: Reply
) -> None:
    if len(head) < 9:
        raise EOFError
    length = int.from_bytes(head[:3], "big")
    kind, flags, of = struct.unpack(">BBI", head[3:])
    payload = reader.read(length)  # type: ignore[attr-defined]
    reply.frames.append(kind)
    if kind == SETTINGS and not flags & ACK:
        connection.sendall(frame(SETTINGS, ACK, 0))
    elif kind == GOAWAY:
        reply.refused = int.from_bytes(payload[4:8], "big") != 0
    elif of == stream and kind == RST_STREAM:
        reply.refused = True
    elif of == stream and kind in (DATA, HEADERS):
        reply.body += payload if kind == DATA else b""
        reply.ended = bool(flags & END_STREAM)


def _text(value: bytes) -> bytes:
    """A string literal without Huffman coding."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    tail, length = b"", len(value) - 127
    while length >= 128:
        tail += bytes([length % 128 + 128])
        length //= 128
    return b"\x7f" + tail + bytes([length]) + value
