"""The events of releases that the webhook is told of, in the order in which the ledger has them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vlserve.control.domain import Event
from vlserve.control.store.ledger import Ledger

MESSAGE_TYPES: Mapping[str, str] = {
    "release_started": "release.started",
    "advanced": "release.advanced",
    "released": "release.promoted",
    "rolled_back": "release.rolled_back",
    "aborted": "release.rolled_back",
}
"""Kind of an event in the ledger -> type of the message that tells of it."""
_OF_KINDS = f"kind IN ({', '.join('?' * len(MESSAGE_TYPES))})"


@dataclass(frozen=True)
class ReleaseEvent:
    """``id``: rises from event to event."""

    id: int
    event: Event


class ReleaseEvents:
    """Thread-safe. Methods raise LedgerUnwritable and LedgerDamaged."""

    def __init__(self, ledger: Ledger) -> None:
        self._query = ledger.database.query
        self._execute = ledger.database.execute

    def told(self) -> int:
        """Return the id up to which the webhook was told. At first: of the newest event, so that
        nothing is told of what was before there was a webhook."""
        newest = self._query("SELECT coalesce(max(id), 0) AS id FROM events")[0]["id"]
        for row in self._query("SELECT told FROM webhook"):
            return min(int(row["told"]), int(newest))  # the ledger may come from a backup
        self.tell(newest)
        return int(newest)

    def tell(self, event_id: int) -> None:
        """Note that the webhook was told up to this event."""
        self._execute("INSERT OR REPLACE INTO webhook (only_row, told) VALUES (1, ?)", event_id)

    def oldest_after(self, event_id: int) -> ReleaseEvent | None:
        """Return the first event after this one."""
        rows = self._query(
            f"SELECT * FROM events WHERE id > ? AND {_OF_KINDS} ORDER BY id LIMIT 1",
            event_id,
            *MESSAGE_TYPES,
        )
        for row in rows:
            detail = json.loads(row["detail"])
            event = Event(row["at"], row["model"], row["version"], row["kind"], detail)
            return ReleaseEvent(row["id"], event)
        return None

    def count_after(self, event_id: int) -> int:
        """Return how many events there are after this one."""
        query = f"SELECT count(*) AS n FROM events WHERE id > ? AND {_OF_KINDS}"
        return int(self._query(query, event_id, *MESSAGE_TYPES)[0]["n"])
