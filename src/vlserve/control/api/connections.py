"""Connections to the control service: every local user may open one, and needs no key for that.

Each takes a file descriptor, and without one the service can neither open its ledger nor take a
connection for a rollback. So those that ask nothing are closed: the oldest of too many, and each
after some time.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_SILENT = 200
"""Connections that may wait for the headers of a request at once."""
HEADERS_S = 10.0
"""Within which a TLS handshake must be made, and then the headers of a request must come, also on a
connection that is used again."""


class TimedHandshakes(asyncio.SelectorEventLoop):
    """A loop whose servers close a connection that does not make its TLS handshake in time: to the
    protocol it is not there yet."""

    async def create_server(self, *what: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEADERS_S
        return await super().create_server(*what, **options)


def guarded_protocol(
    most_silent: int = MOST_SILENT, headers_s: float = HEADERS_S
) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol, of one server, with these limits."""
    silent: dict[H11Protocol, asyncio.TimerHandle] = {}  # the oldest first

    class GuardedProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_request()
            if len(silent) > most_silent:
                self._close(next(iter(silent)))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_asked():
                self._forget(self)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._is_asked():  # else a request came with the one before it
                self._wait_for_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget(self)
            super().connection_lost(exc)

        def _is_asked(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait_for_request(self) -> None:
            self._forget(self)
            if not self.transport.is_closing():
                silent[self] = self.loop.call_later(headers_s, self._close, self)

        @staticmethod
        def _close(connection: H11Protocol) -> None:
            GuardedProtocol._forget(connection)
            connection.transport.abort()

        @staticmethod
        def _forget(connection: H11Protocol) -> None:
            timer = silent.pop(connection, None)
            if timer is not None:
                timer.cancel()

    return GuardedProtocol
