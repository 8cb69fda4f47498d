"""Who may see the console: one-time codes, and the sessions that they open.

A browser has one cookie for all ports of a host, so another program on 127.0.0.1 that its user
visits may get the cookie of ours. It lets one read, no more: what acts carries the session's token
too, which the browser keeps for this origin alone, port included.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlserve.control.named_keys import Holder

CODE_S = 600.0
"""How long a code opens a session."""
MOST_CODES = 20
MOST_SESSIONS = 50
"""Of one key; the oldest of more are forgotten."""
_BYTES = 32


@dataclass(frozen=True)
class Session:
    """One browser that was let in. ``cookie`` lets it read, ``token`` act, as far as the roles of
    ``holder`` go."""

    cookie: str
    token: str
    holder: Holder

    def may_act(self, token: str) -> bool:
        """Return whether a request with ``token`` comes from one of our own pages."""
        return hmac.compare_digest(self.token.encode(), token.encode())


class Sessions:
    """In memory: they end with the service, and with the key of who was let in. Thread-safe.

    Args:
        is_in_force: says whether the key of a holder still is.
    """

    def __init__(
        self, is_in_force: Callable[[Holder], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_in_force = is_in_force
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, tuple[float, Holder]] = {}
        self._sessions: dict[str, Session] = {}

    def new_code(self, holder: Holder) -> str:
        """Return a code that opens one session of ``holder``, within `CODE_S`."""
        with self._lock:
            code = secrets.token_urlsafe(_BYTES)
            self._codes[code] = (self._clock() + CODE_S, holder)
            _forget_oldest(
                self._codes,
                [key for key, (_, whose) in self._codes.items() if whose == holder],
                MOST_CODES,
            )
        return code

    def open(self, code: str) -> Session | None:
        """Return a new session; None for a code that is unknown, used or too old, or whose key was
        revoked meanwhile."""
        with self._lock:
            until, holder = self._codes.pop(code, (float("-inf"), None))
        if holder is None or self._clock() > until or not self._is_in_force(holder):
            return None
        return self.open_for(holder)

    def open_for(self, holder: Holder) -> Session:
        """Return a new session of ``holder``."""
        session = Session(secrets.token_urlsafe(_BYTES), secrets.token_urlsafe(_BYTES), holder)
        with self._lock:
            self._sessions[session.cookie] = session
            _forget_oldest(
                self._sessions,
                [key for key, each in self._sessions.items() if each.holder == holder],
                MOST_SESSIONS,
            )
        return session

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie; None for one whose key was revoked meanwhile."""
        with self._lock:
            session = self._sessions.get(cookie)
        if session is None or self._is_in_force(session.holder):
            return session
        with self._lock:
            self._sessions.pop(cookie, None)
        return None


def _forget_oldest(entries: dict[str, Any], keys: Sequence[str], most: int) -> None:
    """Forget the oldest of those that one holder has: nobody's push out another's."""
    for oldest in keys[: max(0, len(keys) - most)]:
        entries.pop(oldest)
