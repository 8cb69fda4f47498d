"""Who may see the console: one-time codes, and the sessions that they open.

A browser has one cookie for all ports of a host, so another program on 127.0.0.1 that its user
visits may get the cookie of ours. It lets one read, no more: what acts carries the session's token
too, which the browser keeps for this origin alone, port included.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CODE_S = 600.0
"""How long a code opens a session."""
MOST_CODES = 20
MOST_SESSIONS = 50
"""The oldest of more are forgotten."""
_BYTES = 32


@dataclass(frozen=True)
class Session:
    """One browser that a code let in. ``cookie`` lets it read, ``token`` act."""

    cookie: str
    token: str

    def may_act(self, token: str) -> bool:
        """Return whether a request with ``token`` comes from one of our own pages."""
        return hmac.compare_digest(self.token.encode(), token.encode())


class Sessions:
    """In memory: they end with the service. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, float] = {}
        self._sessions: dict[str, Session] = {}

    def new_code(self) -> str:
        """Return a code that opens one session, within `CODE_S`."""
        with self._lock:
            code = secrets.token_urlsafe(_BYTES)
            self._codes[code] = self._clock() + CODE_S
            _forget_oldest(self._codes, MOST_CODES)
        return code

    def open(self, code: str) -> Session | None:
        """Return a new session; None for a code that is unknown, used or too old."""
        with self._lock:
            until = self._codes.pop(code, None)
            if until is None or self._clock() > until:
                return None
            session = Session(secrets.token_urlsafe(_BYTES), secrets.token_urlsafe(_BYTES))
            self._sessions[session.cookie] = session
            _forget_oldest(self._sessions, MOST_SESSIONS)
        return session

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie."""
        with self._lock:
            return self._sessions.get(cookie)


def _forget_oldest(kept: dict[str, Any], most: int) -> None:
    while len(kept) > most:
        kept.pop(next(iter(kept)))
