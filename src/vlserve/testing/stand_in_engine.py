"""A stand-in for an engine instance that costs next to nothing: every version of every model is
there, and answers after a fixed time. A process of its own, so that it does not slow its clients.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlserve.control.domain import Instance, Key

_TAGS = [{"tag": "cat", "score": 0.5}]


@contextmanager
def stand_in(
    name: str, delay_ms: float = 0.0, lacks: "frozenset[Key]" = frozenset()
) -> "Iterator[Instance]":
    """Run an engine that answers while the body runs; ``lacks``: what the gateway is told that it
    does not hold."""
    from vlserve.control.domain import Instance  # the program below starts without it

    token = f"token-of-{name}"
    command = [sys.executable, __file__, "--token", token, "--delay-ms", str(delay_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stdout
    try:
        yield Instance(name, "127.0.0.1", int(process.stdout.readline()), token, lacks)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Connection:
    """One keep-alive connection of the gateway."""

    def __init__(self, token: str, delay_s: float) -> None:
        self._token = token.encode()
        self._delay_s = delay_s

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(await self._answer(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        pairs = (line.partition(b": ")[::2] for line in lines[1:-2])
        headers = {name.lower(): value for name, value in pairs}
        await reader.readexactly(int(headers.get(b"content-length", 0)))
        await asyncio.sleep(self._delay_s)
        _, _, model, version = lines[0].split(b" ")[1].decode().split("/")
        request_id = headers[b"x-request-id"].decode()
        answer = {"model": model, "version": int(version), "request_id": request_id, "tags": _TAGS}
        body = json.dumps(answer).encode()
        right = headers.get(b"authorization") == b"Bearer " + self._token
        head = [
            "HTTP/1.1 200 OK" if right else "HTTP/1.1 401 Unauthorized",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            f"X-Vlserve-Version: {version}",
        ]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def _serve(token: str, delay_s: float) -> None:
    server = await asyncio.start_server(_Connection(token, delay_s), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--token", required=True)
    parser.add_argument("--delay-ms", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.token, options.delay_ms / 1000))
