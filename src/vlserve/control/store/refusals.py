"""Calls that named keys were refused for their role, counted in the ledger.

Whoever has a key may be refused as often as he likes, so a row stands for all refusals of one kind,
and the ledger is written once a second at the most: what comes in between is counted in memory, and
written with the next refusal, when somebody reads, or as the control service ends.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vlserve.control.domain import Event
from vlserve.control.store.ledger import Ledger, now
from vlserve.errors import ControlError

MOST_REFUSALS = 1000
"""Kinds of refusals (key, call, model) that are kept; the oldest of more are forgotten."""
WRITE_EVERY_S = 1.0
_COLUMNS = "key, call, needs, model, first_at, last_at, times"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Calls of one kind that a named key was refused for its role.

    ``call``: method and path, as a template. ``needs``: the roles that it needs. ``model``: the one
    that it named; empty where it named none that is known. Times are UTC, ISO 8601.
    """

    key: str
    call: str
    needs: str
    model: str
    first_at: str
    last_at: str
    times: int

    def event(self) -> Event:
        """Return them as one event in the history of their model."""
        detail = {"key": self.key, "call": self.call, "needs": self.needs, "times": self.times}
        return Event(self.last_at, self.model, None, "call_refused", detail)


@dataclass
class _Pending:
    """Refusals of one kind that the ledger does not know yet."""

    first_at: str
    last_at: str
    times: int


class RefusalLog:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str, str, str], _Pending] = {}
        self._written_at = float("-inf")

    def note(self, key: str, call: str, needs: str, model: str) -> None:
        """Count one refusal. ``call``: its method and its path as a template. ``model``: what the
        path named; one that is not known is left out. A ledger that takes no change keeps nobody
        from being refused."""
        with self._lock:
            at, kind = now(), (key, call, needs, self._known(model))
            tally = self._pending.setdefault(kind, _Pending(at, at, 0))
            tally.last_at, tally.times = at, tally.times + 1
            if self._clock() - self._written_at >= WRITE_EVERY_S:
                self._write()
            while len(self._pending) > MOST_REFUSALS:
                self._pending.pop(next(iter(self._pending)))

    def kept(self, model: str | None = None) -> list[Refusal]:
        """Return the refusals that are kept, or those of one model, by the time of the last."""
        self.flush()
        query = f"SELECT {_COLUMNS} FROM refusals WHERE ?1 IS NULL OR model = ?1 ORDER BY last_at"
        return [Refusal(*row) for row in self._ledger.database.query(query, model)]

    def flush(self) -> None:
        """Write what is counted in memory alone."""
        with self._lock:
            self._write()

    def _known(self, model: str) -> str:
        try:
            query = "SELECT 1 FROM models WHERE model = ?"
            return model if model and self._ledger.database.query(query, model) else ""
        except ControlError:
            return ""

    def _write(self) -> None:
        if not self._pending:
            return
        self._written_at = self._clock()
        try:
            with self._ledger.transaction():
                for kind, tally in self._pending.items():
                    self._ledger.database.execute(
                        f"INSERT INTO refusals ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
                        " ON CONFLICT DO UPDATE SET last_at = excluded.last_at,"
                        " times = times + excluded.times",
                        *(*kind, tally.first_at, tally.last_at, tally.times),
                    )
                self._ledger.database.execute(
                    "DELETE FROM refusals WHERE rowid NOT IN"
                    " (SELECT rowid FROM refusals ORDER BY last_at DESC LIMIT ?)",
                    MOST_REFUSALS,
                )
        except ControlError as error:
            logger.warning("refusals of %d kinds wait: %s", len(self._pending), error)
        else:
            self._pending.clear()
